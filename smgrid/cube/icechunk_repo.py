"""Icechunk repositories by folder or ``s3://`` URL: open, make, and say what went wrong.

Like for all stores, keys and endpoint come from the environment of each process; what is sent to
workers does not hold them.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from smgrid.cube.objectstore import explain_access
from smgrid.cube.storage import (
    StorePath,
    delete_keys,
    list_keys,
    normalise_path,
    open_store,
)
from smgrid.errors import MissingDependencyError, StoreError

if TYPE_CHECKING:
    from icechunk import Repository, Session

# One manifest, which lists the chunks of an array, covers so many steps: a commit then rewrites the
# manifest of its time only, not that of all years.
STEPS_PER_MANIFEST = 64

_CAUSE = re.compile(r"^(?:\s*(?:x|×)|.*(?:->|▶)) (.+)$", re.MULTILINE)


def import_icechunk() -> Any:
    """Return the module; MissingDependencyError says how to install it."""
    try:
        import icechunk
    except ImportError as cause:
        msg = "stores with versions need icechunk; install it with pip install 'smgrid[icechunk]'"
        raise MissingDependencyError(msg) from cause
    if "ICECHUNK_LOG" not in os.environ:
        icechunk.set_logs_filter("error")  # it would warn on standard output, at every opening
    return icechunk


def normalise_place(path: StorePath) -> str:
    """Return the folder or URL of a repository; StoreError if none can be there."""
    place = normalise_path(path)
    if "://" in place and not place.startswith("s3://"):
        msg = f"{place}: a store with versions can be in a folder or at s3:// only; use these"
        raise StoreError(msg)
    return place


def open_repository(place: str) -> "Repository":
    """Open the repository at `place`; StoreError if there is none."""
    icechunk = import_icechunk()
    with explaining_icechunk(place):
        if not _exists(place):
            msg = f"{place} is no icechunk repository; check the path, or write one"
            raise StoreError(msg)
        repository: Repository = icechunk.Repository.open(_storage(place))
        return repository


def make_repository(place: str) -> "Repository":
    """Open the repository at `place`, or make an empty one."""
    icechunk = import_icechunk()
    with explaining_icechunk(place):
        if _exists(place):
            return open_repository(place)
        _sweep(place)
        try:
            icechunk.Repository.create(_storage(place), _config())
        except icechunk.IcechunkError:
            # Where an answer was lost, the client has asked again and found its own repository.
            if not _exists(place):
                raise
        return open_repository(place)


def _exists(place: str) -> bool:
    # icechunk would make the folder to look into it.
    folder = "://" in place or Path(place).is_dir()
    return folder and bool(import_icechunk().Repository.exists(_storage(place)))


def _sweep(place: str) -> None:
    """Remove what a process left that died while it made the repository; refuse anything else."""
    store = open_store(place, "write")
    keys = list_keys(store)
    foreign = sorted(key for key in keys if not key.startswith(("config.yaml", "snapshots/")))
    if foreign:
        msg = (
            f"{place} is not empty and no icechunk repository (it holds {foreign[0]!r}); give a "
            "new path, or remove it if it is not needed"
        )
        raise StoreError(msg)
    delete_keys(store, keys)


def _config() -> Any:
    icechunk = import_icechunk()
    along_time = {
        icechunk.ManifestSplitDimCondition.DimensionName(dim): STEPS_PER_MANIFEST
        for dim in ("time", "date")
    }
    splitting = icechunk.ManifestSplittingConfig.from_dict(
        {icechunk.ManifestSplitCondition.AnyArray(): along_time}
    )
    return icechunk.RepositoryConfig(manifest=icechunk.ManifestConfig(splitting=splitting))


def writable_session(repository: "Repository", branch: str, place: str) -> "Session":
    """Return a session on the tip of a branch; StoreError lists the branches if it is none."""
    with explaining_icechunk(place):
        branches = repository.list_branches()
        if branch not in branches:
            msg = f"{place} has no branch {branch!r}; it has {', '.join(sorted(branches))}"
            raise StoreError(msg)
        return repository.writable_session(branch)


@contextmanager
def explaining_icechunk(place: str) -> Iterator[None]:
    """Turn an icechunk error inside the block into a StoreError about the store at `place`."""
    icechunk = import_icechunk()
    try:
        yield
    except icechunk.ConflictError as error:
        raise StoreError(explain_conflict(place)) from error
    except icechunk.IcechunkError as error:
        raise StoreError(_explain(error, place)) from error


def explain_conflict(place: str) -> str:
    """Say that somebody else has committed."""
    return (
        f"{place}: another writer has committed to this branch meanwhile; let only one write to "
        "it, and write again to go on from the last snapshot"
    )


def _explain(error: Exception, place: str) -> str:
    text = str(error)
    if place.startswith("s3://") and (known := explain_access(text, place)):
        return known
    causes = dict.fromkeys(cause.strip() for cause in _CAUSE.findall(text))
    return f"{place}: {': '.join(causes) or text.strip().partition(chr(10))[0]}"


def _storage(place: str) -> Any:
    icechunk = import_icechunk()
    if "://" not in place:
        return icechunk.local_filesystem_storage(place)
    parts = urlsplit(place)
    env = os.environ
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or None
    public = env.get("AWS_SKIP_SIGNATURE", "").lower() in {"1", "true"}
    return icechunk.s3_storage(
        bucket=parts.netloc,
        prefix=parts.path.strip("/"),
        region=env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or None,
        endpoint_url=endpoint,
        allow_http=endpoint is not None and endpoint.startswith("http://"),
        force_path_style=endpoint is not None,
        anonymous=public or None,
        from_env=None if public else True,
    )
