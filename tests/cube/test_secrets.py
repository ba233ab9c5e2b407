"""A credential goes nowhere but to the provider: not to stores, graphs, logs or messages."""

import logging
import pickle

import dask
import pytest
from odc.geo.geobox import GeoBox

from smgrid.catalog import open_catalog
from smgrid.cube.build import load_cube
from smgrid.cube.store import write_cube
from smgrid.errors import ConfigError, SmgridError

SECRET = "sesame-7f3a9c"
CATALOG = """\
smgrid_catalog: 1
name: secret
title: Sources that need a credential
sources:
  radar:
    loader: tests.providers:load_passes
    provides: [vv, vh]
    convention: gamma0
    credentials: [SMGRID_TEST_TOKEN]
    fallbacks: [opera]
    options: {passes: [["2021-03-02T05:30", sentinel-1a, 37]]}
  opera:
    loader: tests.providers:load_passes
    provides: [vv, vh]
    convention: gamma0
    credentials: [SMGRID_TEST_TOKEN]
    options: {passes: [["2021-03-08T05:30", sentinel-1a, 37]]}
  soil:
    loader: tests.providers:LOADER
    provides: [sand]
    credentials: [SMGRID_TEST_TOKEN]
    note: Set SMGRID_TEST_TOKEN to a token of the soil service
"""
GRID = GeoBox.from_bbox((500_000, 5_629_000, 501_000, 5_630_000), "EPSG:32631", resolution=100)
PERIOD = ("2021-03-01", "2021-03-31")


@pytest.fixture
def catalog(tmp_path, monkeypatch):
    monkeypatch.setenv("SMGRID_TEST_TOKEN", SECRET)

    def write(loader):
        path = tmp_path / "secret.yml"
        path.write_text(CATALOG.replace("LOADER", loader))
        return path

    return write


def everything_below(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return b"\n".join(str(path).encode() + b"\n" + path.read_bytes() for path in files)


def graph_text(cube):
    graphs = [node.to_dataset().__dask_graph__() for node in cube.subtree if node.data_vars]
    return "\n".join(repr((key, task)) for graph in graphs for key, task in dict(graph).items())


def test_a_credential_is_in_no_store_graph_or_log(catalog, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    opened = open_catalog(catalog("load_static"))
    assert SECRET not in repr(opened)
    assert SECRET.encode() not in pickle.dumps(opened)
    cube = load_cube(GRID, PERIOD, catalog=opened)
    assert SECRET not in graph_text(cube)
    assert SECRET.encode() not in pickle.dumps(cube["base"].to_dataset())
    write_cube(cube, tmp_path / "cube.zarr", shard=256, manifest={"catalog": opened.name})
    assert SECRET.encode() not in everything_below(tmp_path)
    assert SECRET not in caplog.text


def test_a_credential_is_in_no_message_of_a_failure(catalog, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    cube = load_cube(GRID, PERIOD, catalog=catalog("load_broken_unit"))
    assert SECRET not in graph_text(cube)
    with dask.config.set(scheduler="threads"), pytest.raises(SmgridError) as raised:
        write_cube(cube, tmp_path / "cube.zarr", shard=256, attempts=1)
    assert "soil cannot be read" in str(raised.value)
    error = raised.value
    while error is not None:
        assert SECRET not in repr(error)
        error = error.__cause__ or error.__context__
    assert SECRET.encode() not in everything_below(tmp_path)
    assert SECRET not in caplog.text


def test_a_missing_credential_is_told_without_any_value(catalog, monkeypatch):
    path = catalog("load_static")
    monkeypatch.setenv("SMGRID_OTHER_TOKEN", SECRET)
    monkeypatch.delenv("SMGRID_TEST_TOKEN")
    with pytest.raises(ConfigError) as raised:
        load_cube(GRID, PERIOD, catalog=path)
    lines = str(raised.value).splitlines()
    assert [line.split(": ")[1].split()[0] for line in lines] == ["radar", "opera", "soil"]
    assert "(Set SMGRID_TEST_TOKEN to a token of the soil service)" in lines[2]
    assert SECRET not in str(raised.value)
