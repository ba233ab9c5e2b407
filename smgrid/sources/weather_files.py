"""The files of a weather source: archives unpacked, remote files fetched, stores as they are.

The Climate Data Store delivers variables of different kinds (instantaneous and accumulated) as one
ZIP archive with a NetCDF file of each, sometimes under a name that ends in ``.nc``.
"""

import hashlib
import os
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

from smgrid.cache import cache_folder
from smgrid.catalog import SourceSpec, find_files, is_url
from smgrid.errors import SourceError
from smgrid.sources.download import fetch

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
        local = fetch(path, sign="none", origin=spec.origin)
        files += _unpack(local) if local.is_file() and zipfile.is_zipfile(local) else [str(local)]
    return tuple(files)


def _unpack(archive: Path) -> list[str]:
    """Return the NetCDF files of an archive, unpacked once into the cache."""
    state = archive.stat()
    identity = f"{archive.absolute()}\n{state.st_size}\n{state.st_mtime_ns}"
    folder = cache_folder("unpacked", hashlib.sha256(identity.encode()).hexdigest()[:24])
    if not folder.exists():
        _unpack_into(archive, folder)
    files = sorted(str(path) for path in folder.iterdir() if path.suffix in _READABLE)
    if not files:
        held = ", ".join(path.name for path in folder.iterdir()) or "nothing"
        msg = f"{archive} is an archive without NetCDF files (it holds {held}); order NetCDF"
        raise SourceError(msg)
    return files


def _unpack_into(archive: Path, folder: Path) -> None:
    """Make `folder` with the files of an archive: whole, or not at all."""
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        with zipfile.ZipFile(archive) as zipped:
            for member in zipped.infolist():
                if not member.is_dir():
                    with zipped.open(member) as source:
                        target = partial / Path(member.filename).name
                        with target.open("xb") as file:
                            shutil.copyfileobj(source, file)
        _publish(partial, folder)
    except (OSError, zipfile.BadZipFile) as cause:
        msg = f"{archive} cannot be unpacked into {folder.parent} ({cause}); download it again"
        raise SourceError(msg) from cause
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, folder: Path) -> None:
    try:
        os.rename(partial, folder)  # noqa: PTH104 (Path.rename replaces an empty folder as well)
    except OSError:
        if not folder.exists():  # else another process was first
            raise
