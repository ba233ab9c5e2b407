"""The files of a weather source: archives unpacked, remote files fetched, stores as they are.

The Climate Data Store delivers variables of different kinds (instantaneous and accumulated) as one
ZIP archive with a NetCDF file of each, sometimes under a name that ends in ``.nc``.

Providers replace files: what was preliminary becomes final under the same name. A graph keeps the
paths of its files, with the times and the packing that it found there, and opens them again much
later. Every version of a file therefore has a path of its own, which never holds another one.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from smgrid.cache import cache_folder
from smgrid.catalog import SourceSpec, find_files, is_url
from smgrid.errors import SourceError
from smgrid.sources.download import fetch

# Providers replace preliminary days at most daily.
_MAX_AGE = timedelta(days=1)
# Versions that nobody asked for during this time [s] are removed when there is another one.
_FORGOTTEN_S = 30 * 86400.0
# ARCO-ERA5 calls its stores .zarr-v3, which is a version of its own and not one of the format.
_ZARR = re.compile(r"\.zarr(-v\d+)?/?$")
_READABLE = (".nc", ".nc4")


def weather_files(spec: SourceSpec) -> tuple[str, ...]:
    """Return what `open_gridded` opens for a source: local files, local stores, URLs of stores.

    Raises
    ------
    SourceError
        If a file is missing, cannot be fetched, or is an archive without NetCDF files.
    """
    files: list[str] = []
    for path in find_files(spec):
        if is_url(path) and _ZARR.search(path):
            files.append(path)
            continue
        local = fetch(path, sign="none", origin=spec.origin, max_age=_MAX_AGE)
        if local.is_file() and zipfile.is_zipfile(local):
            files += _find_readable(local, _keep_version(local, _unpack))
        elif is_url(path):
            files.append(str(_keep_version(local, _link) / local.name))
        else:
            files.append(str(local))
    return tuple(files)


def _find_readable(archive: Path, folder: Path) -> list[str]:
    """Return the NetCDF files of an archive that is unpacked."""
    files = sorted(str(path) for path in folder.iterdir() if path.suffix in _READABLE)
    if not files:
        held = ", ".join(path.name for path in folder.iterdir()) or "nothing"
        msg = f"{archive} is an archive without NetCDF files (it holds {held}); order NetCDF"
        raise SourceError(msg)
    return files


def _keep_version(file: Path, fill: Callable[[Path, Path], None]) -> Path:
    """Return the folder of the cache that `fill` made of this version of a file, once."""
    state = file.stat()
    name = f"{_digest(file.absolute())}-{_digest((state.st_size, state.st_mtime_ns))}"
    folder = cache_folder("unpacked", name)
    if not folder.exists():
        _make_folder(folder, file, fill)
        _forget_versions(folder)
    with contextlib.suppress(OSError):  # in a cache that cannot be written nothing is removed
        os.utime(folder)
    return folder


def _digest(identity: object) -> str:
    return hashlib.sha256(str(identity).encode()).hexdigest()[:24]


def _make_folder(folder: Path, file: Path, fill: Callable[[Path, Path], None]) -> None:
    """Make `folder` of a file: whole, or not at all."""
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        fill(file, partial)
        _publish(partial, folder)
    except zipfile.BadZipFile as cause:
        msg = f"{file} cannot be unpacked ({cause}); download it again"
        raise SourceError(msg) from cause
    except OSError as cause:
        msg = (
            f"{file} cannot be kept in {folder.parent} ({cause.strerror or cause}); make room "
            "there, or set SMGRID_CACHE to a folder that can be written"
        )
        raise SourceError(msg) from cause
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _unpack(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            if not member.is_dir():
                with zipped.open(member) as source:
                    target = folder / Path(member.filename).name
                    with target.open("xb") as file:
                        shutil.copyfileobj(source, file)


def _link(file: Path, folder: Path) -> None:
    """Give the file a second name, which stays with this version when another takes the first."""
    try:
        (folder / file.name).hardlink_to(file)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, folder / file.name)


def _forget_versions(folder: Path) -> None:
    """Remove versions of the same file that have not been used for long."""
    for other in folder.parent.glob(f"{folder.name.partition('-')[0]}-*"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if time.time() - other.stat().st_mtime > _FORGOTTEN_S:
                shutil.rmtree(other, ignore_errors=True)


def _publish(partial: Path, folder: Path) -> None:
    try:
        os.rename(partial, folder)  # noqa: PTH104 (Path.rename replaces an empty folder as well)
    except OSError:
        if not folder.exists():  # else another process was first
            raise
