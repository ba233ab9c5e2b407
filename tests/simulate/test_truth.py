import numpy as np
import pandas as pd
import xarray as xr
from odc.geo.xr import ODCExtension  # noqa: F401 (registers the accessor)


def test_truth_is_daily_on_the_grid_of_the_region(world):
    ds = xr.open_zarr(world.truth, decode_coords="all")
    assert ds.odc.geobox == world.grid
    assert ds["soil_moisture"].dims == ("time", "y", "x")
    assert ds["soil_moisture"].dtype == np.float32
    assert ds["soil_moisture"].attrs["units"] == "m3 m-3"
    assert pd.DatetimeIndex(ds["time"].values).equals(world.scenes.days.as_unit("ns"))


def test_truth_is_complete_and_within_the_pores(world):
    ds = xr.open_zarr(world.truth).compute()
    sm = ds["soil_moisture"]
    assert not sm.isnull().any()
    assert (sm >= 0.02).all()
    assert (sm <= ds["porosity"] + 1e-6).all()


def test_static_fields_are_there_with_units(world):
    ds = xr.open_zarr(world.truth).compute()
    for name in ("elevation", "wetness", "sand", "clay", "bdod", "porosity", "field_capacity"):
        assert ds[name].dims == ("y", "x")
        assert ds[name].attrs["units"]
        assert float(ds[name].std()) > 0
    assert int(ds["cover"].max()) < len(ds.attrs["cover_names"])
    np.testing.assert_allclose(ds["porosity"], 1 - ds["bdod"] / 265, atol=1e-5)


def test_the_catalog_does_not_know_the_truth(world):
    assert "truth" not in world.catalog.read_text()
    for path in (world.path / "stac").rglob("*.json"):
        assert "truth" not in path.read_text()
