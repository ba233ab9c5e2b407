"""Where an export goes: it appears complete or not at all, and never replaces other content."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

from filelock import FileLock, Timeout

from smgrid.errors import ConfigError, StoreError, StoreInUseError

IDENTITY = "smgrid_export"
"""Attribute or tag of every export: digest of what it was made from."""


@dataclass(frozen=True)
class ExportReport:
    """What one export did."""

    path: Path
    """The file or folder that was asked for."""
    written: tuple[Path, ...]
    """Files or stores that this call wrote."""
    kept: tuple[Path, ...]
    """Those that were there already, of the same content."""


def local_target(out: str | PathLike[str], *, store: str) -> Path:
    """Return where an export is written.

    Raises
    ------
    ConfigError
        It is a URL, or lies in the store that is exported.
    """
    text = fspath(out)
    if "://" in text:
        msg = (
            f"{text} is a URL, expected a file or folder of this machine: write the export there "
            "and copy it when it is complete"
        )
        raise ConfigError(msg)
    target = Path(text).expanduser().resolve()
    if "://" not in store and target.is_relative_to(store):
        msg = f"{target} lies in the store {store} that is exported; choose another place"
        raise ConfigError(msg)
    return target


def is_there(target: Path, identity: str, read_identity: Callable[[Path], str | None]) -> bool:
    """Whether the same export is at `target` already.

    Parameters
    ----------
    target
        File or folder of the export.
    identity
        Digest of what it would be made from.
    read_identity
        Returns the digest that is written in an export, ``None`` if there is none; may raise
        OSError or ValueError for what is no such export.

    Raises
    ------
    StoreError
        Something else is there.
    """
    if not target.exists():
        return False
    try:
        found = read_identity(target)
    except (OSError, ValueError):
        found = None
    if found == identity:
        return True
    what = "not an export of smgrid" if found is None else "the export of something else"
    msg = f"{target} exists already and is {what}; choose another place or remove it"
    raise StoreError(msg)


def json_identity(path: Path) -> str | None:
    """Return the digest in a JSON file, ``None`` if it has none; an error as `is_there` takes."""
    content = json.loads(path.read_text(encoding="utf-8"))
    found = content.get(IDENTITY) if isinstance(content, dict) else None
    return found if isinstance(found, str) else None


@contextmanager
def _explaining(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # the latter is what the netCDF library raises
        msg = f"{target} could not be written ({error}); check space and permissions, export again"
        raise StoreError(msg) from error


@contextmanager
def placing(target: Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes `target` when the block succeeds.

    It lies in a hidden folder beside `target`, so that the last step is a renaming. What a killed
    process left there is removed by the next one.

    Raises
    ------
    StoreInUseError
        Another process writes the same export.
    StoreError
        The place cannot be written.
    """
    hidden = target.with_name(f".{target.name}.partial")
    with _explaining(target):
        hidden.mkdir(parents=True, exist_ok=True)
        lock = FileLock(hidden / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as cause:
            msg = f"another process writes {target}; wait for it or choose another place"
            raise StoreInUseError(msg) from cause
        try:
            content = hidden / "content"
            shutil.rmtree(content, ignore_errors=True)
            content.mkdir()
            yield content / target.name
            (content / target.name).rename(target)
        finally:
            lock.release()
            shutil.rmtree(hidden)
