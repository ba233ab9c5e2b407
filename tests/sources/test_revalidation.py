"""Copies in the cache: asked about when they are old, replaced when they have changed."""

import logging
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from smgrid.errors import AssetError, ConfigError, SourceError
from smgrid.sources import download, revalidation
from smgrid.sources.download import cached_path, fetch, forget

rng = np.random.default_rng(0)
OLD, NEW = (bytes(rng.integers(0, 256, 300_000, "uint8")) for _ in range(2))
DAY = timedelta(days=1)
ATTEMPTS = 3


@pytest.fixture(autouse=True)
def new_process(monkeypatch, cache):
    """Remember nothing of other tests, and keep waits short."""
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", ",".join(["0.01"] * (ATTEMPTS - 1)))
    monkeypatch.setattr(download, "_TIMEOUTS", (5.0, 0.25))
    monkeypatch.setattr(revalidation, "_ASKED", {})
    monkeypatch.setattr(download, "_SILENT", set())


@pytest.fixture
def file(file_server):
    path = file_server.folder / "a.bin"
    path.write_bytes(OLD)
    # So that times of change, which are stated to the second, differ.
    os.utime(path, (1e9, 1e9))
    return path


@pytest.fixture
def url(file_server, file):
    return f"{file_server.url}/a.bin"


def get(href, max_age=DAY):
    return fetch(href, sign="none", origin="test.yml, line 7", max_age=max_age)


def conditions(file_server):
    return [asked["conditions"] for asked in file_server.log()]


def note_of(path):
    return path.with_name("a.bin.checked.json")


@pytest.mark.parametrize("validator", ["etag", "modified"])
def test_an_unchanged_file_costs_one_request_and_no_transfer(file_server, url, later, validator):
    file_server.plan(validator=validator)
    path = get(url)
    written = path.stat()
    file_server.plan(validator=validator)
    for days in (0.99, 1.01, 1.02, 2.00):
        later(days)
        assert get(url) == path
    assert path.read_bytes() == OLD
    assert path.stat().st_mtime_ns == written.st_mtime_ns
    (asked,) = conditions(file_server)
    assert [value is not None for value in asked] == [validator == "etag", validator == "modified"]
    later(2.02)
    get(url)
    assert len(file_server.log()) == 2


@pytest.mark.parametrize("validator", ["etag", "modified", "none"])
def test_a_changed_file_is_seen(file_server, file, url, later, validator):
    file_server.plan(validator=validator)
    with get(url).open("rb") as opened:
        begin = opened.read(1000)
        file.write_bytes(NEW)
        later(0.9)
        assert get(url).read_bytes() == OLD
        later(1.1)
        assert get(url).read_bytes() == NEW
        assert begin + opened.read() == OLD, "who has the old version open goes on reading it"
    assert len(file_server.log()) == 2
    later(2.2)
    assert get(url).read_bytes() == NEW
    assert len(file_server.log()) == 3


def test_without_a_validator_the_same_content_leaves_the_copy(file_server, url, later):
    file_server.plan(validator="none")
    written = get(url).stat()
    later(1.1)
    assert get(url).stat().st_mtime_ns == written.st_mtime_ns
    assert conditions(file_server) == [[None, None]] * 2
    later(2.0)
    get(url)
    assert len(file_server.log()) == 2


def test_a_copy_that_is_good_for_good_is_never_asked_about(file_server, url, later, monkeypatch):
    get(url, None)
    later(4000)
    monkeypatch.setenv("SMGRID_FILE_CACHE", "refresh")
    assert get(url, None).read_bytes() == OLD
    assert len(file_server.log()) == 1


def test_another_process_knows_when_a_copy_was_checked(file_server, url, later, monkeypatch):
    get(url)
    later(1.1)
    get(url)
    monkeypatch.setattr(revalidation, "_ASKED", {})
    later(2.0)
    get(url)
    assert len(file_server.log()) == 2
    later(-1)
    get(url)
    assert len(file_server.log()) == 3, "a time of check that is to come says nothing"


