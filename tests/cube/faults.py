"""Blocks that fail when they are computed, once, a few times or always, in any process."""

import errno
from pathlib import Path


def with_fault(ds, name, where, fault):
    """Let one block of a variable of `ds` do `fault(block)` when it is computed."""

    def run(block, block_info=None):
        inside = block_info and block_info[0]["chunk-location"] == where
        return fault(block) if inside else block

    blocks = ds[name].data
    blocks = blocks.map_blocks(run, dtype=blocks.dtype, meta=blocks._meta)
    return ds.assign({name: ds[name].copy(data=blocks)})


def raising(error):
    """Always fail."""

    def fault(block):
        raise error

    return fault


class Flaky:
    """Fail the first few times; the file that counts is seen by every process."""

    def __init__(self, path: Path, error: Exception, *, times: int) -> None:
        self.path = path
        self.error = error
        self.times = times

    @property
    def calls(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def __call__(self, block):
        with self.path.open("ab") as file:
            file.write(b".")
        if self.calls <= self.times:
            raise self.error
        return block


def interrupt(monkeypatch, *, after):
    """Let the store's files fail like a process that dies after so many writes."""
    from zarr.storage import LocalStore

    original, count = LocalStore.set, [0]

    async def set_or_die(self, key, value):
        if "writer-" not in key:
            count[0] += 1
            if count[0] > after:
                raise OSError(errno.EIO, "gone", key)
        return await original(self, key, value)

    monkeypatch.setattr(LocalStore, "set", set_or_die)
