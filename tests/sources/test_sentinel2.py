"""Sentinel-2 items: the offset of each, reprocessed ones, passes, cells of averaged pixels."""

import copy
import json

import dask
import numpy as np
import pandas as pd
import pystac
import pytest
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, StacQuery
from smgrid.errors import CatalogError, NoDataError, SourceError
from smgrid.sources import load_source
from smgrid.sources.ndvi import load_sentinel2
from smgrid.sources.reprocessed import keep_latest
from smgrid.sources.sentinel2 import count_offset, newest_items, open_clear_items
from smgrid.windows import Period
from tests.builders import utm_grid, write_catalog, write_cog

nan = np.nan
PERIOD = Period.parse(("2024-01-01", "2024-01-24"))
FINE = GeoBox.from_bbox((500_000, 5_600_000, 500_240, 5_600_240), "EPSG:32631", resolution=10)
GRID = FINE.zoom_out(12)  # 2 by 2 cells of 144 pixels
RED, NIR = 1000, 3000  # NDVI 0.5


def scene(
    folder, start, *, red=RED, nir=NIR, scl=4, baseline="02.14", geobox=FINE, tile="31UES",
    made="20240201T000000", satellite="2A", **properties,
):  # fmt: skip
    """Write one scene and return its item, as the Planetary Computer has them."""
    start = pd.Timestamp(start)
    name = f"S{satellite}_MSIL2A_{start:%Y%m%dT%H%M%S}_R008_T{tile}_{made}"
    assets = {}
    for key, values, box in (
        ("B04", red, geobox),
        ("B08", nir, geobox),
        ("SCL", scl, geobox.zoom_out(2)),
    ):
        dtype = "uint8" if key == "SCL" else "uint16"
        values = np.broadcast_to(np.asarray(values, dtype), box.shape)
        path = write_cog(folder / name / f"{key}.tif", values, box)
        assets[key] = pystac.Asset(
            str(path),
            extra_fields={
                "proj:shape": list(box.shape.yx),
                "proj:transform": list(box.affine)[:6],
            },
        )
    footprint = geobox.footprint("EPSG:4326")
    item = pystac.Item(
        name,
        geometry=footprint.json,
        bbox=list(footprint.boundingbox.bbox),
        datetime=start.to_pydatetime(),
        properties={
            "platform": f"Sentinel-{satellite}",
            "proj:epsg": geobox.crs.epsg,
            "sat:relative_orbit": 8,
            "s2:mgrs_tile": tile,
            "s2:datatake_id": f"GS{satellite}_{start:%Y%m%dT%H%M%S}_041856_N{baseline}",
            "s2:generation_time": made,
            "s2:processing_baseline": baseline,
        }
        | properties,
    )
    item.stac_extensions.append("https://stac-extensions.github.io/projection/v1.0.0/schema.json")
    for key, asset in assets.items():
        item.add_asset(key, asset)
    return item


def spec(folder, items, **changes):
    href = write_catalog(folder / "stac", "sentinel-2-l2a", items)
    fields = {
        "name": "s2",
        "loader": "smgrid.sources.ndvi:load_sentinel2",
        "provides": ("ndvi", "ndvi_filled"),
        "stac": StacQuery(str(href), "sentinel-2-l2a"),
        "assets": {"red": "B04", "nir": "B08", "mask": "SCL"},
        "nodata": 0.0,
        "native_resolution": 240.0,
        "options": {"fill_days": 0},
        "origin": "test.yml, line 31",
    }
    return SourceSpec(**(fields | changes))


def ndvi(entry, period=PERIOD, grid=GRID, **kwargs):
    return load_source(entry, grid, period, **kwargs)["ndvi"].values


@pytest.mark.parametrize(
    ("baseline", "offset", "start", "properties"),
    [
        ("03.01", 0, "2022-01-20", {}),
        ("04.00", 1000, "2022-01-26", {}),
        ("05.11", 1000, "2025-03-12", {}),
        # Reprocessed: an old scene with the offset, and one from which a provider took it away.
        ("05.00", 1000, "2018-07-01", {}),
        ("04.00", 0, "2023-07-01", {"earthsearch:boa_offset_applied": True}),
        ("04.00", 1000, "2023-07-01", {"earthsearch:boa_offset_applied": False}),
    ],
)
def test_reflectance_follows_the_processing_baseline(tmp_path, baseline, offset, start, properties):
    item = scene(
        tmp_path, start, baseline=baseline, red=RED + offset, nir=NIR + offset, **properties
    )
    period = Period.parse((pd.Timestamp(start) - pd.Timedelta(8, "D"), start))
    found = ndvi(spec(tmp_path, [item]), period)
    np.testing.assert_allclose(found[np.isfinite(found)], 0.5, rtol=1e-6)
    assert np.isfinite(found).any()


