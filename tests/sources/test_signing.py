"""Signatures and tokens: made when a file is read, few, and told to nobody else."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import pytest

from smgrid.errors import AssetError, SourceError
from smgrid.sources import signing
from smgrid.sources.signing import earthdata_headers, sign_href
from tests.remote import assert_read, open_remote
from tests.services import range_server, sas_server

# planetary-computer 1.0 still uses a form of pydantic that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Support for class-based:DeprecationWarning")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    with range_server(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture(scope="module")
def sas():
    with sas_server() as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(request, monkeypatch):
    """Two quick retries of an asset, none of GDAL's own, and no token of another test."""
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "0.01,0.01")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    monkeypatch.setattr(signing, "_TOKENS", {})
    monkeypatch.setattr(signing, "_FAILED", {})
    for name in {"files", "sas"} & set(request.fixturenames):
        request.getfixturevalue(name).set()


@pytest.fixture
def signed(files, sas, monkeypatch):
    """Let the files be signed by the SAS server, whose tokens hold for an hour."""
    from planetary_computer import sas as client

    monkeypatch.setattr(client, "BLOB_STORAGE_DOMAIN", files.url.removeprefix("http://"))
    monkeypatch.setenv("PC_SDK_SAS_URL", f"{sas.url}/sas/token")
    files.set(secret="abc", tokens="expire")
    sas.set(secret="abc")
    return files


def test_urls_are_signed_when_they_are_read(signed, sas, tmp_path):
    vv = open_remote(signed, tmp_path, "signed.tif", sign="planetary-computer")
    assert sas.log() == []
    assert_read(vv)
    assert sas.log() == ["/sas/token/127/signed.tif"]
    assert all("sig=abc" in asked for asked in signed.log())


def test_a_graph_outlives_its_token_and_few_tokens_are_asked_for(signed, sas, tmp_path):
    sas.set(secret="abc", life=2)
    vv = open_remote(signed, tmp_path, "box/long.tif", sign="planetary-computer")
    assert_read(vv)
    assert_read(vv)
    assert len(sas.log()) == 1
    time.sleep(2.1)  # the server refuses the token now
    assert_read(vv)
    assert len(sas.log()) == 2


def test_a_token_that_is_refused_before_its_time_is_replaced(signed, sas, tmp_path):
    first = open_remote(signed, tmp_path / "1", "box/first.tif", sign="planetary-computer")
    second = open_remote(signed, tmp_path / "2", "box/second.tif", sign="planetary-computer")
    assert_read(first)
    for service in (signed, sas):
        service.set(secret="new", tokens="expire")
    assert_read(second)
    assert len(sas.log()) == 1


def test_a_busy_file_server_costs_no_new_token(signed, sas, tmp_path):
    vv = open_remote(signed, tmp_path, "box/busy.tif", sign="planetary-computer")
    signed.set(secret="abc", tokens="expire", fail=2)
    assert_read(vv)
    assert len(sas.log()) == 1


def test_many_threads_ask_for_one_token(signed, sas):
    hrefs = [f"{signed.url}/box/{n}.tif" for n in range(40)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda href: sign_href(href, "planetary-computer"), hrefs))
    assert sas.log() == ["/sas/token/127/box"]
    assert all("sig=abc" in one for one in found)
    sign_href(f"{signed.url}/other/a.tif", "planetary-computer")
    assert len(sas.log()) == 2


def test_threads_that_wait_for_a_service_that_is_away_fail_together(signed, sas, monkeypatch):
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "0.3")
    sas.set(fail=1000, status=503)

    def sign(number):
        with pytest.raises(SourceError, match="could not be signed"):
            sign_href(f"{signed.url}/box/{number}.tif", "planetary-computer")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(sign, range(16)))
    assert len(sas.log()) == 2  # one request and its repetition
    sas.set(secret="abc")
    assert "sig=abc" in sign_href(f"{signed.url}/box/a.tif", "planetary-computer")


def test_a_clock_that_is_wrong_does_no_harm(signed, sas, monkeypatch):
    class Wrong(signing.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz).replace(year=2040)

    monkeypatch.setattr(signing, "datetime", Wrong)
    for _ in range(3):
        sign_href(f"{signed.url}/box/a.tif", "planetary-computer")
    assert len(sas.log()) == 1


def test_a_sas_service_that_is_busy_is_asked_again_and_one_that_is_away_is_named(signed, sas):
    href = f"{signed.url}/box/a.tif"
    sas.set(secret="abc", fail=2, status=429)
    assert "sig=abc" in sign_href(href, "planetary-computer")
    signing._TOKENS.clear()
    sas.set(fail=1000, status=429)
    with pytest.raises(SourceError, match=r"a\.tif could not be signed .*429.*PC_SDK_SUBSCRIPTION"):
        sign_href(href, "planetary-computer")


