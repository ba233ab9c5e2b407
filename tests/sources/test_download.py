"""Whole files: complete or not at all, whatever the server does, and credentials kept apart."""

import errno
import multiprocessing
import os
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from smgrid.errors import AssetError, SourceError
from smgrid.sources import download, signing
from smgrid.sources.download import cached_path, fetch, forget

CONTENT = bytes(np.random.default_rng(0).integers(0, 256, 300_000, "uint8"))
TOKEN = "eyJ-secret"
# planetary-computer 1.0 still uses a form of pydantic that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Support for class-based:DeprecationWarning")


@pytest.fixture(autouse=True)
def quick(monkeypatch, cache, tmp_path):
    """Keep waits short and a .netrc of the machine out."""
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "0.01,0.01,0.01,0.01")
    monkeypatch.setattr(download, "_TIMEOUTS", (5.0, 0.25))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def url(file_server):
    (file_server.folder / "a.bin").write_bytes(CONTENT)
    return f"{file_server.url}/a.bin"


def get(href, sign="none"):
    return fetch(href, sign=sign, origin="test.yml, line 7")


def nothing_left(cache):
    """Return the names of the files in the cache, without locks and notes."""
    found = [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return [path.name for path in found if not path.name.endswith(".checked.json")]


def test_local_files_are_not_copied(tmp_path, cache):
    assert get(str(tmp_path / "x.h5")) == tmp_path / "x.h5"
    assert not cache.exists()


def test_a_file_is_fetched_once(file_server, url, cache):
    path = get(url)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache / "files")
    assert path.name == "a.bin"
    assert get(url) == path
    assert len(file_server.log()) == 1


@pytest.mark.parametrize(
    "query", ["?sig=abc&se=2026-01-01&sp=r&sv=2024", "?X-Amz-Signature=1&X-Amz-Date=2", "?token=x"]
)
def test_a_signature_does_not_make_another_file(query):
    href = "https://host.org/data/a.h5"
    assert cached_path(href + query) == cached_path(href)
    assert cached_path("https://me:pw@host.org/data/a.h5") == cached_path(href)


@pytest.mark.parametrize(
    "other",
    [
        "https://host.org/data/b.h5",
        "https://host.org/more/a.h5",
        "https://other.org/data/a.h5",
        "https://host.org/data/a.h5?day=2",
    ],
)
def test_other_urls_are_other_files(other):
    assert cached_path(other) != cached_path("https://host.org/data/a.h5")


@pytest.mark.parametrize(
    "faults",
    [
        ["503"],
        ["500", "502", "504", "429"],
        ["429:0"],
        ["cut"],
        ["short"],
        ["stall"],
        ["cut", "short", "stall", "503"],
        ["short", "another_piece"],
        ["short", "half_a_piece"],
        ["short", "416"],
    ],
)
def test_with_retries_the_file_is_the_same(file_server, url, faults, cache):
    file_server.plan(*faults)
    assert get(url).read_bytes() == CONTENT
    assert len(file_server.log()) == len(faults) + 1
    assert nothing_left(cache) == ["a.bin"]


def test_what_came_is_not_asked_for_again(file_server, url):
    file_server.plan("short")
    get(url)
    kept = len(CONTENT) // 2 // 65536 * 65536
    assert [asked["range"] for asked in file_server.log()] == [None, f"bytes={kept}-"]


def test_halves_of_two_versions_are_never_joined(file_server, url):
    file_server.plan("changed")
    assert get(url).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("503", "HTTP 503"),
        ("429", "HTTP 429"),
        ("cut", "the connection failed or broke off"),
        ("stall", "timed out"),
        ("another_piece", "another range"),
    ],
)
def test_beyond_the_retries_nothing_is_left_and_a_later_call_completes(
    file_server, url, fault, reason, cache
):
    file_server.plan(*[fault] * 5)
    with pytest.raises(
        AssetError, match=rf"/a\.bin could not be fetched in 5 attempts \({reason}.*line 7"
    ) as raised:
        get(url)
    assert nothing_left(cache) == []
    assert (raised.value.asset, raised.value.attempts) == (url, 5)
    file_server.plan()
    assert get(url).read_bytes() == CONTENT


