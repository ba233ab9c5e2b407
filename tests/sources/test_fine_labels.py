"""Fine-grid labels: cells and pixels in place, masked reads, overpasses, time, cubes."""

import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer

import smgrid as sg
from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError, NoDataError, SchemaError, SourceError
from smgrid.grid import ease_grid, make_grid
from smgrid.sources import load_source
from smgrid.sources.fine_labels import load_nsidc, load_planet
from smgrid.windows import Period

PERIOD = Period.parse("2022-01")
GRID = make_grid(bbox=(105.9, 20.1, 105.95, 20.14), resolution=100)
SMAP, PLANET = "smap_1km_soil_moisture", "planet_soil_moisture"
# EASE-Grid 2.0 of 1 km (Brodzik et al. 2014): cell [m], rows and columns.
CELL = 1000.89502334956
ROWS, COLUMNS = 14616, 34704


def ease_cell(lon, lat):
    """Row and column of a place, by the constants and the formulas of the projection alone."""
    e2 = 0.00669437999014
    e, sine = np.sqrt(e2), np.sin(np.radians(lat))
    q = (1 - e2) * (sine / (1 - e2 * sine**2) - np.log((1 - e * sine) / (1 + e * sine)) / (2 * e))
    at_30 = np.radians(30)
    k0 = np.cos(at_30) / np.sqrt(1 - e2 * np.sin(at_30) ** 2)
    x = 6_378_137.0 * k0 * np.radians(lon)
    y = 6_378_137.0 * q / (2 * k0)
    return int(np.floor(ROWS / 2 - y / CELL)), int(np.floor(COLUMNS / 2 + x / CELL))


ROW, COL = ease_cell(105.925, 20.12)


def ease_box(row, col, shape):
    """Return cells by row and column of the global grid."""
    affine = Affine(CELL, 0, (col - COLUMNS / 2) * CELL, 0, -CELL, (ROWS / 2 - row) * CELL)
    return GeoBox(shape, affine, "EPSG:6933")


def write(path, bands, box, *, nodata=None, crs="of the box", dtype="float32"):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = np.asarray(bands, dtype)
    profile = {
        "driver": "GTiff",
        "dtype": dtype,
        "count": len(bands),
        "height": box.shape.y,
        "width": box.shape.x,
        "transform": box.affine,
        "crs": str(box.crs) if crs == "of the box" else crs,
        "nodata": nodata,
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(bands)
    return path


def smap_name(day):
    return f"NSIDC-0779_EASE2_G1km_SMAP_SM_DS_{day}.tif"


def smap_spec(folder, **changes):
    fields = {
        "name": "smap-1km",
        "loader": "smgrid.sources.fine_labels:load_nsidc",
        "provides": (SMAP,),
        "paths": (f"{folder}/*.tif",),
        "origin": "test.yml, line 3",
    }
    return SourceSpec(**(fields | changes))


def planet_spec(folder, **changes):
    fields = {
        "name": "planet",
        "loader": "smgrid.sources.fine_labels:load_planet",
        "provides": (PLANET,),
        "paths": (f"{folder}/*.tiff",),
        "origin": "test.yml, line 4",
    }
    return SourceSpec(**(fields | changes))


AROUND = ease_box(ROW - 15, COL - 20, (30, 40))
rng = np.random.default_rng(0)
AM, PM = rng.uniform(0.05, 0.45, (2, 30, 40)).astype("float32")


def test_smap_the_constants_agree_with_the_grid():
    exact = ease_grid(1)
    assert exact.shape == (ROWS, COLUMNS)
    assert ease_box(0, 0, (ROWS, COLUMNS)).affine.almost_equals(exact.affine, 1e-4)
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True).transform(105.925, 20.12)
    box = ease_box(ROW, COL, (1, 1)).boundingbox
    assert box.left < x < box.right
    assert box.bottom < y < box.top


def test_smap_a_known_pixel_stands_in_its_cell(tmp_path):
    am = np.full((30, 40), 0.1, "float32")
    am[15, 20] = 0.4  # the cell of 105.925 E 20.12 N
    write(tmp_path / smap_name("20220105"), [am, PM], AROUND)
    da = load_source(smap_spec(tmp_path), GRID, PERIOD)[SMAP]
    assert da.odc.geobox.crs.epsg == 6933
    high = da.values[0] == np.float32(0.4)
    assert high.sum() == 1
    row, col = (int(part[0]) for part in np.nonzero(high))
    centre = ((COL + 0.5 - COLUMNS / 2) * CELL, (ROWS / 2 - ROW - 0.5) * CELL)
    found = da["x"].values[col], da["y"].values[row]
    np.testing.assert_allclose(found, centre, atol=1e-3)