def test_tiles_of_one_pass_that_were_processed_differently(tmp_path):
    west, east = FINE[:, :12], FINE[:, 12:]
    items = [
        scene(tmp_path, "2024-01-02T10:50", geobox=west, tile="31UES"),
        scene(
            tmp_path,
            "2024-01-02T10:50",
            geobox=east,
            tile="31UFS",
            baseline="05.10",
            red=RED + 1000,
            nir=NIR + 1000,
        ),
    ]
    np.testing.assert_allclose(ndvi(spec(tmp_path, items))[0], 0.5, rtol=1e-6)


def test_a_reprocessed_scene_replaces_the_older_one(tmp_path):
    old = scene(tmp_path, "2024-01-02T10:50", red=500)
    new = scene(
        tmp_path, "2024-01-02T10:50", baseline="05.10", made="20250101T000000", red=2000, nir=4000
    )
    other = scene(tmp_path, "2024-01-02T10:50", tile="31UFS")
    for items in ([old, new, other], [other, new, old]):
        kept = {item.id for item in newest_items(items)}
        assert kept == {new.id, other.id}
    np.testing.assert_allclose(ndvi(spec(tmp_path, [old, new]))[0], 0.5, rtol=1e-6)


def test_two_datastrips_that_share_a_tile_are_both_kept(tmp_path):
    halves = [
        scene(tmp_path, "2024-01-02T10:50", made=f"20240102T12000{n}", **{"s2:datastrip_id": strip})
        for n, strip in enumerate(
            ("S2A_OPER_MSI_L2A_DS_2APS_20240102T120000_S20240102T105002_N05.10",
             "S2A_OPER_MSI_L2A_DS_2APS_20240102T120001_S20240102T105018_N05.10")
        )
    ]  # fmt: skip
    assert {item.id for item in newest_items(halves)} == {item.id for item in halves}
    assert {item.id for item in keep_latest(halves)} == {item.id for item in halves}


def test_cells_are_means_of_their_clear_pixels(tmp_path):
    rng = np.random.default_rng(0)
    red = rng.integers(300, 2000, FINE.shape)
    nir = rng.integers(2000, 5000, FINE.shape)
    scl = rng.choice([4, 5, 9, 0], (12, 12), p=[0.4, 0.3, 0.2, 0.1])
    item = scene(tmp_path, "2024-01-02", red=red, nir=nir, scl=scl)
    ds = load_source(spec(tmp_path, [item]), GRID, PERIOD)
    clear = np.isin(scl, [4, 5]).repeat(2, 0).repeat(2, 1)
    index = np.where(clear, (nir - red) / (nir + red), nan)
    blocks = index.reshape(2, 12, 2, 12)
    np.testing.assert_allclose(ds["ndvi"][0], np.nanmean(blocks, (1, 3)), rtol=1e-5)
    unseen = np.isnan(blocks).mean((1, 3))
    np.testing.assert_allclose(ds["ndvi_filled"][0], unseen, atol=1e-6)


def test_composites_are_medians_of_passes(tmp_path):
    nirs = [("2024-01-01T10:50", 3000), ("2024-01-04T10:50", 9000), ("2024-01-06T10:50", 4000)]
    items = [
        scene(tmp_path, start, nir=nir, satellite=f"2{'AB'[n % 2]}")
        for n, (start, nir) in enumerate(nirs)
    ]
    items.append(scene(tmp_path, "2024-01-09T10:50", scl=9))
    found = ndvi(spec(tmp_path, items))
    np.testing.assert_allclose(found[:, 0, 0], [0.6, nan, nan], rtol=1e-6)
    ds = load_source(spec(tmp_path, items, options={"fill_days": 16}), GRID, PERIOD)
    assert ds["ndvi_filled"].values[:2, 0, 0].tolist() == [0, 1]
    assert ds["observed"].values.tolist() == [True, True, False]
    assert ds["ndvi"].attrs["composite_days"] == 8


def test_two_zones(tmp_path):
    """The grid lies in zone 31; its eastern half is covered by items of zone 32 only."""
    grid = utm_grid((2, 4), 240, left=711_000, top=5_600_480)
    west = GeoBox.from_bbox((710_960, 5_599_960, 711_480, 5_600_520), "EPSG:32631", resolution=20)
    corners = grid.footprint("EPSG:32632").boundingbox
    east = GeoBox.from_bbox(corners.buffered(200, 200), "EPSG:32632", resolution=20)
    items = [
        scene(tmp_path, "2024-01-02T10:50", geobox=west, tile="31UGS", nir=3000),
        scene(tmp_path, "2024-01-03T10:50", geobox=east, tile="32ULB", nir=9000),
    ]
    found = ndvi(spec(tmp_path, items), grid=grid)[0]
    np.testing.assert_allclose(found[:, :2], 0.65, rtol=1e-5)  # the median of both days
    np.testing.assert_allclose(found[:, 2:], 0.8, rtol=1e-5)


