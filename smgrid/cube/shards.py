"""One shard as bytes: encoded before it is written, decoded and hashed to see what is there.

A shard is encoded in memory and put into the store as a whole, so that its hash is known without
reading it again and nothing that stood there before is ever mixed into it.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import dask
import numpy.typing as npt
import zarr
from zarr.buffer import cpu
from zarr.core.array import AsyncArray
from zarr.storage import MemoryStore, StorePath

from smgrid.cube.dispatch import connected, current_client
from smgrid.cube.encoding import encode
from smgrid.cube.storage import open_store, read_bytes
from smgrid.cube.tiling import Index
from smgrid.errors import SchemaError, StoreError

_BATCH = 16  # shards that one task reads, one after the other


def shard_key(array_path: str, index: Index) -> str:
    """Return the key of a shard."""
    return f"{array_path}/c/{'/'.join(map(str, index))}"


@lru_cache(maxsize=256)
def open_array(path: str, digest: str, array: str) -> zarr.Array[Any]:
    """Open an array of the store at `path` once per process.

    The digest of the template is there because a store made anew at the same path is another one.
    """
    try:
        return zarr.open_array(open_store(path), path=array, mode="r")
    except OSError:
        raise
    except (ValueError, TypeError, KeyError) as cause:
        msg = (
            f"{path}: {array}/zarr.json is damaged ({cause}); copy the store again, or write to a "
            "new path"
        )
        raise StoreError(msg) from cause


def encode_shard(array: zarr.Array[Any], index: Index, block: npt.NDArray[Any]) -> bytes:
    """Return the bytes of the shard that holds `block`; one of fill values only has some, too.

    Raises
    ------
    SchemaError
        If the block has another shape than the shard, or values that cannot be stored.
    """
    region = _region(array, index)
    expected = tuple(part.stop - part.start for part in region)
    if block.shape != expected:
        msg = f"{array.basename}: a block has the shape {block.shape}, expected {expected}"
        raise SchemaError(msg)
    content: dict[str, Any] = {}
    scratch = _in_memory(array, content)
    scratch[region] = encode(block, array.basename, array.dtype)
    encoded: bytes = content[shard_key("", index).lstrip("/")].to_bytes()
    return encoded


def decode_shard(array: zarr.Array[Any], index: Index, content: bytes) -> npt.NDArray[Any]:
    """Return the values of a shard as they are stored; any exception means that it is damaged."""
    key = shard_key("", index).lstrip("/")
    scratch = _in_memory(array, {key: cpu.Buffer.from_bytes(content)})
    values: Any = scratch[_region(array, index)]
    return values  # type: ignore[no-any-return]


def _in_memory(array: zarr.Array[Any], content: dict[str, Any]) -> zarr.Array[Any]:
    place = StorePath(MemoryStore(content), "")
    scratch: Any = AsyncArray(metadata=array.metadata, store_path=place)
    return zarr.Array(scratch).with_config({"write_empty_chunks": True})


def _region(array: zarr.Array[Any], index: Index) -> tuple[slice, ...]:
    shards = array.shards or array.chunks
    return tuple(
        slice(i * edge, min((i + 1) * edge, size))
        for i, edge, size in zip(index, shards, array.shape, strict=True)
    )


def digest(content: bytes) -> str:
    """Return the SHA-256 of an object in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class ShardState:
    """What was found of one shard."""

    state: Literal["readable", "unreadable", "missing"]
    sha256: str = ""
    reason: str = ""
    """Why it cannot be read."""


def read_states(
    path: str, template_digest: str, shards: Iterable[tuple[str, Index]]
) -> Mapping[str, ShardState]:
    """Read, hash and decode shards with the scheduler that Dask is set to.

    Parameters
    ----------
    path, template_digest
        The store and its template's digest.
    shards
        Array paths and shard indices.

    Returns
    -------
    Mapping[str, ShardState]
        By the keys of the shards.

    Raises
    ------
    LostSchedulerError
        The cluster's scheduler has gone.
    """
    wanted = list(shards)
    batches = [wanted[at : at + _BATCH] for at in range(0, len(wanted), _BATCH)]
    read = dask.delayed(_read_batch, pure=False, traverse=False)
    found: dict[str, ShardState] = {}
    with connected(current_client()):
        parts = dask.compute(*(read(path, template_digest, batch) for batch in batches))
    for part in parts:
        found |= part
    return found


def _read_batch(
    path: str, template_digest: str, shards: list[tuple[str, Index]]
) -> dict[str, ShardState]:
    store = open_store(path)
    states = {}
    for array_path, index in shards:
        key = shard_key(array_path, index)
        content = read_bytes(store, key)
        if content is None:
            states[key] = ShardState("missing")
            continue
        if not content:  # what a power cut leaves; zarr reads it as missing values
            states[key] = ShardState("unreadable", digest(content), "it is empty")
            continue
        try:
            decode_shard(open_array(path, template_digest, array_path), index, content)
        except Exception as error:  # noqa: BLE001 (codecs raise what they like)
            reason = f"{type(error).__name__}: {error}"
            states[key] = ShardState("unreadable", digest(content), reason)
        else:
            states[key] = ShardState("readable", digest(content))
    return states
