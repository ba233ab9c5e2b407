"""SHA-256 sums of what a store holds, as the tool ``sha256sum`` writes and checks them.

While units are written, their sums go into numbered parts ``_smgrid/sha256sums-000001``; when the
store is complete, into ``_smgrid/sha256sums``, which covers every shard, every coordinate, and the
metadata of groups and arrays. The manifest covers the sums, the template and the root's metadata,
which change with the status. In a local store ``sha256sum -c _smgrid/sha256sums`` checks it, too.

A shard with a recorded sum is taken for done without being read. Its sum is therefore recorded
when it will survive a power cut, not before, and forgotten before it is written anew.
"""

import re
from collections.abc import Iterable, Mapping

from zarr.abc.store import Store

from smgrid.cube.shards import digest
from smgrid.cube.storage import delete_keys, make_durable, read_bytes, write_bytes

SUMS_KEY = "_smgrid/sha256sums"

_PART = re.compile(rf"{SUMS_KEY}-(\d+)")
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")

Sums = Mapping[str, str]
"""SHA-256 in hexadecimal digits by key."""


def read_sums(store: Store, keys: Iterable[str]) -> dict[str, str]:
    """Return the sums that are known, given the `keys` of the store; later parts replace earlier.

    A line that is damaged counts as missing.
    """
    sums: dict[str, str] = {}
    for key in (SUMS_KEY, *part_keys(keys)):
        text = (read_bytes(store, key) or b"").decode(errors="replace")
        matches = (_LINE.fullmatch(line) for line in text.splitlines())
        sums |= {match[2]: match[1] for match in matches if match}
    return sums


def part_keys(keys: Iterable[str]) -> list[str]:
    """Return the keys of parts among `keys`, in the order in which they were written."""
    return sorted(key for key in keys if _PART.fullmatch(key))


def next_part(keys: Iterable[str]) -> int:
    """Return the number of the next part."""
    last = part_keys(keys)[-1:]
    return 1 + (int(last[0].rpartition("-")[2]) if last else 0)


def write_part(store: Store, number: int, sums: Sums) -> str:
    """Write a numbered part and return its key."""
    key = f"{SUMS_KEY}-{number:06d}"
    write_bytes(store, key, _format(sums))
    make_durable(store, [key])
    return key


def write_sums(store: Store, sums: Sums) -> str:
    """Write the sums of a finished store unless they are there; return the sum of the sums."""
    content = _format(sums)
    if read_bytes(store, SUMS_KEY) != content:
        write_bytes(store, SUMS_KEY, content)
        make_durable(store, [SUMS_KEY])
    return digest(content)


def replace_sums(store: Store, sums: Sums, keys: Iterable[str]) -> None:
    """Forget all other sums that are recorded, given the `keys` of the store."""
    write_sums(store, sums)
    delete_keys(store, part_keys(keys))


def _format(sums: Sums) -> bytes:
    return "".join(f"{sums[key]}  {key}\n" for key in sorted(sums)).encode()