def test_smap_the_window_covers_the_region_and_values_are_copied(tmp_path):
    write(tmp_path / smap_name("20220105"), [AM, PM], AROUND)
    da = load_source(smap_spec(tmp_path), GRID, PERIOD)[SMAP]
    box = da.odc.geobox
    footprint = GRID.footprint("EPSG:6933").boundingbox
    assert box.boundingbox.left < footprint.left
    assert box.boundingbox.bottom < footprint.bottom
    assert box.shape.y < 12
    top = round((AROUND.affine.f - box.affine.f) / CELL)
    left = round((box.affine.c - AROUND.affine.c) / CELL)
    expected = AM[top : top + box.shape.y, left : left + box.shape.x]
    np.testing.assert_array_equal(da.values[0], expected)


@settings(max_examples=15, deadline=None)
@given(
    top=st.integers(-12, 12),
    left=st.integers(-12, 12),
    rows=st.integers(1, 20),
    cols=st.integers(1, 20),
    chunks=st.sampled_from([3, 512]),
)
def test_smap_any_clip_lands_in_the_same_cells(tmp_path_factory, top, left, rows, cols, chunks):
    folder = tmp_path_factory.mktemp("clip")
    box = ease_box(ROW + top, COL + left, (rows, cols))
    r, c = np.indices((rows, cols))
    values = ((ROW + top + r) % 30 * 30 + (COL + left + c) % 30) / 1000
    write(folder / smap_name("20220105"), [values, values], box)
    da = load_source(smap_spec(folder), GRID, PERIOD, chunks=chunks)[SMAP]
    y, x = np.meshgrid(da["y"], da["x"], indexing="ij")
    row = np.round(ROWS / 2 - y / CELL - 0.5).astype(int)
    col = np.round(COLUMNS / 2 + x / CELL - 0.5).astype(int)
    inside = (row >= ROW + top) & (row < ROW + top + rows)
    inside &= (col >= COL + left) & (col < COL + left + cols)
    expected = np.where(inside, (row % 30 * 30 + col % 30) / 1000, np.nan)
    np.testing.assert_allclose(da.values[0], expected, rtol=1e-6)


