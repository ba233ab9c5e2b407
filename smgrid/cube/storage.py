"""The files of a store: open it by its path, read, write and list whole objects.

Everything that depends on where a store lives is here, so that another kind of storage is one more
case of `open_store`.
"""

import asyncio
import errno
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

from zarr.abc.store import Store
from zarr.buffer import cpu, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from smgrid.errors import StoreError

StorePath = str | PathLike[str]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def normalise_path(path: StorePath) -> str:
    """Return `path` in the form in which every process of a cluster finds the same store."""
    text = fspath(path)
    if "://" in text:
        scheme = text.partition("://")[0]
        msg = (
            f"{text}: a store can only be a local folder so far, not {scheme}://; write it to a "
            "folder and copy the finished folder"
        )
        raise StoreError(msg)
    return str(Path(text).expanduser().resolve())


def open_store(path: StorePath, mode: Literal["read", "write"] = "read") -> Store:
    """Return the zarr store at `path`.

    Raises
    ------
    StoreError
        If there is none to read, if `path` is a file, or if it is a URL.
    """
    folder = Path(normalise_path(path))
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
    found = sync(store.get(key, prototype=default_buffer_prototype()))
    return None if found is None else found.to_bytes()


def write_bytes(store: Store, key: str, content: bytes) -> None:
    """Write the object `key` as a whole: a reader sees the old one or the new one."""
    sync(store.set(key, cpu.Buffer.from_bytes(content)))


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

    async def measure(key: str) -> tuple[str, int] | None:
        try:
            return key, await store.getsize(key)
        except FileNotFoundError:
            return None  # a writer at work has just given it its final name

    async def measure_all(keys: list[str]) -> list[tuple[str, int] | None]:
        return await asyncio.gather(*(measure(key) for key in keys))

    return dict(found for found in sync(measure_all(list_keys(store))) if found is not None)
