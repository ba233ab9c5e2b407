"""Stores in a bucket: the same bytes as in a folder, whatever the network and the process do."""

import json
import logging
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import obstore
import pytest
import xarray as xr
import zarr
from obstore.exceptions import BaseError
from obstore.store import S3Store
from zarr.storage import ObjectStore

from smgrid.cube import objectstore
from smgrid.cube.inspect import inspect
from smgrid.cube.storage import (
    create_bytes,
    delete_keys,
    list_keys,
    list_sizes,
    list_top,
    open_store,
    read_bytes,
    write_bytes,
)
from smgrid.cube.store import open_cube, write_cube
from smgrid.errors import IncompleteStoreError, StoreError, TemplateMismatchError
from tests.s3_server import SECRET, S3Server

BUCKET = "cubes"
WARNINGS = ["-W", "error", "-W", "ignore::PendingDeprecationWarning"]


@pytest.fixture(scope="module")
def server():
    running = S3Server()
    running.make_bucket(BUCKET)
    yield running
    running.stop()


@pytest.fixture
def s3(server, monkeypatch):
    """The server with no fault planned, and its keys in the environment."""
    for name, value in server.environment(server.url).items():
        monkeypatch.setenv(name, value)
    server.plan()
    return server


@pytest.fixture
def url(request):
    """A place of its own for every test."""
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').strip(']')}/a.zarr"


@pytest.fixture
def impatient(monkeypatch):
    """Give up after one more attempt."""
    once = {"max_retries": 1, "retry_timeout": timedelta(seconds=5)}
    monkeypatch.setattr(objectstore, "_RETRIES", once)
    objectstore._connect.cache_clear()
    yield
    objectstore._connect.cache_clear()


def files_at(server, url):
    return server.files(BUCKET, url.removeprefix(f"s3://{BUCKET}/"))


def test_a_cube_in_a_bucket_has_the_bytes_of_one_in_a_folder(s3, cube, url, tmp_path, files_of):
    write_cube(cube, tmp_path / "a", shard=16)
    report = write_cube(cube, url, shard=16, manifest={})
    assert (report.path, report.total, report.written) == (url, 34, 34)
    assert files_at(s3, url) == files_of(tmp_path / "a")
    there, here = open_cube(url), open_cube(tmp_path / "a")
    xr.testing.assert_identical(there.load(), here.load())
    about, expected = inspect(url), inspect(tmp_path / "a")
    assert (about.groups, about.nbytes) == (expected.groups, expected.nbytes)


def test_others_read_it_without_smgrid(s3, soil_map, url):
    write_cube(soil_map, url, shard=16)
    outside = S3Store.from_url(url, client_options={"allow_http": True})
    ds = xr.open_zarr(ObjectStore(outside, read_only=True), decode_coords="all")
    np.testing.assert_allclose(ds.soil_moisture, open_cube(url).soil_moisture, atol=1e-6)
    assert ds.odc.geobox == soil_map.odc.geobox
    group = zarr.open_group(ObjectStore(outside, read_only=True), mode="r")
    np.testing.assert_array_equal(group["flags"][:], soil_map.flags)


def test_opening_costs_a_handful_of_requests(s3, cube, soil_map, url):
    write_cube(soil_map, url, shard=16)
    s3.plan()
    opened = open_cube(url)
    # Template, root and coordinates, some of them twice; no listing, no metadata below the root.
    paths = [path.partition("a.zarr/")[2] for _, path, _ in s3.log()]
    assert len(paths) <= 14
    assert not [path for path in paths if path.endswith("zarr.json") and path != "zarr.json"]
    assert not [query for _, _, query in s3.log() if query]
    s3.plan()
    opened.soil_moisture[0, :16, :16].values  # noqa: B018
    assert [path.partition("a.zarr/")[2] for _, path, _ in s3.log()] == ["soil_moisture/c/0/0/0"]


def test_going_on_costs_few_listings(s3, soil_map, url):
    write_cube(soil_map, url, shard=16)
    delete_keys(open_store(url, "write"), ["flags/c/0/0/0"])
    s3.plan()
    assert write_cube(soil_map, url, shard=16).written == 1
    listings = [query for _, _, query in s3.log() if "list-type" in query]
    assert len(listings) <= 5
    assert len([query for query in listings if "delimiter" not in query]) <= 2  # of everything
    assert [path for verb, path, _ in s3.log() if verb == "PUT" and "/c/" in path] == [
        f"/{url.removeprefix('s3://')}/{name}/c/0/0/0"
        for name in ("soil_moisture", "soil_moisture_std", "flags")
    ]