def test_smap_overpasses_and_their_times(tmp_path):
    write(tmp_path / smap_name("20220105"), [AM, PM], AROUND)
    write(tmp_path / smap_name("20220106"), [PM, AM], AROUND)
    write(tmp_path / smap_name("20220206"), [AM, PM], AROUND)

    def load(overpass):
        return load_source(smap_spec(tmp_path, options={"overpass": overpass}), GRID, PERIOD)

    am, pm, both, mean = (load(name)[SMAP] for name in ("am", "pm", "both", "mean"))
    # At 105.925 E the sun is 7 h 4 min ahead of UTC: 6 h is 22:56 UTC of the same UTC day.
    assert times(am) == ["2022-01-05T22:56", "2022-01-06T22:56"]
    assert times(pm) == ["2022-01-05T10:56", "2022-01-06T10:56"]
    assert times(mean) == ["2022-01-05T04:56", "2022-01-06T04:56"]
    assert times(both) == sorted(times(am) + times(pm))
    np.testing.assert_array_equal(am.values[0], pm.values[1])
    np.testing.assert_allclose(mean.values[0], (am.values[0] + pm.values[0]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(both.values[[1, 0]], [am.values[0], pm.values[0]])


def test_smap_missing_values_never_pass(tmp_path):
    am, pm = np.full((2, 30, 40), 0.2, "float32")
    am[15, 20], am[15, 21], am[15, 19] = -9999, np.nan, 0
    pm[14, 20], pm[14, 21] = -9999, -1
    write(tmp_path / smap_name("20220105"), [am, pm], AROUND)
    da = {
        name: load_source(smap_spec(tmp_path, options={"overpass": name}, nodata=-1), GRID, PERIOD)[
            SMAP
        ]
        for name in ("am", "pm", "mean")
    }
    left, top = (COL - 20), (ROW - 15)
    box = da["am"].odc.geobox
    at = (
        top - round(ROWS / 2 - box.affine.f / CELL),
        left - round(COLUMNS / 2 + box.affine.c / CELL),
    )

    def missing(name):
        return sorted(
            (int(r - at[0]), int(c - at[1])) for r, c in np.argwhere(np.isnan(da[name].values[0]))
        )

    assert missing("am") == [(15, 20), (15, 21)]
    assert missing("pm") == [(14, 20), (14, 21)]
    assert missing("mean") == sorted(missing("am") + missing("pm"))
    assert float(da["am"].min()) == 0  # dry is not missing


def test_smap_the_fill_value_needs_no_mention(tmp_path):
    am = np.full((30, 40), 0.2, "float32")
    am[15, 20] = -9999
    write(tmp_path / smap_name("20220105"), [am, am], AROUND)
    da = load_source(smap_spec(tmp_path), GRID, PERIOD)[SMAP]
    assert np.isnan(da.values).sum() == 1


def test_smap_a_nodata_of_the_file(tmp_path):
    am = np.full((30, 40), 0.2, "float32")
    am[15] = -1
    write(tmp_path / smap_name("20220105"), [am, am], AROUND, nodata=-1)
    da = load_source(smap_spec(tmp_path), GRID, PERIOD)[SMAP]
    assert np.isnan(da.values[0]).any(axis=1).sum() == 1


def test_smap_clips_of_one_day_are_mosaicked(tmp_path):
    west, east = AROUND[:, :20], AROUND[:, 20:]
    write(tmp_path / f"west_{smap_name('20220105')}", [AM[:, :20], PM[:, :20]], west)
    write(tmp_path / f"east_{smap_name('20220105')}", [AM[:, 20:], PM[:, 20:]], east)
    da = load_source(smap_spec(tmp_path), GRID, PERIOD)[SMAP]
    assert da.sizes["time"] == 1
    assert np.isfinite(da.values).all()


@pytest.mark.parametrize(
    ("box", "found"),
    [
        (AROUND.translate_pix(0.5, 0), "0.50 of a pixel off"),
        (AROUND.translate_pix(0, 0.5), "0.50 of a pixel off"),
        (GeoBox((30, 40), AROUND.affine @ Affine.scale(1.01), "EPSG:6933"), "those of 1000"),
        (
            GeoBox((30, 40), Affine(0.01, 0, 105.8, 0, -0.01, 20.3), "EPSG:4326"),
            "WGS 84 that are not",
        ),
    ],
    ids=["half east", "half south", "wider", "degrees"],
)
def test_smap_a_file_off_the_grid_is_refused(tmp_path, box, found):
    write(tmp_path / smap_name("20220105"), [AM, PM], box)
    with pytest.raises(SourceError, match=rf"20220105\.tif has pixels of .*{found}"):
        load_source(smap_spec(tmp_path), GRID, PERIOD).compute()


def test_smap_a_crs_that_is_missing_or_has_another_name(tmp_path):
    path = tmp_path / smap_name("20220105")
    write(path, [AM, PM], AROUND, crs=None)
    with pytest.raises(SourceError, match=r"20220105\.tif has no CRS .* crs: in test\.yml"):
        load_source(smap_spec(tmp_path), GRID, PERIOD).compute()
    stated = load_source(smap_spec(tmp_path, crs="EPSG:6933"), GRID, PERIOD)[SMAP].values
    proj = "+proj=cea +lat_ts=30 +lon_0=0 +ellps=WGS84 +units=m"
    write(path, [AM, PM], AROUND, crs=proj)
    named = load_source(smap_spec(tmp_path), GRID, PERIOD)[SMAP].values
    np.testing.assert_array_equal(named, stated)


def test_smap_mistakes(tmp_path):
    write(tmp_path / smap_name("20220105"), [AM], AROUND)
    with pytest.raises(CatalogError, match=r"options\.overpass of smap-1km is 'noon'"):
        load_nsidc(smap_spec(tmp_path, options={"overpass": "noon"}), GRID, PERIOD)
    with pytest.raises(NoDataError, match="smap-1km has no file from 2021-01-01 to 2021-12-31"):
        load_nsidc(smap_spec(tmp_path), GRID, Period.parse("2021"))
    with pytest.raises(SourceError, match="has 1 bands, expected at least 2"):
        load_source(smap_spec(tmp_path, options={"overpass": "pm"}), GRID, PERIOD).compute()
    pole = make_grid(bbox=(10, 86, 11, 86.1), resolution=1000, crs="EPSG:6931")
    with pytest.raises(NoDataError, match="smap-1km ends at 85 degrees"):
        load_nsidc(smap_spec(tmp_path), pole, PERIOD)
    (tmp_path / "other.tif").write_bytes(b"")
    with pytest.raises(SourceError, match=r"other\.tif has no date in its name"):
        load_nsidc(smap_spec(tmp_path), GRID, PERIOD)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"not a raster", SourceError, r"20220105\.tif cannot be read"),
        (None, SchemaError, r"smap_1km_soil_moisture in .*20220105\.tif: found 45"),
    ],
)
def test_smap_what_is_wrong_inside_is_found_when_read(tmp_path, content, error, message):
    path = tmp_path / smap_name("20220105")
    if content:
        path.write_bytes(content)
    else:
        write(path, [np.full((30, 40), 45.0), PM], AROUND)
    ds = load_source(smap_spec(tmp_path), GRID, PERIOD)
    with pytest.raises(error, match=message):
        ds.compute()