@pytest.mark.parametrize(
    "note", [None, "", "{}", '{"checked": "soon", "etag": "", "modified": ""}']
)
def test_without_a_note_a_copy_is_as_old_as_its_file(
    file_server, file, url, later, note, monkeypatch
):
    path = get(url)
    if note is None:
        note_of(path).unlink()
    else:
        note_of(path).write_text(note)
    monkeypatch.setattr(revalidation, "_ASKED", {})
    file.write_bytes(NEW)
    later(0.9)
    assert get(url).read_bytes() == OLD
    later(1.1)
    assert get(url).read_bytes() == NEW
    assert conditions(file_server) == [[None, None]] * 2
    later(2.2)
    get(url)
    assert conditions(file_server)[2][0]


def test_a_note_without_its_file_confirms_nothing(file_server, url, later):
    forget(get(url))
    later(1.1)
    assert get(url).read_bytes() == OLD
    assert conditions(file_server) == [[None, None]] * 2


@pytest.mark.parametrize("fault", ["503", "cut", "stall", "404", "401", "page"])
def test_where_no_check_can_be_made_the_copy_is_used(file_server, url, later, fault, caplog):
    get(f"{url}?sig=hidden")
    file_server.plan(*[fault] * 20)
    later(2.5)
    with caplog.at_level(logging.WARNING):
        assert get(f"{url}?sig=hidden").read_bytes() == OLD
    expected = ATTEMPTS if fault in ("503", "cut", "stall") else 1
    assert len(file_server.log()) == expected
    warning = caplog.messages[-1]
    assert warning.startswith(f"{url} could not be checked for a newer version (")
    assert warning.endswith("); its copy, last checked 2.5 days ago, is used")
    assert "hidden" not in caplog.text
    get(url)
    later(3.4)
    get(url)
    assert len(file_server.log()) == expected, "this process asked within max_age, if in vain"
    file_server.plan()
    later(3.6)
    get(url)
    assert len(file_server.log()) == 1


def test_no_server_at_all(url, later, caplog, monkeypatch):
    href = "http://127.0.0.1:9/a.bin"
    path = cached_path(href)
    path.parent.mkdir(parents=True)
    path.write_bytes(OLD)
    later(3)
    assert get(href).read_bytes() == OLD
    assert "connection failed" in caplog.messages[-1]


def test_a_host_that_is_down_is_not_waited_for_with_every_file(file_server, url, later):
    others = [f"{file_server.url}/{name}.bin" for name in "bc"]
    for other in others:
        (file_server.folder / other[-5:]).write_bytes(OLD)
    for href in (url, *others):
        get(href)
    file_server.plan(*["503"] * (ATTEMPTS + 1))
    later(1.1)
    get(url)
    assert get(others[0]).read_bytes() == OLD
    assert len(file_server.log()) == ATTEMPTS + 1
    (file_server.folder / "c.bin").write_bytes(NEW)
    assert get(others[1]).read_bytes() == NEW, "it is asked, once"
    file_server.plan("503")
    later(2.2)
    get(url)
    assert len(file_server.log()) == 2, "a host that answered is waited for"


def test_a_file_that_is_not_there_is_waited_for_whatever_the_host_did(file_server, url, later):
    get(url)
    file_server.plan(*["503"] * (ATTEMPTS + 1))
    later(1.1)
    get(url)
    (file_server.folder / "d.bin").write_bytes(NEW)
    assert get(f"{file_server.url}/d.bin").read_bytes() == NEW


def test_half_of_a_new_version_leaves_the_old_one(file_server, file, url, later, cache):
    path = get(url)
    note = note_of(path).read_bytes()
    file.write_bytes(NEW)
    file_server.plan(*["short"] * 2 * ATTEMPTS)
    later(1.1)
    for _ in range(2):  # the old one is not handed out at the second attempt either
        with pytest.raises(AssetError, match=r"in 3 attempts .*SMGRID_FILE_CACHE=stale to use it"):
            get(url)
    assert path.read_bytes() == OLD
    assert note_of(path).read_bytes() == note
    assert not list(cache.rglob("*.part"))
    file_server.plan("short")
    assert get(url).read_bytes() == NEW
    (whole, rest) = file_server.log()
    assert whole["conditions"][0]
    assert rest["conditions"] == [None, None]
    assert rest["range"]