def test_chunks_do_not_matter(tmp_path):
    rng = np.random.default_rng(1)
    items = []
    for start in ("2024-01-02T10:50", "2024-01-05T10:50"):
        nir, scl = rng.integers(2000, 6000, FINE.shape), rng.choice([4, 9], (12, 12))
        items.append(scene(tmp_path, start, nir=nir, scl=scl))
    entry = spec(tmp_path, items)
    np.testing.assert_array_equal(ndvi(entry), ndvi(entry, chunks=1))


def test_a_tile_of_cells_is_read_in_pieces_that_fit_in_memory(tmp_path):
    grid = utm_grid((300, 300), 240, top=5_610_000)  # 7200 by 7200 pixels
    entry = spec(tmp_path, [scene(tmp_path, "2024-01-02")])
    view = open_clear_items(entry, grid, PERIOD, chunks=512)
    assert max(view.ndvi.chunksizes["x"]) == 1024 // 24
    assert load_sentinel2(entry, grid, PERIOD)["ndvi"].chunksizes["x"] == (300,)


def test_nothing_is_read_when_loading(tmp_path):
    entry = spec(tmp_path, [scene(tmp_path, "2024-01-02")])

    def refuse(*_, **__):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        load_sentinel2(entry, GRID, PERIOD)


def test_pixels_without_data_and_outside_of_a_scene(tmp_path):
    red = np.full(FINE.shape, RED)
    red[:12, :12] = 0
    item = scene(tmp_path, "2024-01-02", red=red, geobox=FINE)
    shifted = FINE.translate_pix(12, 0)
    grid = shifted.zoom_out(12)
    found = ndvi(spec(tmp_path, [item]))[0]
    np.testing.assert_allclose(found, [[nan, 0.5], [0.5, 0.5]], rtol=1e-6)
    found = ndvi(spec(tmp_path, [item], nodata=None), grid=grid)[0]
    np.testing.assert_allclose(found, [[0.5, nan], [0.5, nan]], rtol=1e-6)


def test_a_bridge_is_stated(tmp_path):
    bridge = {"slope": 1.1, "intercept": -0.02, "rmse": 0.04}
    entry = spec(
        tmp_path, [scene(tmp_path, "2024-01-02")], options={"fill_days": 0, "bridge": bridge}
    )
    da = load_sentinel2(entry, GRID, PERIOD)["ndvi"]
    np.testing.assert_allclose(da[0], 0.53, rtol=1e-6)
    assert {name: da.attrs[f"bridge_{name}"] for name in bridge} == bridge


def test_mistakes(tmp_path):
    items = [scene(tmp_path, "2024-01-02")]
    with pytest.raises(CatalogError, match=r"line 31: offset\.red of s2 must not be given"):
        load_sentinel2(spec(tmp_path, items, offset={"red": -0.1}), GRID, PERIOD)
    with pytest.raises(CatalogError, match=r"line 31: options\.mask of s2: unknown key"):
        load_sentinel2(spec(tmp_path, items, options={"mask": "x"}), GRID, PERIOD)
    with pytest.raises(NoDataError):
        load_sentinel2(spec(tmp_path, items), GRID, Period.parse("2025"))
    with pytest.raises(CatalogError, match=r"assets\.mask of s2 is missing"):
        load_sentinel2(spec(tmp_path, items, assets={"red": "B04", "nir": "B08"}), GRID, PERIOD)
    silent = scene(tmp_path, "2024-01-02", made="20240301T000000")
    del silent.properties["s2:processing_baseline"]
    with pytest.raises(SourceError, match="20240301T000000 states the processing baseline None"):
        load_sentinel2(spec(tmp_path, [silent]), GRID, PERIOD)


@pytest.mark.shared
def test_the_real_item_of_the_planetary_computer(shared, tmp_path):
    """The recorded item, with its assets replaced by small files on its own lattices."""
    answer = shared / "data/real/stac_responses/planetary_computer/items_sentinel-2-l2a.json"
    feature = json.loads(answer.read_text())["features"][0]
    item = pystac.Item.from_dict(copy.deepcopy(feature))
    assert count_offset(item) == -1000
    older = pystac.Item.from_dict(copy.deepcopy(feature))
    older.properties["s2:processing_baseline"] = "03.01"
    assert count_offset(older) == 0
    # A part of the tile that the footprint of the item covers, on its lattice.
    fine = GeoBox.from_bbox((250_020, 592_800, 250_260, 593_040), "EPSG:32653", resolution=10)
    for key, value, box in (
        ("B04", 1800, fine),
        ("B08", 4200, fine),
        ("SCL", 4, fine.zoom_out(2)),
    ):
        dtype = "uint8" if key == "SCL" else "uint16"
        path = write_cog(tmp_path / f"{key}.tif", np.full(box.shape, value, dtype), box)
        item.assets[key].href = str(path)
    entry = spec(tmp_path, [item])
    found = ndvi(entry, Period.parse(("2025-03-06", "2025-03-14")), grid=fine.zoom_out(12))
    np.testing.assert_allclose(found[0], (3200 - 800) / 4000, rtol=1e-6)