def test_smap_urls_are_downloaded_when_read(file_server, cache):
    name = smap_name("20220105")
    write(file_server.folder / "labels" / name, [AM, PM], AROUND)
    entry = smap_spec("", paths=(f"{file_server.url}/labels/{name}",))
    ds = load_source(entry, GRID, PERIOD)
    assert not file_server.log()
    assert np.isfinite(ds[SMAP].values).all()
    assert len(list(cache.rglob("*.tif"))) == 1


def test_labels_that_are_processed_again_are_seen(file_server, cache, later):
    file = file_server.folder / "labels" / smap_name("20220107")
    write(file, [AM, PM], AROUND)
    entry = smap_spec("", paths=(f"{file_server.url}/labels/{file.name}",))
    before = load_source(entry, GRID, PERIOD)[SMAP].values
    write(file, [AM / 2, PM], AROUND)
    lazy = load_source(entry, GRID, PERIOD)[SMAP]
    np.testing.assert_array_equal(lazy.values, before)
    later(1.1)
    np.testing.assert_allclose(lazy.values, before / 2)
    np.testing.assert_allclose(load_source(entry, GRID, PERIOD)[SMAP].values, before / 2)
    assert len(file_server.log()) == 2


def test_a_damaged_download_is_named_without_its_query_and_fetched_again(file_server):
    file = file_server.folder / "labels" / smap_name("20220106")
    write(file, [AM, PM], AROUND)
    content = file.read_bytes()
    file.write_bytes(b"no raster" * 20)
    entry = smap_spec("", paths=(f"{file_server.url}/labels/{file.name}?api_key=SECRET",))
    ds = load_source(entry, GRID, PERIOD)
    with pytest.raises(SourceError, match=r"20220106\.tif cannot be read") as raised:
        ds.compute(scheduler="synchronous")
    assert "SECRET" not in str(raised.value)
    file.write_bytes(content)
    assert np.isfinite(ds[SMAP].compute(scheduler="synchronous")).all()


# Pixels of 0.001 degree on multiples of it, as Planet delivers them.
STEP = 0.001
LEFT, TOP = 105.88, 20.16
PIXELS = GeoBox((90, 100), Affine(STEP, 0, LEFT, 0, -STEP, TOP), "EPSG:4326")
SWC = rng.uniform(0.02, 0.3, (90, 100)).astype("float32")


def planet_bands(values=SWC, quality=None):
    quality = np.zeros(values.shape) if quality is None else quality
    return [quality, values, np.ones(values.shape)]


def test_planet_half_of_the_soil_moisture_is_stored(tmp_path):
    write(tmp_path / "swc_2022-01-05.tiff", planet_bands(), PIXELS)
    da = load_source(planet_spec(tmp_path), GRID, PERIOD)[PLANET]
    box = da.odc.geobox
    assert box.crs.epsg == 4326
    row, col = round((TOP - box.affine.f) / STEP), round((box.affine.c - LEFT) / STEP)
    expected = 2 * SWC[row : row + box.shape.y, col : col + box.shape.x]
    np.testing.assert_allclose(da.values[0], expected, rtol=1e-6)
    assert da.attrs["comment"] == "band 2 times 2 plus 0 where band 1 is 0"