def test_a_note_is_never_newer_than_its_copy(file, url, later, monkeypatch):
    path = get(url)
    note = note_of(path).read_bytes()
    file.write_bytes(NEW)
    later(1.1)

    def fail(transfer):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(download, "_publish", fail)
        with pytest.raises(SourceError, match="No space left"):
            get(url)
    assert (path.read_bytes(), note_of(path).read_bytes()) == (OLD, note)
    assert get(url).read_bytes() == NEW


def test_a_new_version_is_no_login_page(file_server, file, url, later):
    path = get(url)
    file.write_bytes(NEW)
    file_server.plan("page_in_disguise")
    later(1.1)
    with pytest.raises(SourceError, match="a web page came"):
        get(url)
    assert path.read_bytes() == OLD


def test_nothing_secret_lies_beside_a_copy(file_server, file, monkeypatch):
    monkeypatch.setattr(download, "sign_href", lambda href, sign: f"{href}?sig=hidden")
    href = file_server.url.replace("//", "//me:password@") + "/a.bin"
    path = get(f"{href}?X-Amz-Signature=secret")
    beside = [other for other in path.parent.iterdir() if other != path]
    assert note_of(path) in beside
    for other in beside:
        text = other.name + other.read_text()
        assert not any(word in text for word in ("http", "hidden", "secret", "password", "127"))


def test_threads_share_one_check(file_server, url, later):
    get(url)
    file_server.plan()
    later(1.1)
    with ThreadPoolExecutor(4) as pool:
        assert {path.read_bytes() for path in pool.map(get, [url] * 8)} == {OLD}
    assert len(file_server.log()) == 1


def test_threads_share_one_new_version(file_server, file, url, later):
    get(url)
    file.write_bytes(NEW)
    file_server.plan("503")
    later(1.1)
    with ThreadPoolExecutor(4) as pool:
        assert {path.read_bytes() for path in pool.map(get, [url] * 8)} == {NEW}
    assert len(file_server.log()) == 2


def test_processes_share_one_check(file_server, file, url, later):
    get(url)
    file.write_bytes(NEW)
    file_server.plan()
    later(1.1)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        paths = pool.map(_get_in_process, [url] * 2, chunksize=1)
    assert {Path(path).read_bytes() for path in paths} == {NEW}
    assert len(file_server.log()) == 1


def _get_in_process(url):
    return str(get(url))


def test_refresh_asks_once_in_every_process(file_server, file, url, monkeypatch):
    get(url)
    monkeypatch.setenv("SMGRID_FILE_CACHE", "refresh")
    get(url)
    assert len(file_server.log()) == 1, "it has just come"
    monkeypatch.setattr(revalidation, "_ASKED", {})
    file.write_bytes(NEW)
    assert get(url).read_bytes() == NEW
    get(url)
    assert len(file_server.log()) == 2
    monkeypatch.setattr(revalidation, "_ASKED", {})
    file_server.plan(*["503"] * ATTEMPTS)
    with pytest.raises(SourceError, match=r"HTTP 503.*SMGRID_FILE_CACHE=stale to use it"):
        get(url)


def test_stale_asks_nothing(file_server, url, later, monkeypatch):
    get(url)
    later(4000)
    monkeypatch.setenv("SMGRID_FILE_CACHE", "stale")
    assert get(url).read_bytes() == OLD
    assert len(file_server.log()) == 1
    monkeypatch.setenv("SMGRID_FILE_CACHE", "state")
    with pytest.raises(ConfigError, match="SMGRID_FILE_CACHE is 'state'; did you mean 'stale'"):
        get(url)


def test_a_cache_that_cannot_be_written_is_still_read(url, later, monkeypatch, caplog):
    path = get(url)
    later(1.1)

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(download, "FileLock", refuse)
    assert get(url) == path
    assert "Permission denied" in caplog.messages[-1]
