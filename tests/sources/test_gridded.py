"""Weather files in every arrangement become one: (time, y, x), north up, -180..180, with a CRS."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from smgrid.errors import SourceError
from smgrid.sources.gridded import concat_time, open_gridded, tidy

LAT, LON = [51.0, 50.9, 50.8], [3.0, 3.1, 3.2, 3.3]
TIMES = pd.date_range("2024-01-01", periods=2, freq="h")
VALUES = np.arange(24, dtype="float32").reshape(2, 3, 4)


def dataset(names=("time", "latitude", "longitude"), lat=LAT, lon=LON, values=VALUES, times=TIMES):
    coords = {names[0]: times, names[1]: lat, names[2]: lon}
    return xr.Dataset({"t": (names, values)}, coords=coords)


def tidied(ds, **kwargs):
    return tidy(ds["t"], ds, source="file", **kwargs)


@pytest.mark.parametrize(
    "ds",
    [
        dataset(),
        dataset(("valid_time", "lat", "lon")),
        dataset(("timestamp", "y", "x")).assign_coords(
            spatial_ref=xr.DataArray(0, attrs={"crs_wkt": "EPSG:4326"})
        ),
        dataset(lat=LAT[::-1], values=VALUES[:, ::-1]),
        dataset(lon=LON[::-1], values=VALUES[:, :, ::-1]),
        dataset().transpose("longitude", "latitude", "time"),
        dataset(times=TIMES[::-1], values=VALUES[::-1]),
        dataset(lat=np.float32(LAT), lon=np.float32(LON)),
        dataset(times=[f"{t:%Y-%m-%dT%H:%M:%SZ}" for t in TIMES]),
        dataset().expand_dims(number=[0]),
        dataset().assign_coords(expver=("time", ["0001", "0005"]), surface=0.0),
    ],
)
def test_every_arrangement_reads_the_same(ds):
    da = tidied(ds)
    assert da.dims == ("time", "y", "x")
    np.testing.assert_array_equal(da.values, VALUES)
    np.testing.assert_allclose(da["y"], LAT, atol=1e-5)
    np.testing.assert_allclose(da["x"], LON, atol=1e-5)
    assert da.indexes["time"].equals(TIMES.as_unit("ns"))
    assert da.odc.crs.epsg == 4326
    assert set(da.coords) == {"time", "y", "x", "spatial_ref"}


def test_longitudes_from_0_to_360_across_greenwich():
    da = tidied(dataset(lon=[359.8, 359.9, 0.0, 0.1]))
    np.testing.assert_allclose(da["x"], [-0.2, -0.1, 0.0, 0.1], atol=1e-9)
    da = tidied(dataset(lon=[0.0, 90.0, 180.0, 270.0]))
    np.testing.assert_allclose(da["x"], [-180, -90, 0, 90])
    np.testing.assert_array_equal(da.values, VALUES[:, :, [2, 3, 0, 1]])


def test_one_pixel_takes_its_size_from_the_catalog():
    ds = dataset(("date", "y", "x"), lat=[5629180.0], lon=[501860.0], values=VALUES[:, :1, :1])
    da = tidied(ds, crs="EPSG:32631", native_resolution=1000)
    assert da.odc.geobox.boundingbox.bbox == (501360, 5628680, 502360, 5629680)
    with pytest.raises(SourceError, match="file, x: a single pixel has no size; add native_res"):
        tidied(ds, crs="EPSG:32631")
    degrees = tidied(
        dataset(lat=[51.0], lon=[3.0], values=VALUES[:, :1, :1]), native_resolution=11119.5
    )
    assert degrees.odc.geobox.resolution.x == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("ds", "kwargs", "message"),
    [
        (dataset(("time", "a", "longitude")), {}, "expected a dim with a coordinate called y or"),
        (dataset(), {"time": "valid_time"}, "coordinate called valid_time, found the dims time"),
        (dataset(("time", "y", "x")), {}, "does not state its CRS; add crs"),
        (dataset(lon=[3.0, 3.1, 3.3, 3.4]), {}, "file, x: the coordinate is not evenly spaced"),
        (dataset(times=["yesterday", "today!"]), {}, "its times are not dates"),
        (xr.concat([dataset(), dataset()], "step"), {}, "the dims step are not understood"),
    ],
)
def test_what_cannot_be_placed_is_refused(ds, kwargs, message):
    with pytest.raises(SourceError, match=message):
        tidied(ds, **kwargs)


def test_concat_orders_and_refuses_doubles_and_other_grids():
    first = tidied(dataset())
    later = tidied(dataset(times=TIMES + pd.Timedelta(1, "D")))
    whole = concat_time([later, first], source="weather")
    assert whole.indexes["time"].is_monotonic_increasing
    assert whole.sizes["time"] == 4
    with pytest.raises(SourceError, match="weather: 2024-01-01 00:00:00 occurs twice"):
        concat_time([first, first], source="weather")
    other = tidied(dataset(lat=[40.0, 39.9, 39.8], times=TIMES + pd.Timedelta(1, "D")))
    with pytest.raises(SourceError, match="its files lie on different grids"):
        concat_time([first, other], source="weather")


def test_nothing_is_read_before_it_is_needed(tmp_path):
    path = tmp_path / "a.nc"
    dataset().to_netcdf(path)
    da = tidied(open_gridded(str(path)))
    assert not da.variable._in_memory
    np.testing.assert_array_equal(da.values, VALUES)


def test_packed_files_and_zarr_stores(tmp_path):
    packing = {"t": {"dtype": "int16", "scale_factor": 0.5, "add_offset": 3.0, "_FillValue": -1}}
    ds = dataset()
    ds["t"][0, 0, 0] = np.nan
    ds.to_netcdf(tmp_path / "a.nc", encoding=packing)
    ds.to_zarr(tmp_path / "a.zarr", zarr_format=2)
    for path in ("a.nc", "a.zarr"):
        da = tidied(open_gridded(str(tmp_path / path)))
        np.testing.assert_array_equal(da.values, ds["t"].values)


@pytest.mark.parametrize("name", ["no.nc", "no.zarr"])
def test_missing_files_are_named(tmp_path, name):
    kind = "Zarr store" if name.endswith("zarr") else "NetCDF file"
    with pytest.raises(SourceError, match=f"{name} cannot be read as a {kind}"):
        open_gridded(str(tmp_path / name))