def test_no_server_at_all(file_server):
    with pytest.raises(SourceError, match=r"could not be fetched in 5 .*connection failed"):
        get("http://127.0.0.1:9/a.bin?sig=hidden")


def test_waits_grow_are_jittered_and_follow_the_server(file_server, url, monkeypatch):
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "1,2,4")
    slept = []
    monkeypatch.setattr(download.time, "sleep", slept.append)
    file_server.plan("503", "503", "429:77")
    get(url)
    assert 0.5 <= slept[0] <= 1.5
    assert 1.0 <= slept[1] <= 3.0
    assert slept[2] == 77
    assert slept[0] != 1.0


def test_a_missing_file_is_asked_for_once(file_server):
    with pytest.raises(SourceError, match=r"/no\.bin cannot be fetched \(HTTP 404\).*test\.yml"):
        get(f"{file_server.url}/no.bin?sig=hidden")
    assert len(file_server.log()) == 1


@pytest.mark.parametrize("fault", ["page", "page_in_disguise"])
def test_a_login_page_is_not_data(file_server, url, fault, cache):
    file_server.plan(fault)
    with pytest.raises(SourceError, match=r"a web page came .* EARTHDATA_TOKEN has expired"):
        get(url, "earthdata")
    assert nothing_left(cache) == []


def test_wrong_bytes_are_no_hdf5(file_server, cache):
    with h5py.File(file_server.folder / "a.h5", "w") as file:
        file["x"] = np.arange(1000)
    file_server.plan("wrong")
    with h5py.File(get(f"{file_server.url}/a.h5")) as file:
        assert file["x"][999] == 999
    file_server.plan(*["wrong"] * 5)
    (file_server.folder / "b.h5").write_bytes(CONTENT)
    with pytest.raises(SourceError, match=r"b\.h5 could not .*what came is not HDF5"):
        get(f"{file_server.url}/b.h5")


def test_a_damaged_copy_can_be_forgotten(url, tmp_path):
    path = get(url)
    path.write_bytes(b"damaged")
    forget(path)
    assert get(url).read_bytes() == CONTENT
    mine = tmp_path / "mine.h5"
    mine.write_bytes(b"x")
    forget(mine)
    assert mine.exists()


def test_threads_share_one_download(file_server, url):
    file_server.plan("503")
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(get, [url] * 4))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert len(file_server.log()) == 2


def test_processes_share_one_download(file_server, url):
    file_server.plan("short")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        paths = pool.map(_get_in_process, [url] * 2, chunksize=1)
    assert {Path(path).read_bytes() for path in paths} == {CONTENT}
    assert len(file_server.log()) == 2


def _get_in_process(url):
    return str(fetch(url, sign="none", origin=""))


def test_what_a_killed_process_left_is_not_trusted(url):
    path = cached_path(url)
    path.parent.mkdir(parents=True)
    path.with_name("a.bin.part").write_bytes(CONTENT[:10][::-1])
    assert get(url).read_bytes() == CONTENT


def test_no_room_is_said_before_anything_is_written(url, monkeypatch, cache):
    full = os.statvfs_result((4096, 4096, 100, 10, 10, 10, 10, 10, 0, 255))
    monkeypatch.setattr(download.shutil.os, "statvfs", lambda path: full)
    with pytest.raises(SourceError, match=r"a\.bin has 0\.3 MB, but .* has 0\.0 MB left; make ro"):
        get(url)
    assert nothing_left(cache) == []


def test_a_full_disk_leaves_nothing(url, monkeypatch, cache):
    def full(self, *args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SourceError, match=r"cannot be kept in .*No space left.*SMGRID_CACHE"):
        get(url)
    assert nothing_left(cache) == []