def test_planet_a_known_pixel_stands_in_its_place(tmp_path):
    values = np.full(SWC.shape, 0.1, "float32")
    # 20.1203 N 105.9251 E: 39 whole pixels below 20.16, 45 right of 105.88.
    values[39, 45] = 0.35
    write(tmp_path / "swc_2022-01-05.tiff", planet_bands(values), PIXELS)
    da = load_source(planet_spec(tmp_path), GRID, PERIOD)[PLANET][0].compute()
    assert da.sel(y=20.1203, x=105.9251, method="nearest").item() == np.float32(0.7)
    assert (da == np.float32(0.7)).sum() == 1
    high = da.where(da > 0.5, drop=True)
    np.testing.assert_allclose([high["y"].item(), high["x"].item()], [20.1205, 105.9255])


def test_planet_quality_and_nodata(tmp_path):
    values, quality = SWC.copy(), np.zeros(SWC.shape)
    quality[39, 45], quality[40, 45] = 1, 200
    values[41, 45] = -1
    write(tmp_path / "swc_2022-01-05.tiff", planet_bands(values, quality), PIXELS, nodata=-1)
    good = load_source(planet_spec(tmp_path), GRID, PERIOD)[PLANET]
    assert np.isnan(good.values).sum() == 3
    everything = planet_spec(tmp_path, options={"quality": "all"})
    assert np.isnan(load_source(everything, GRID, PERIOD)[PLANET].values).sum() == 1


def test_planet_a_nodata_of_zero_does_not_mask_good_quality(tmp_path):
    values = SWC.copy()
    values[41, 45] = 0
    write(tmp_path / "swc_2022-01-05.tiff", planet_bands(values), PIXELS, nodata=0)
    da = load_source(planet_spec(tmp_path), GRID, PERIOD)[PLANET]
    assert np.isnan(da.values).sum() == 1


def test_planet_scale_units_and_bands_of_another_delivery(tmp_path):
    counts = np.round(SWC * 1000).astype("uint16")
    counts[41, 45] = 65535
    write(tmp_path / "SWC-2022-01-05_v2.tiff", [counts], PIXELS, dtype="uint16", nodata=65535)
    entry = planet_spec(tmp_path, assets={PLANET: "1"}, scale={PLANET: 0.001})
    da = load_source(entry, GRID, PERIOD)[PLANET]
    assert np.isnan(da.values).sum() == 1
    assert abs(float(da.mean()) - SWC.mean()) < 0.01
    percent = planet_spec(
        tmp_path, assets={PLANET: "1"}, scale={PLANET: 0.1}, units={PLANET: "percent"}
    )
    np.testing.assert_allclose(load_source(percent, GRID, PERIOD)[PLANET], da, rtol=1e-5)
    with pytest.raises(SchemaError, match=r"planet_soil_moisture in .*2022-01-05_v2\.tiff"):
        load_source(planet_spec(tmp_path, assets={PLANET: "1"}), GRID, PERIOD).compute()


def test_planet_time_is_the_night_overpass_on_the_files_day(tmp_path):
    for day in ("2022-01-06", "2022-01-05", "2021-12-31", "2022-02-01"):
        write(tmp_path / f"swc_{day}.tiff", planet_bands(), PIXELS)
    da = load_source(planet_spec(tmp_path), GRID, PERIOD)[PLANET]
    # 1:30 local is 18:26 UTC, on the UTC day of the name.
    assert times(da) == ["2022-01-05T18:26", "2022-01-06T18:26"]
    later = planet_spec(tmp_path, options={"local_hour": 13.5})
    assert times(load_source(later, GRID, PERIOD)[PLANET])[0] == "2022-01-05T06:26"


def test_planet_files_of_other_extents_share_the_lattice(tmp_path):
    write(tmp_path / "a_2022-01-05.tiff", planet_bands(SWC[:60]), PIXELS[:60])
    write(tmp_path / "b_2022-01-05.tiff", planet_bands(SWC[50:]), PIXELS[50:])
    write(tmp_path / "c_2022-01-06.tiff", planet_bands(SWC[30:, 20:]), PIXELS[30:, 20:])
    far = PIXELS.translate_pix(5000, 0)
    write(tmp_path / "d_2022-01-07.tiff", planet_bands(), far)
    da = load_source(planet_spec(tmp_path), GRID, PERIOD, chunks=17)[PLANET]
    assert times(da) == ["2022-01-05T18:26", "2022-01-06T18:26"]
    assert da.chunksizes["time"] == (1, 1)
    assert da.chunksizes["x"][0] == 17
    first, second = da.values
    assert np.isfinite(first).all()
    seen = np.isfinite(second)
    assert 0.3 < seen.mean() < 1
    np.testing.assert_array_equal(first[seen], second[seen])


