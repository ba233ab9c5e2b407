"""Native pixels of static rasters: exact, windowed, lazy, with a horizontal CRS."""

import numpy as np
import pytest
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec
from smgrid.errors import SourceError
from smgrid.grid import make_grid
from smgrid.sources.raster import find_rasters, open_native
from tests.builders import write_cog

NATIVE = GeoBox.from_bbox((3.0, 50.7, 3.2, 50.9), "EPSG:4326", resolution=0.002)
VALUES = np.arange(NATIVE.shape.y * NATIVE.shape.x, dtype="int16").reshape(NATIVE.shape)
GRID = make_grid(bbox=(3.15, 50.75, 3.18, 50.78), resolution=100)


def spec(path, **changes):
    fields = {
        "name": "heights",
        "loader": "smgrid.sources.dem:load",
        "provides": ("elevation",),
        "assets": {"elevation": str(path)},
        "origin": "test.yml, line 2",
    }
    return SourceSpec(**(fields | changes))


@pytest.mark.parametrize(("crs", "stated"), [("EPSG:4326", None), (None, "EPSG:4326")])
def test_pixels_are_copied_from_around_the_grid(tmp_path, crs, stated):
    path = write_cog(tmp_path / "a.tif", VALUES, NATIVE, crs=crs)
    (da,) = open_native(spec(path, crs=stated), "elevation", GRID)
    assert da.dims == ("y", "x")
    assert da.dtype == "float32"
    assert da.chunks is not None
    assert da.sizes["x"] < 25
    row = np.round((50.9 - da["y"].values) / 0.002 - 0.5).astype(int)
    col = np.round((da["x"].values - 3.0) / 0.002 - 0.5).astype(int)
    np.testing.assert_array_equal(da.values, VALUES[np.ix_(row, col)])


def test_outside_of_the_file_and_its_nodata_are_missing(tmp_path):
    values = VALUES.copy()
    values[:, 95] = -32768
    path = write_cog(tmp_path / "a.tif", values, NATIVE, nodata=-32768)
    edge = make_grid(bbox=(3.18, 50.75, 3.21, 50.78), resolution=100)
    (da,) = open_native(spec(path), "elevation", edge)
    np.testing.assert_array_equal(
        np.isnan(da.values).all(axis=0), (da["x"] > 3.2) | (abs(da["x"] - 3.191) < 1e-6)
    )


def test_a_compound_crs_is_reduced_to_its_horizontal_part(tmp_path):
    path = write_cog(tmp_path / "a.tif", VALUES, NATIVE, crs="EPSG:9707")
    (da,) = open_native(spec(path), "elevation", GRID)
    assert not da.odc.crs.proj.is_compound
    assert da.odc.crs.geographic
    assert np.isfinite(da.values).all()


def test_every_path_is_a_tile_and_only_those_under_the_grid_are_read(tmp_path):
    write_cog(tmp_path / "west.tif", VALUES[:, :80], NATIVE[:, :80])
    write_cog(tmp_path / "east.tif", VALUES[:, 80:], NATIVE[:, 80:])
    write_cog(tmp_path / "far.tif", VALUES, NATIVE.translate_pix(5000, 0))
    entry = spec("", assets={}, paths=(f"{tmp_path}/*.tif",))
    assert len(find_rasters(entry, "elevation", GRID)) == 2
    (da,) = open_native(entry, "elevation", GRID)
    whole = spec(write_cog(tmp_path / "whole.tif", VALUES, NATIVE))
    (expected,) = open_native(whole, "elevation", GRID)
    np.testing.assert_array_equal(
        da.sel(x=expected["x"], y=expected["y"], method="nearest"), expected
    )


def test_a_crs_without_a_place_is_named(tmp_path):
    path = write_cog(tmp_path / "a.tif", VALUES, NATIVE, crs='LOCAL_CS["Mine",UNIT["metre",1]]')
    with pytest.raises(SourceError, match=r"a\.tif names its CRS .* as crs: in test\.yml, line 2"):
        list(open_native(spec(path), "elevation", GRID))


def test_a_file_without_a_crs_is_named(tmp_path):
    path = write_cog(tmp_path / "a.tif", VALUES, NATIVE, crs=None)
    with pytest.raises(SourceError, match=r"a\.tif has no CRS; state its CRS as crs: in test\.yml"):
        list(open_native(spec(path), "elevation", GRID))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"b\.tif cannot be read"):
        list(open_native(spec(tmp_path / "b.tif"), "elevation", GRID))
