"""The files of a store: open it by its path or URL, read, write and list whole objects.

Everything that depends on where a store lives is here and, for object stores, in `objectstore`.
"""

import asyncio
import errno
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from zarr.abc.store import Store
from zarr.buffer import cpu, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from smgrid.cube.objectstore import UrlStore, normalise_url, open_url
from smgrid.errors import StoreError

StorePath = str | PathLike[str]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
_NO_SYNC = frozenset({errno.EINVAL, errno.EBADF, errno.ENOTSUP})
_SYNCS = 8  # at a time, which a disk puts together
_CRUSHED_URL = re.compile(r"[a-z][a-z0-9+]+:/(?!/)")


def normalise_path(path: StorePath) -> str:
    """Return `path` in the form in which every process of a cluster finds the same store.

    Raises
    ------
    StoreError
        If it is a URL that a store cannot have.
    """
    text = fspath(path)
    if _CRUSHED_URL.match(text):
        msg = f"{text} was a URL before it became a pathlib.Path, which drops a slash; give text"
        raise StoreError(msg)
    if "://" in text:
        return normalise_url(text)
    return str(Path(text).expanduser().resolve())


def open_store(path: StorePath, mode: Literal["read", "write"] = "read") -> Store:
    """Return the zarr store at `path`, a folder or a URL.

    Raises
    ------
    StoreError
        If there is no folder to read, if `path` is a file, or a URL that a store cannot have.
    """
    place = normalise_path(path)
    if "://" in place:
        return open_url(place, mode)
    folder = Path(place)
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file, expected the folder of a store; give another path"
        raise StoreError(msg)
    if mode == "read" and not folder.exists():
        msg = f"{folder} does not exist, expected the folder of a store; check the path"
        raise StoreError(msg)
    return LocalStore(folder, read_only=mode == "read")


@contextmanager
def explaining(path: StorePath) -> Iterator[None]:
    """Turn an operating system error inside the block into a StoreError about `path`."""
    try:
        yield
    except OSError as error:
        raise StoreError(explain_os_error(error, path)) from error


def explain_os_error(error: OSError, path: StorePath) -> str:
    """Return what happened to the store at `path`, and what to do."""
    if error.errno in _FULL:
        return (
            f"no space is left for {fspath(path)} ({error.strerror}); the finished units are kept. "
            "Free space or move the store to a larger disk, then write again to resume"
        )
    if error.errno in _FORBIDDEN:
        return (
            f"{fspath(path)} cannot be written ({error.strerror}); "
            "check the permissions of the folder or give another path"
        )
    return f"{fspath(path)}: {error}"


def read_bytes(store: Store, key: str) -> bytes | None:
    """Return the object `key`, or ``None`` if there is none."""
    if isinstance(store, UrlStore):
        return store.read(key)
    if isinstance(store, LocalStore):  # directly: every unit looks for its lease
        try:
            return (store.root / key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
    found = sync(store.get(key, prototype=default_buffer_prototype()))
    return None if found is None else found.to_bytes()


def write_bytes(store: Store, key: str, content: bytes) -> None:
    """Write the object `key` as a whole: a reader sees the old one or the new one."""
    sync(store.set(key, cpu.Buffer.from_bytes(content)))


def make_durable(store: Store, keys: Iterable[str]) -> None:
    """Return when the objects `keys` will survive a power cut; one that is gone is passed over.

    Files of a folder are brought to the disk, and then the names of files and folders. An object
    store answers only when an object is safe, so that there is nothing to do.
    """
    if not isinstance(store, LocalStore):
        return
    files = [PurePosixPath(key) for key in keys]
    folders = {} if os.name == "nt" else dict.fromkeys(p for file in files for p in file.parents)
    with ThreadPoolExecutor(_SYNCS) as pool:
        for places in (files, folders):
            list(pool.map(_sync_path, [store.root / place for place in places]))


def _sync_path(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:  # of disks that cannot be told to, for folders
            raise
    finally:
        os.close(descriptor)


def create_bytes(store: Store, key: str, content: bytes) -> bool:
    """Write the object `key` unless there is one, whoever else tries the same at this moment.

    Parameters
    ----------
    store
        A folder or an object store.
    key
        Name of the object.
    content
        What no other writer would write, because on an object store an answer may get lost: who
        finds his own content there made it.

    Returns
    -------
    bool
        Whether this call made it. A reader sees nothing or the whole object.
    """
    if isinstance(store, UrlStore):
        return store.create(key, content)
    if isinstance(store, LocalStore):
        return _create_file(store.root / key, content)
    msg = f"{store} cannot make an object only where there is none; use a folder or a bucket"
    raise StoreError(msg)


def _create_file(path: Path, content: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(content)
        os.link(partial, path)  # unlike a renaming, fails if the name is taken
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create_without_links(path, content)
    finally:
        partial.unlink(missing_ok=True)
    return True


def _create_without_links(path: Path, content: bytes) -> bool:
    """Make a file on a disk that has no hard links; a reader may see it before its content."""
    try:
        with path.open("xb") as file:
            try:
                file.write(content)
                file.flush()
            except BaseException:
                path.unlink()  # an empty one would say that it is taken
                raise
    except FileExistsError:
        return False
    return True


def read_json(store: Store, key: str) -> dict[str, Any] | None:
    """Return the JSON object `key`, or ``None`` if there is none; StoreError if it is damaged."""
    content = read_bytes(store, key)
    try:
        return None if content is None else json.loads(content)
    except ValueError as cause:
        msg = f"{store}: {key} is damaged ({cause}); copy the store again, or write to a new path"
        raise StoreError(msg) from cause


def write_json(store: Store, key: str, value: Mapping[str, Any]) -> None:
    """Write `value` as the JSON object `key`."""
    write_bytes(store, key, json.dumps(value, indent=2, allow_nan=False).encode())


def list_keys(store: Store) -> list[str]:
    """Return the keys of all objects in the store, in no particular order."""
    if isinstance(store, UrlStore):
        return list(store.sizes())

    async def collect() -> list[str]:
        return [key async for key in store.list_prefix("")]

    return sync(collect())


def list_top(store: Store) -> list[str]:
    """Return the names directly below the root of the store."""

    async def collect() -> list[str]:
        return [name async for name in store.list_dir("")]

    return sorted(sync(collect()))


def delete_keys(store: Store, keys: Iterable[str]) -> None:
    """Delete objects; one that is gone already is no error."""
    for key in keys:
        sync(store.delete(key))


def list_sizes(store: Store) -> dict[str, int]:
    """Return the bytes of every object in the store by key."""
    if isinstance(store, UrlStore):
        return store.sizes()

    async def measure(key: str) -> tuple[str, int] | None:
        try:
            return key, await store.getsize(key)
        except FileNotFoundError:
            return None  # a writer at work has just given it its final name

    async def measure_all(keys: list[str]) -> list[tuple[str, int] | None]:
        return await asyncio.gather(*(measure(key) for key in keys))

    return dict(found for found in sync(measure_all(list_keys(store))) if found is not None)
