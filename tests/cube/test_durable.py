"""What a store says is there would be there after a power cut."""

import errno
import os
import shutil

import pytest
from zarr.storage import LocalStore, MemoryStore

from smgrid.cube import filling
from smgrid.cube.build import load_cube
from smgrid.cube.storage import make_durable, open_store, write_bytes
from smgrid.cube.store import write_cube
from smgrid.cube.update import update_cube
from smgrid.cube.verify import verify
from smgrid.errors import StoreError
from tests.cube.archive import write_archive

pytestmark = pytest.mark.skipif(os.name == "nt", reason="folders cannot be synced")
PART = "_smgrid/sha256sums-"


class Events:
    """What is written and what is synced, in order; files are told apart by their inode."""

    def __init__(self, monkeypatch):
        self.events = []
        original_set, original_sync = LocalStore.set, os.fsync

        async def set_and_tell(store, key, value):
            if "writer-" in key:
                return
            self.events.append(("begin", key, None))
            await original_set(store, key, value)
            path = store.root / key
            self.events.append(("written", key, self.version(path.stat())))

        def sync_and_tell(descriptor):
            original_sync(descriptor)
            self.events.append(("synced", None, self.version(os.fstat(descriptor))))

        monkeypatch.setattr(LocalStore, "set", set_and_tell)
        monkeypatch.setattr(os, "fsync", sync_and_tell)

    @staticmethod
    def version(stat):
        """Inodes are used again; a folder's time changes with what is in it."""
        is_file = stat.st_nlink == 1
        return stat.st_ino, stat.st_mtime_ns if is_file else 0

    def begins(self, prefix):
        """Return when objects began to be written, by their key."""
        return [
            (at, key)
            for at, (what, key, _) in enumerate(self.events)
            if what == "begin" and key.startswith(prefix)
        ]

    def is_safe(self, store, key, before):
        """Whether the version of `key` that was there at this moment had been synced by then."""
        events = self.events[:before]
        written = [at for at, (what, k, _) in enumerate(events) if (what, k) == ("written", key)]
        if not written:
            return False
        synced = {version for what, _, version in events[written[-1] :] if what == "synced"}
        folders = [parent for parent in (store / key).parents if parent.is_relative_to(store)]
        wanted = {events[written[-1]][2], *(self.version(p.stat()) for p in folders)}
        return wanted <= synced


def assert_safe_before(events, store, keys, moment):
    lacking = [key for key in keys if not events.is_safe(store, key, moment)]
    assert lacking == []


def keys_in(path):
    return [line[66:] for line in path.read_text().splitlines()]


@pytest.fixture
def events(monkeypatch):
    return Events(monkeypatch)


def test_a_sum_is_recorded_when_its_shard_is_durable(soil_map, tmp_path, events, monkeypatch):
    monkeypatch.setattr(filling, "_FLUSH_UNITS", 15)
    store, parts = tmp_path / "a.zarr", {}

    def look(_):
        parts.update({path.name: keys_in(path) for path in store.glob(f"{PART}*")})

    write_cube(soil_map, store, shard=16, progress=look)
    begun = events.begins(PART)
    data = [(at, key) for at, key in begun if any("/c/1/" in k for k in parts.get(key[8:], []))]
    assert len(begun) >= 4
    assert data
    for at, key in begun[1:]:  # the first one has the sums of metadata
        recorded = parts.get(key.removeprefix("_smgrid/"), [])
        assert_safe_before(events, store, recorded, at)
    following = dict(zip(begun, [*begun[1:], (len(events.events), "")], strict=True))
    for (_, key), (after, _) in following.items():
        assert_safe_before(events, store, [key], after)