def test_a_cache_that_cannot_be_written(url, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SMGRID_CACHE", str(tmp_path / "file"))
    with pytest.raises(SourceError, match=r"cannot be kept in .*set SMGRID_CACHE"):
        get(url)


def test_only_http_is_fetched():
    with pytest.raises(SourceError, match=r"s3://bucket/a\.h5 cannot be fetched; test\.yml"):
        get("s3://bucket/a.h5?sig=hidden")


@pytest.fixture
def loopback_is_earthdata(monkeypatch):
    monkeypatch.setattr(signing, "_EARTHDATA_SCHEMES", ("http",))
    monkeypatch.setattr(signing, "_EARTHDATA_HOSTS", (".127.0.0.1",))
    monkeypatch.setenv("EARTHDATA_TOKEN", f" {TOKEN}\n")


def test_the_token_goes_to_the_provider(file_server, url, loopback_is_earthdata, tmp_path):
    # A .netrc, which requests prefers to a header, must not replace it.
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
    (tmp_path / "netrc").chmod(0o600)
    get(url, "earthdata")
    assert [asked["authorization"] for asked in file_server.log()] == [f"Bearer {TOKEN}"]
    forget(cached_path(url))
    get(url, "none")
    assert TOKEN not in str(file_server.log()[-1]["authorization"])


@pytest.mark.parametrize("other", ["localhost", "another port"])
def test_the_token_is_dropped_on_the_way_to_another_host(
    file_server, url, loopback_is_earthdata, other, tmp_path
):
    from tests.sources.conftest import FileServer

    elsewhere = FileServer(file_server.folder)
    host = "localhost" if other == "localhost" else "127.0.0.1"
    file_server.plan(redirect=f"http://{host}:{elsewhere.port}")
    try:
        assert get(url, "earthdata").read_bytes() == CONTENT
        assert [asked["authorization"] for asked in elsewhere.log()] == [None]
    finally:
        elsewhere.stop()
    assert [asked["authorization"] for asked in file_server.log()] == [f"Bearer {TOKEN}"]


def test_a_missing_token_is_said_before_any_request(
    file_server, url, loopback_is_earthdata, monkeypatch
):
    monkeypatch.delenv("EARTHDATA_TOKEN")
    with pytest.raises(SourceError, match=r"needs a token .*test\.yml, line 7.*EARTHDATA_TOKEN"):
        get(url, "earthdata")
    assert file_server.log() == []


@pytest.mark.parametrize("status", ["401", "403"])
def test_a_refusal_names_the_variable_and_not_its_value(
    file_server, url, status, loopback_is_earthdata
):
    file_server.plan(*[status] * 9)
    signed = f"{url}?sig=hidden"
    with pytest.raises(SourceError, match=rf"HTTP {status}.* in EARTHDATA_TOKEN has exp") as raised:
        get(signed, "earthdata")
    assert len(file_server.log()) == 1
    shown = "".join(traceback.format_exception(raised.value))
    assert TOKEN not in shown
    assert "sig=hidden" not in shown
    with pytest.raises(SourceError, match=r"it needs credentials: correct stac\.sign in test"):
        get(url)


def test_urls_are_signed_anew_at_every_attempt(file_server, url, monkeypatch):
    signatures = iter("abc")
    monkeypatch.setattr(download, "sign_href", lambda href, sign: f"{href}?sig={next(signatures)}")
    file_server.plan("403", "503")
    assert get(url, "planetary-computer") == cached_path(url)
    assert [asked["path"][-5:] for asked in file_server.log()] == ["sig=a", "sig=b", "sig=c"]


def test_no_signature_reaches_an_error(file_server, url, monkeypatch):
    monkeypatch.setattr(download, "sign_href", lambda href, sign: f"{href}?sig=hidden")
    for fault in ("403", "503", "404", "cut", "stall"):
        file_server.plan(*[fault] * 9)
        with pytest.raises(SourceError) as raised:
            get(url, "planetary-computer")
        assert "hidden" not in str(raised.value)
        assert "hidden" not in "".join(traceback.format_exception(raised.value))
