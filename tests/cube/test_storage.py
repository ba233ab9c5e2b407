"""Where stores may live, and objects that only one of many writers makes."""

import errno
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from zarr.storage import MemoryStore

from smgrid.cube.objectstore import open_url
from smgrid.cube.storage import (
    create_bytes,
    delete_keys,
    list_keys,
    list_sizes,
    list_top,
    normalise_path,
    open_store,
    read_bytes,
    read_json,
    write_bytes,
    write_json,
)
from smgrid.errors import StoreError


def test_objects_of_a_folder(tmp_path):
    store = open_store(tmp_path / "new", "write")
    write_bytes(store, "a/b", b"12345")
    write_json(store, "c.json", {"d": 1})
    assert read_bytes(store, "a/b") == b"12345"
    assert read_bytes(store, "a/c") is None
    assert read_json(store, "c.json") == {"d": 1}
    assert sorted(list_keys(store)) == ["a/b", "c.json"]
    assert list_sizes(store)["a/b"] == 5
    assert list_top(store) == ["a", "c.json"]
    delete_keys(store, ["a/b", "never"])
    assert list_keys(store) == ["c.json"]


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert normalise_path("a/../b") == normalise_path(Path("~/b")) == str(tmp_path / "b")


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("s3://bucket/a/b.zarr/", "s3://bucket/a/b.zarr"),
        ("S3://bucket", "s3://bucket"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("az://container/a", "az://container/a"),
        ("abfs://box@account.dfs.core.windows.net/a", "abfs://box@account.dfs.core.windows.net/a"),
        ("https://example.org/a.zarr", "https://example.org/a.zarr"),
    ],
)
def test_urls_stay_urls(url, same):
    assert normalise_path(url) == same


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKID:hunter2@bucket/a",
        "s3://hunter2@bucket/a",
        "https://me:hunter2@example.org/a.zarr",
        "https://example.org/a.zarr?X-Amz-Signature=hunter2",
        "abfs://box:hunter2@account.dfs.core.windows.net/a",
        "az://box/a?sig=hunter2#hunter2",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url):
    with pytest.raises(StoreError, match="must not carry a name, a password or param") as caught:
        normalise_path(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ftp://host/a", "cannot be at ftp://, expected a folder or a URL that begins with s3://"),
        ("memory://a", "cannot be at memory://"),
        ("s3:///a", "names no bucket or server, expected s3://BUCKET/PATH"),
        (Path("s3://bucket/a"), r"was a URL before it became a pathlib\.Path"),
    ],
)
def test_places_that_no_store_can_have(path, message):
    with pytest.raises(StoreError, match=message):
        open_store(path)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_web_server_is_not_written_to(scheme):
    with pytest.raises(StoreError, match=r"can only be read, .* give a folder or a bucket"):
        open_store(f"{scheme}://127.0.0.1:1/a.zarr", "write")


def test_stores_of_other_clouds_are_made_from_the_environment(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "someone")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "aHVudGVyMg==")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    for url in ("az://box/a", "abfss://box@someone.dfs.core.windows.net/a", "gs://bucket/a"):
        store = open_store(url, "write")
        shown = f"{store!r} {store}".encode() + pickle.dumps(store)
        assert url.encode() in shown
        assert b"aHVudGVyMg" not in shown


def test_a_connection_is_shared_until_the_environment_changes(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "one")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "one")
    first, again = open_url("s3://bucket/a"), open_url("s3://bucket/a", "write")
    assert first.store is again.store
    assert (first.read_only, again.read_only) == (True, False)
    assert first.with_read_only(False) == again
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "two")
    assert open_url("s3://bucket/a").store is not first.store
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="no complete credentials were found; set AWS_ACCESS_KEY"):
        open_url("s3://bucket/a")


def test_one_of_many_makes_an_object(tmp_path):
    contents = [f"{n}".encode() * 50_000 for n in range(8)]
    store = open_store(tmp_path / "a", "write")
    for turn in range(20):
        key = f"_smgrid/{turn}"
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda c, key=key: create_bytes(store, key, c), contents))
        assert made.count(True) == 1
        assert read_bytes(store, key) == contents[made.index(True)]
    assert len(list_keys(store)) == 20  # nothing is left of the others


CREATOR = """
import sys
from smgrid.cube.storage import create_bytes, open_store
store = open_store(sys.argv[1], "write")
while True:
    for key in range(10**9):
        create_bytes(store, f"{key % 50}", sys.argv[2].encode() * 200_000)
"""


def test_nobody_sees_a_part_of_an_object(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", CREATOR, str(tmp_path), "x"])
    end, seen = time.monotonic() + 20, 0
    while seen < 50 and time.monotonic() < end:
        seen = 0
        for file in tmp_path.iterdir():
            if file.suffix != ".partial":
                seen += 1
                assert file.stat().st_size == 200_000
    child.kill()
    child.wait()
    assert seen == 50


def test_a_disk_without_hard_links_still_has_one_winner(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    store = open_store(tmp_path, "write")
    assert create_bytes(store, "a", b"mine")
    assert not create_bytes(store, "a", b"yours")
    assert read_bytes(store, "a") == b"mine"
    assert list_keys(store) == ["a"]


def test_a_full_disk_is_no_lost_race(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OSError, match="No space"):
        create_bytes(open_store(tmp_path, "write"), "a", b"mine")
    assert list_keys(open_store(tmp_path)) == []


def test_other_stores_cannot_promise_it():
    with pytest.raises(StoreError, match="cannot make an object only where there is none"):
        create_bytes(MemoryStore(), "a", b"")