def test_a_store_is_complete_when_all_of_it_is_durable(cube, tmp_path, events):
    store = tmp_path / "a.zarr"
    write_cube(cube, store, shard=16)
    recorded = keys_in(store / "_smgrid/sha256sums")
    (created, _), (completed, _) = events.begins("zarr.json")
    metadata = [key for key in recorded if not key.startswith(("base/v", "base/sand/c"))]
    metadata = [key for key in metadata if key.split("/")[1] not in {"ndvi", "t2m", "tp"}]
    assert len(metadata) > 20
    assert_safe_before(events, store, ["_smgrid/template.json", *metadata], created)
    own = ["_smgrid/sha256sums", "_smgrid/manifest.json"]
    assert_safe_before(events, store, [*recorded, *own], completed)
    assert_safe_before(events, store, ["zarr.json"], len(events.events))


def test_the_journal_of_an_update_is_durable_before_anything_that_it_tells_of(
    grid, tmp_path, events
):
    catalog = write_archive(tmp_path, ["2024-01-03T11:02:05", "2024-02-03T11:02:05"])
    store = tmp_path / "a.zarr"
    write_cube(load_cube(grid, ("2023-01-01", "2024-01-09"), catalog=catalog, chunks=16), store)
    events.events.clear()
    update_cube(store, until="2024-02-09")
    (begun, _), (done, _) = events.begins("_smgrid/update.json")
    after = next(at for at, key in events.begins("") if at > begun and "update" not in key)
    assert_safe_before(events, store, ["_smgrid/template.json", "x16/date/c/0"], done)
    assert_safe_before(events, store, ["_smgrid/update.json"], after)


def test_shards_that_the_disk_refuses_get_no_sum(soil_map, tmp_path, monkeypatch, files_of):
    """After such a failure a second call would not fail again, though the data are lost."""
    write_cube(soil_map, tmp_path / "whole.zarr", shard=16)
    monkeypatch.setattr(filling, "_FLUSH_UNITS", 10)
    store, calls = tmp_path / "a.zarr", []

    def refuse_once(opened, keys):
        calls.append([*keys])
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(filling, "make_durable", refuse_once)
    with pytest.raises(StoreError, match=r"a\.zarr.*Input/output error"):
        write_cube(soil_map, store, shard=16)
    lost = set(calls[0])
    assert lost
    for part in store.glob(f"{PART}*"):
        assert not lost & set(keys_in(part))
    write_cube(soil_map, store, shard=16)
    assert files_of(store) == files_of(tmp_path / "whole.zarr")


def test_a_shard_that_is_written_anew_has_no_sum_until_it_is_durable(
    soil_map, tmp_path, monkeypatch, files_of
):
    """A power cut tears it: that its sum was recorded once must not let it count as done."""
    store, torn = tmp_path / "a.zarr", tmp_path / "torn.zarr"
    write_cube(soil_map, store, shard=16)
    whole = files_of(store)
    (store / "flags/c/2/1/1").unlink()

    def cut(event):
        if event.done == event.total:
            shutil.copytree(store, torn)

    write_cube(soil_map, store, shard=16, progress=cut)
    assert (torn / "flags/c/2/1/1").exists()
    (torn / "flags/c/2/1/1").write_bytes(b"torn" * 100)
    for lease in torn.glob("_smgrid/writer-*"):
        lease.unlink()
    assert write_cube(soil_map, torn, shard=16).written == 1
    assert files_of(torn) == whole
    assert verify(torn).ok


def test_what_is_gone_and_folders_that_cannot_be_synced_are_passed_over(tmp_path, monkeypatch):
    store = open_store(tmp_path, "write")
    write_bytes(store, "a/b/c", b"1")
    synced = []

    def refuse(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    make_durable(store, ["a/b/c", "a/b/gone", "x/y"])
    paths = [tmp_path / "a/b/c", tmp_path / "a/b", tmp_path / "a", tmp_path]
    assert sorted(synced) == sorted(path.stat().st_ino for path in paths)  # each once


def test_a_failing_disk_is_told(tmp_path, monkeypatch):
    store = open_store(tmp_path, "write")
    write_bytes(store, "a", b"1")

    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        make_durable(store, ["a"])
    make_durable(MemoryStore(), ["a"])  # nothing to do where objects are safe or never are
