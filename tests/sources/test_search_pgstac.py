"""Searches in pgstac, the software that large STAC APIs run on: it answers queries itself.

Needs PostgreSQL with PostGIS and the program ``pypgstac``; without them the module is skipped.
"""

import contextlib
import glob
import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pystac_client
import pytest

from smgrid.cache import cache_folder
from smgrid.sources import search
from smgrid.sources.search import search_items
from smgrid.windows import Period
from tests.builders import make_item, stac_spec, utm_grid
from tests.services import collection_of, free_port, item_documents, stac_server

pytestmark = pytest.mark.slow

GRID = utm_grid((4, 5), 100)
PERIOD = Period.parse(("2024-03-01", "2024-04-30"))
ITEMS = [
    make_item(
        f"{mode}{day:02}",
        GRID.pad(2),
        {"vv": "/data/x.tif"},
        start=f"2024-{3 + day // 16:02}-{1 + day % 16:02}T05:30:00",
        **{"sar:instrument_mode": mode, "sat:relative_orbit": 80 + day},
    )
    for day in range(30)
    for mode in ("IW", "EW")
]


def find_programs():
    """Return the folder of PostgreSQL's programs and pypgstac; skip if something is missing."""
    folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"))  # noqa: PTH207
    initdb = shutil.which("initdb") or (f"{folders[-1]}/initdb" if folders else None)
    if initdb is None or not Path(initdb).is_file():
        pytest.skip("PostgreSQL is not installed")
    programs = Path(initdb).resolve().parent
    share = subprocess.check_output([programs / "pg_config", "--sharedir"], text=True).strip()
    if not Path(share, "extension", "postgis.control").is_file():
        pytest.skip("PostGIS is not installed for this PostgreSQL")
    beside = Path(sys.executable).with_name("pypgstac")
    pypgstac = str(beside) if beside.is_file() else shutil.which("pypgstac")
    if pypgstac is None:
        pytest.skip("pypgstac is not installed")
    return programs, pypgstac


def run_as_postgres(*command):
    """Run a program of PostgreSQL, which refuses to be root."""
    text = shlex.join(map(str, command))
    as_user = ["su", "postgres", "-c", text] if os.geteuid() == 0 else ["sh", "-c", text]
    subprocess.run(as_user, check=True, stdout=subprocess.DEVNULL, cwd="/")


@contextlib.contextmanager
def running_database(programs):
    """Yield the port of a new cluster."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # sockets need a short path
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    data, port = folder / "data", free_port()
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    try:
        initdb = ("initdb", "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
        run_as_postgres(programs / initdb[0], *initdb[1:])
        server = (programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log")
        run_as_postgres(*server, "-o", f"{options} -c fsync=off", "start")
        try:
            yield port
        finally:
            run_as_postgres(*server, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    programs, pypgstac = find_programs()
    folder = tmp_path_factory.mktemp("documents")
    (folder / "collections").write_text(json.dumps(collection_of("s1")))
    documents = (json.dumps(one) for one in item_documents(ITEMS))
    (folder / "items").write_text("\n".join(documents))
    with running_database(programs) as port:
        account = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres"}
        environment = {**os.environ, **account, "PGPASSWORD": "x"}
        subprocess.run(
            [programs / "psql", "-q", "-c", "create database stac"], env=environment, check=True
        )
        environment["PGDATABASE"] = "stac"
        for steps in (
            ["migrate"],
            ["load", "collections", str(folder / "collections"), "--method", "upsert"],
            ["load", "items", str(folder / "items"), "--method", "upsert"],
        ):
            subprocess.run(
                [pypgstac, *steps], env=environment, check=True, stdout=subprocess.DEVNULL
            )
        path = "options=-c%20search_path%3Dpgstac%2Cpublic"
        address = f"postgresql://postgres:x@127.0.0.1:{port}/stac?{path}"
        with stac_server([], pgstac=address) as running:
            yield running


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SMGRID_CACHE", str(tmp_path / "cache"))


def bodies(api):
    asked = [one for one in api.requests() if one["path"].startswith("/search")]
    return [json.loads(one["body"]) for one in asked]


def test_a_query_is_answered_by_the_api_as_by_the_filter_here(api, monkeypatch):
    query = {"sar:instrument_mode": {"eq": "IW"}, "sat:relative_orbit": {"gte": 90}}
    spec = stac_spec(api.url, query=query)
    api.set()
    found = [one.id for one in search_items(spec, GRID, PERIOD)]
    assert found == [f"IW{day:02}" for day in range(10, 30)]
    assert not any("query" in body for body in bodies(api))
    # It knows queries, but this server in front of it does not say so.
    monkeypatch.setattr(pystac_client.Client, "conforms_to", lambda self, name: True)
    monkeypatch.setenv("SMGRID_SEARCH_CACHE", "refresh")
    api.set()
    assert [one.id for one in search_items(spec, GRID, PERIOD)] == found
    assert all(body["query"] == query for body in bodies(api))
    for path in cache_folder("search").glob("*.gz"):
        kept = json.loads(gzip.decompress(path.read_bytes()))["items"]
        assert {one["properties"]["sar:instrument_mode"] for one in kept} == {"IW"}


def test_everything_is_found_and_a_rerun_makes_no_request(api):
    first = search_items(stac_spec(api.url), GRID, PERIOD)
    assert {one.id for one in first} == {one.id for one in ITEMS}
    api.set()
    again = search_items(stac_spec(api.url), GRID, PERIOD)
    assert api.log() == []
    assert [one.to_dict() for one in again] == [one.to_dict() for one in first]


def test_many_pages_are_one_answer(api, monkeypatch):
    monkeypatch.setattr(search, "_PAGE", 7)
    api.set()
    found = search_items(stac_spec(api.url), GRID, PERIOD)
    assert {one.id for one in found} == {one.id for one in ITEMS}
    assert len(bodies(api)) >= 60 / 7