@pytest.mark.parametrize("fault", [503, "reset", "lost", "cut"])
def test_a_failing_network_changes_nothing(s3, soil_map, url, tmp_path, files_of, fault):
    write_cube(soil_map, tmp_path / "a", shard=16)
    pattern = [fault, None, None, fault, fault] + [None] * 20
    s3.plan(*(pattern * 3))
    write_cube(soil_map, url, shard=16)
    s3.plan(*pattern)
    opened = open_cube(url).load()
    s3.plan()
    assert files_at(s3, url) == files_of(tmp_path / "a")
    xr.testing.assert_identical(opened, open_cube(tmp_path / "a").load())


@pytest.mark.parametrize("status", [408, 429, 500, 502, 504])
def test_a_status_that_will_pass_is_waited_for(s3, url, status):
    store = open_store(url, "write")
    s3.plan(status)
    write_bytes(store, "a", b"1")
    s3.plan(status)
    assert read_bytes(store, "a") == b"1"


def test_a_server_that_stalls_is_asked_again(s3, url, monkeypatch):
    monkeypatch.setitem(objectstore._CLIENT, "timeout", "300ms")
    objectstore._connect.cache_clear()
    store = open_store(url, "write")
    s3.plan({"stall": 1})
    write_bytes(store, "a", b"1")
    s3.plan({"stall": 1})
    assert read_bytes(store, "a") == b"1"
    s3.plan({"stall": 1})  # made in the end, but nobody knows yet
    with pytest.raises(StoreError, match="cannot be reached"):
        create_bytes(store, "b", b"mine")
    objectstore._connect.cache_clear()


def test_a_broken_server_stops_the_write_and_the_next_one_goes_on(
    s3, soil_map, url, tmp_path, files_of, impatient
):
    write_cube(soil_map, tmp_path / "a", shard=16)
    s3.plan(*[None] * 60, *[503] * 200)
    with pytest.raises(StoreError, match=r"overloaded or failing .*\(SlowDown\).*try again later"):
        write_cube(soil_map, url, shard=16)
    s3.plan()
    with pytest.raises(IncompleteStoreError, match="of 24 units are missing"):
        open_cube(url)
    assert 0 < write_cube(soil_map, url, shard=16).written < 24
    assert files_at(s3, url) == files_of(tmp_path / "a")


def test_other_data_are_refused_in_a_bucket_too(s3, soil_map, url):
    write_cube(soil_map, url, shard=16)
    with pytest.raises(TemplateMismatchError, match="was made for something else"):
        write_cube(soil_map.isel(x=slice(0, 20)), url, shard=16)
    write_bytes(open_store(f"{url}-other", "write"), "notes.txt", b"mine")
    with pytest.raises(StoreError, match=r"is not empty and not a store of smgrid .*'notes\.txt'"):
        write_cube(soil_map, f"{url}-other")


@pytest.mark.parametrize("act", [open_cube, inspect, lambda url: write_cube(xr.Dataset(), url)])
def test_a_bucket_that_is_missing_is_named(s3, act):
    with pytest.raises(StoreError, match=r"^s3://nowhere/a: there is no such bucket; create it"):
        act("s3://nowhere/a")


def test_an_empty_place_is_no_store(s3, url):
    with pytest.raises(StoreError, match="is not a store of smgrid"):
        open_cube(url)


def test_a_wrong_key_is_told_without_showing_any(s3, soil_map, url):
    write_cube(soil_map, url, shard=16)
    opened = open_cube(url)
    s3.plan(key="SOMEBODY")
    refused = r"a\.zarr.*: access is refused \(InvalidAccessKeyId\); check AWS_ACCESS_KEY_ID and"
    store = open_store(url, "write")
    acts = [
        lambda: open_cube(url),
        lambda: write_cube(soil_map, url),
        lambda: opened.flags.load(),  # long after opening
        lambda: list_sizes(store),
        lambda: list_top(store),
        lambda: write_bytes(store, "a", b""),
        lambda: create_bytes(store, "a", b""),
        lambda: delete_keys(store, ["a"]),
    ]
    for act in acts:
        with pytest.raises(StoreError, match=refused) as caught:
            act()
        assert "AKID" not in str(caught.value)
        assert not isinstance(caught.value.__cause__, BaseError)  # it shows whole requests
    s3.plan()


@pytest.mark.parametrize(
    ("status", "message"),
    [(301, "is in another region; set AWS_REGION"), (501, "does not do what a store needs")],
)
def test_other_refusals_say_what_to_do(s3, url, impatient, status, message):
    store = open_store(url, "write")
    s3.plan(status, status)
    with pytest.raises(StoreError, match=message):
        write_bytes(store, "a", b"")