def test_planet_files_of_another_lattice_are_refused(tmp_path):
    write(tmp_path / "a_2022-01-05.tiff", planet_bands(), PIXELS)
    write(tmp_path / "a_2022-01-06.tiff", planet_bands(), PIXELS.translate_pix(0.5, 0))
    with pytest.raises(SourceError, match=r"a_2022-01-06\.tiff has pixels .*0\.50 of a pixel"):
        load_planet(planet_spec(tmp_path), GRID, PERIOD)


def test_planet_mistakes(tmp_path):
    write(tmp_path / "swc_2022-01-05.tiff", planet_bands(), PIXELS)
    elsewhere = make_grid(bbox=(10, 50, 10.1, 50.1), resolution=100)
    with pytest.raises(NoDataError, match=r"none of the 1 files of planet .* lies in the region"):
        load_planet(planet_spec(tmp_path), elsewhere, PERIOD)
    with pytest.raises(CatalogError, match=r"assets\.value of planet is '2'; give the number"):
        load_planet(planet_spec(tmp_path, assets={"value": "2"}), GRID, PERIOD)
    with pytest.raises(CatalogError, match=r"assets\.planet_soil_moisture of planet is missing"):
        load_planet(planet_spec(tmp_path, assets={"quality": "1"}), GRID, PERIOD)
    with pytest.raises(CatalogError, match=r"options\.local_hour of planet is 25"):
        load_planet(planet_spec(tmp_path, options={"local_hour": 25}), GRID, PERIOD)
    with pytest.raises(SourceError, match="has 3 bands, expected at least 7"):
        load_source(planet_spec(tmp_path, assets={PLANET: "7"}), GRID, PERIOD).compute()
    write(tmp_path / "swc_2022-13-05.tiff", planet_bands(), PIXELS)
    with pytest.raises(SourceError, match=r"swc_2022-13-05\.tiff has no date in its name"):
        load_planet(planet_spec(tmp_path), GRID, PERIOD)


def times(da):
    return da["time"].values.astype("datetime64[m]").astype(str).tolist()


def test_a_cube_with_labels_of_both_and_back(tmp_path):
    write(tmp_path / "smap" / smap_name("20220105"), [AM, PM], AROUND)
    write(tmp_path / "smap" / smap_name("20220108"), [AM, PM], AROUND)
    values, quality = SWC.copy(), np.zeros(SWC.shape)
    quality[39, 45] = 1
    write(tmp_path / "planet" / "swc_2022-01-06.tiff", planet_bands(values, quality), PIXELS)
    (tmp_path / "catalog.yml").write_text(
        "smgrid_catalog: 1\nname: labels\ntitle: Labels\nsources:\n"
        "  site:\n    loader: smgrid.sources.site:load\n    provides: [sand]\n"
        "    note: stated\n    options: {values: {sand: 400}}\n"
        "  smap-1km:\n    loader: smgrid.sources.fine_labels:load_nsidc\n"
        f"    provides: [{SMAP}]\n    paths: [smap/*.tif]\n    options: {{overpass: both}}\n"
        "  planet:\n    loader: smgrid.sources.fine_labels:load_planet\n"
        f"    provides: [{PLANET}]\n    paths: [planet/*.tiff]\n"
    )
    cube = sg.load_cube(GRID, ("2022-01-01", "2022-01-31"), catalog=tmp_path / "catalog.yml")
    sg.write_cube(cube, tmp_path / "cube.zarr")
    opened = sg.open_cube(tmp_path / "cube.zarr")
    for group, name, steps in (("labels_smap_1km", SMAP, 4), ("labels_planet", PLANET, 1)):
        before, after = cube[group][name], opened[group][name]
        assert after.sizes["time"] == steps
        assert after.odc.geobox == before.odc.geobox
        pd.testing.assert_index_equal(after.indexes["time"], before.indexes["time"])
        # 12 mantissa bits.
        np.testing.assert_allclose(after, before, rtol=2**-12, equal_nan=True)
    assert np.isnan(opened["labels_planet"][PLANET].values).sum() == 1