@pytest.mark.parametrize(
    "href",
    [
        "https://other.host/box/a.tif",
        "/data/a.tif",
        "https://ai4edatasetspublicassets.blob.core.windows.net/assets/a.png",
        "https://a.blob.core.windows.net/box/a.tif?st=1&se=2&sp=r&sig=3",
    ],
)
def test_what_needs_no_token_gets_none(href, sas, monkeypatch):
    monkeypatch.setenv("PC_SDK_SAS_URL", f"{sas.url}/sas/token")
    assert sign_href(href, "planetary-computer") == href
    assert sign_href(href, "none") == href
    assert sas.log() == []


def test_no_signature_reaches_error_or_log(signed, sas, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    vv = open_remote(signed, tmp_path, "box/secret.tif", sign="planetary-computer")
    sas.set(secret="hidden")
    signed.set(secret="hidden", fail=1000)
    with caplog.at_level(logging.DEBUG), pytest.raises(AssetError) as raised:
        vv.compute()
    assert "Retrying again" in caplog.text  # GDAL's own words, with the URL
    assert "box/secret.tif" in caplog.text
    told = [caplog.text]
    error = raised.value
    assert error.__cause__ is None
    assert error.__context__ is None
    told += [str(error), repr(vars(error))]
    assert all("hidden" not in text for text in told)


def test_no_task_of_the_graph_knows_a_token(signed, tmp_path):
    vv = open_remote(signed, tmp_path, "box/graph.tif", sign="planetary-computer")
    assert_read(vv)
    assert b"box/graph.tif" in cloudpickle.dumps(vv)
    assert b"sig=" not in cloudpickle.dumps(vv)


@pytest.fixture
def earthdata(files, monkeypatch):
    """Let the file server be one of Earthdata's, which wants the token."""
    monkeypatch.setattr(signing, "_EARTHDATA_HOSTS", (".127.0.0.1",))
    monkeypatch.setattr(signing, "_EARTHDATA_SCHEMES", ("http",))
    monkeypatch.setenv("EARTHDATA_TOKEN", "precious")
    files.set(bearer="precious")
    return files


def test_the_token_of_earthdata_is_taken_when_a_file_is_read(earthdata, tmp_path, monkeypatch):
    monkeypatch.delenv("EARTHDATA_TOKEN")
    vv = open_remote(earthdata, tmp_path, "nasa.tif", sign="earthdata")
    message = r"nasa\.tif needs a token of NASA Earthdata Login \(test\.yml, line 1\).*EARTHDATA_"
    with pytest.raises(SourceError, match=message):
        vv.compute()
    assert earthdata.log() == []
    monkeypatch.setenv("EARTHDATA_TOKEN", "precious")
    assert_read(vv)
    assert b"precious" not in cloudpickle.dumps(vv)


def test_a_stated_crs_does_not_lose_the_token(earthdata, tmp_path):
    vv = open_remote(earthdata, tmp_path, "nasacrs.tif", sign="earthdata", crs="EPSG:32631")
    assert_read(vv)


def test_a_refused_token_is_no_secret_told(earthdata, tmp_path, caplog):
    vv = open_remote(earthdata, tmp_path, "refused.tif", sign="earthdata")
    earthdata.set(bearer="another")
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(AssetError, match=r"refused\.tif .*401.*make a new EARTHDATA_TOKEN") as found,
    ):
        vv.compute()
    assert "precious" not in caplog.text + str(found.value) + repr(vars(found.value))


def test_the_token_does_not_follow_to_another_host(earthdata, tmp_path, monkeypatch):
    monkeypatch.setenv("CPL_VSIL_CURL_AUTHORIZATION_HEADER_ALLOWED_IF_REDIRECT", "YES")
    vv = open_remote(earthdata, tmp_path, "moved.tif", sign="earthdata")
    with range_server(earthdata.folder) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        earthdata.set(redirect=elsewhere)
        assert_read(vv)
        assert [one["headers"].get("Authorization") for one in other.requests()]
        assert all("Authorization" not in one["headers"] for one in other.requests())
        assert any("Authorization" in one["headers"] for one in earthdata.requests())


@pytest.mark.parametrize(
    ("url", "given"),
    [
        ("https://data.lpdaac.earthdatacloud.nasa.gov/a.tif", True),
        ("https://cumulus.asf.earthdatacloud.nasa.gov/a.tif", True),
        ("https://n5eil01u.ecs.nsidc.org/a.h5", True),
        ("http://data.lpdaac.earthdatacloud.nasa.gov/a.tif", False),
        ("https://earthdatacloud.nasa.gov.evil.org/a.tif", False),
        ("https://evilearthdata.nasa.gov/a.tif", False),
        ("https://bucket.s3.amazonaws.com/a.tif", False),
        ("/data/a.tif", False),
    ],
)
def test_who_gets_the_token(url, given, monkeypatch):
    monkeypatch.setenv("EARTHDATA_TOKEN", "precious")
    expected = {"Authorization": "Bearer precious"} if given else {}
    assert earthdata_headers(url, origin="test.yml, line 1") == expected