def test_a_server_that_is_not_there_is_named(s3, url, impatient, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for act in (open_cube, lambda url: list_keys(open_store(url))):
        with pytest.raises(StoreError, match=r"cannot be reached; check .*AWS_ENDPOINT_URL"):
            act(url)


def test_no_secret_leaves_the_process(s3, soil_map, url, caplog, impatient):
    caplog.set_level(logging.DEBUG)
    write_cube(soil_map, url, shard=16)
    store, opened = open_store(url), open_cube(url)
    s3.plan(403, 403)
    with pytest.raises(StoreError) as caught:
        opened.flags.load(scheduler="synchronous")
    s3.plan()
    seen = [repr(store), str(store), repr(store.store), str(caught.value), caplog.text]
    sent = [pickle.dumps(store), pickle.dumps(caught.value), pickle.dumps(opened.flags.data.dask)]
    assert not [text for text in seen if SECRET in text]
    assert not [data for data in sent if SECRET.encode() in data]
    assert pickle.loads(sent[0]).store is store.store  # one connection per process
    assert not [path for path, data in files_at(s3, url).items() if SECRET.encode() in data]


def test_many_objects_are_listed_in_pages(s3, url):
    store = open_store(url, "write")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: obstore.put(store.store, f"a/{n}", b"12"), range(1005)))
    s3.plan()
    sizes = list_sizes(store)
    assert sizes == {f"a/{n}": 2 for n in range(1005)}
    assert len(s3.log()) == 2
    assert sorted(list_keys(store)) == sorted(sizes)
    assert list_top(store) == ["a"]


def test_one_of_many_makes_an_object(s3, url):
    store = open_store(url, "write")
    contents = [f"{n}".encode() for n in range(6)]
    for turn in range(5):
        with ThreadPoolExecutor(6) as pool:
            made = list(pool.map(lambda c, key=f"{turn}": create_bytes(store, key, c), contents))
        assert made.count(True) == 1
        assert read_bytes(store, f"{turn}") == contents[made.index(True)]


def test_who_made_an_object_knows_it_though_the_answer_was_lost(s3, url):
    store = open_store(url, "write")
    s3.plan("lost")
    assert create_bytes(store, "lease", b"mine")
    assert len([verb for verb, _, _ in s3.log() if verb == "PUT"]) == 2
    s3.plan("lost")
    assert not create_bytes(store, "lease", b"yours")
    assert read_bytes(store, "lease") == b"mine"


def test_an_object_that_goes_away_meanwhile_is_no_one_elses(s3, url):
    store = open_store(url, "write")
    s3.plan(409)  # S3's answer to a deletion at the same moment
    with pytest.raises(StoreError, match="409"):
        create_bytes(store, "lease", b"mine")
    assert create_bytes(store, "lease", b"mine")


def test_a_public_store_is_read_without_keys(s3, soil_map, monkeypatch):
    s3.make_bucket("open", acl="public-read")
    write_cube(soil_map, "s3://open/a.zarr", shard=16)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    web = f"{s3.url}/open/a.zarr"
    there = open_cube(web)
    with pytest.raises(StoreError, match="a web server does not list what a store holds; use"):
        inspect(web)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    xr.testing.assert_identical(there.load(), open_cube("s3://open/a.zarr").load())
    with pytest.raises(StoreError, match="is not a store of smgrid"):
        open_cube(f"{s3.url}/open/b.zarr")


@pytest.mark.slow
def test_a_cluster_writes_to_a_bucket(s3, cube, url, tmp_path, files_of):
    distributed = pytest.importorskip("distributed")
    write_cube(cube, tmp_path / "a", shard=16)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        write_cube(cube, url, shard=16)
        opened = open_cube(url)["base"].load()
    assert files_at(s3, url) == files_of(tmp_path / "a")
    xr.testing.assert_identical(opened, open_cube(tmp_path / "a")["base"].load())


@pytest.mark.slow
def test_a_killed_writer_is_resumed_to_the_same_bytes(s3):
    script = str(Path(__file__).with_name("kill_s3_writer.py"))
    done = subprocess.run(
        [sys.executable, *WARNINGS, script, BUCKET, "20"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["code"] == 0, done.stderr
    whole = s3.files(BUCKET, "whole")
    assert len([key for key in whole if key.startswith("a/c/")]) == 36
    partial = kills = 0
    for name, run in enumerate(report["runs"]):
        assert run["code"] == 0, done.stderr
        assert s3.files(BUCKET, str(name)) == whole
        shards = [len([key for key in keys if "/a/c/" in key]) for keys in run["killed"]]
        assert shards == sorted(shards)  # done units are kept
        partial += sum(0 < count < 36 for count in shards)
        kills += len(shards)
    assert kills >= 20
    assert partial >= 5
