"""Exports of a regular product say that a date is a step, and when it ends."""

import netCDF4
import numpy as np
import pandas as pd
import pystac
import pytest
import rasterio
import xarray as xr
from pystac.extensions.datacube import DatacubeExtension

from smgrid.cube.store import open_map
from smgrid.export.cog import write_cogs
from smgrid.export.netcdf import write_netcdf
from smgrid.export.stac import write_stac
from smgrid.export.zarr2 import write_zarr2
from smgrid.inference.regular import regular_product
from tests.export.maps import make_map, write_map
from tests.export.test_netcdf import check

ENDS = ("2024-01-09", "2024-01-17", "2024-01-25", "2024-02-02", "2024-02-10", "2024-02-18")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    product = regular_product(make_map((20, 30)), period="8D", max_age=16)
    # As one that does not say itself what it is.
    product.attrs.pop("summary", None)
    product["time"].attrs.pop("long_name", None)
    return write_map(product, tmp_path_factory.mktemp("regular") / "sm8.zarr")


def test_netcdf_has_the_bounds_that_its_time_names(store, tmp_path):
    path = tmp_path / "sm8.nc"
    write_netcdf(store, path)
    with netCDF4.Dataset(path) as nc:
        assert nc["time"].bounds == "time_bnds"
        assert nc["time"].long_name == "start of the step, UTC"
        bounds = nc["time_bnds"]
        assert (bounds.dimensions, bounds.ncattrs()) == (("time", "nv"), [])
        found = netCDF4.num2date(bounds[:, 1], nc["time"].units, nc["time"].calendar)
        assert tuple(end.strftime("%Y-%m-%d") for end in found) == ENDS
        np.testing.assert_array_equal(bounds[:, 0], nc["time"][:])
        assert "time_bnds" not in getattr(nc["soil_moisture"], "coordinates", "")
        assert "in regular steps, each made of the Sentinel-1 acquisitions" in nc.summary
        assert nc.time_coverage_start == "2024-01-01T00:00:00Z"
        assert nc.time_coverage_end == f"{ENDS[-1]}T00:00:00Z"
    report, _ = check(path, "cf:1.11")
    assert [p for p in report["high_priorities"] if p["msgs"]] == []


def test_zarr2_has_them_as_well(store, tmp_path):
    write_zarr2(store, tmp_path / "v2.zarr")
    found = xr.open_zarr(tmp_path / "v2.zarr", decode_coords="all")
    np.testing.assert_array_equal(found["time_bnds"], open_map(store)["time_bnds"])
    assert found["time"].encoding["bounds"] == "time_bnds"


def test_items_are_of_a_period(store, tmp_path):
    catalog = pystac.Catalog.from_file(write_stac(store, tmp_path / "stac"))
    items = list(catalog.get_items(recursive=True))
    ends = [pd.Timestamp(end, tz="UTC") for end in ENDS]
    assert [item.common_metadata.end_datetime for item in items] == ends
    assert all(item.common_metadata.start_datetime == item.datetime for item in items)
    assert items[0].datetime == pd.Timestamp("2024-01-01", tz="UTC")
    first = DatacubeExtension.ext(items[0]).dimensions["time"]
    assert first.extent == ["2024-01-01T00:00:00Z", "2024-01-09T00:00:00Z"]
    collection = items[0].get_collection()
    assert collection.extent.temporal.intervals == [[items[0].datetime, ends[-1]]]
    assert "regular steps" in collection.description


def test_cogs_say_when_the_step_ends(store, tmp_path):
    write_cogs(store, tmp_path, variables=["flags"], dates=("2024-01-09", "2024-01-09"))
    with rasterio.open(tmp_path / "sm_20240109T000000Z_flags.tif") as src:
        tags = src.tags()
    assert (tags["datetime"], tags["end_datetime"]) == (
        "2024-01-09T00:00:00Z",
        "2024-01-17T00:00:00Z",
    )
