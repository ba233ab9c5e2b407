"""Land cover: shares against brute-force counts, years, legends, gaps, masks, a real map."""

import json

import dask
import numpy as np
import pytest
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox
from pyproj import Transformer

import smgrid as sg
from smgrid.catalog import SourceSpec, StacQuery
from smgrid.errors import CatalogError, ConfigError, NoDataError, SchemaError, SourceError
from smgrid.grid import grid_coords, make_grid
from smgrid.sources import load_source
from smgrid.sources.landcover import landcover_masks, load
from smgrid.sources.landcover_legends import GROUPS, LEGENDS
from smgrid.windows import Period
from tests.builders import make_item, utm_grid, write_catalog, write_cog

PERIOD = Period.parse("2021")
FRACTIONS = tuple(f"fraction_{group}" for group in GROUPS)
CODES = np.array([10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100], "uint8")
# By hand, in the order of CODES: what ESA's manual calls the codes.
GROUP_OF = ["tree", "shrub", "grass", "crop", "urban", "bare", "snow", "water"]
GROUP_OF += ["wetland", "wetland", "bare"]
GRID = utm_grid((6, 7), 100)


def spec(path="", **changes):
    fields = {
        "name": "cover",
        "loader": "smgrid.sources.landcover:load",
        "provides": FRACTIONS,
        "assets": {"landcover": str(path)},
        "native_resolution": 10.0,
        "options": {"product": "esa-worldcover"},
        "origin": "test.yml, line 7",
    }
    return SourceSpec(**(fields | changes))


def random_map(geobox, seed=0, codes=CODES):
    """Patches of a few pixels, as maps have them."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(codes, tuple(-(-n // 3) for n in geobox.shape))
    return np.kron(coarse, np.ones((3, 3), "uint8"))[: geobox.shape.y, : geobox.shape.x]


def brute_force(values, native, grid, codes=CODES, groups=GROUP_OF):
    """Count every pixel in the cell that holds its centre, one by one."""
    to_grid = Transformer.from_crs(native.crs.proj, grid.crs.proj, always_xy=True)
    counts = {group: np.zeros(grid.shape) for group in GROUPS}
    total = np.zeros(grid.shape)
    cols, rows = np.meshgrid(np.arange(native.shape.x), np.arange(native.shape.y))
    x, y = native.affine @ (cols + 0.5, rows + 0.5)
    x, y = to_grid.transform(x, y)
    box = grid.boundingbox
    row = np.floor((box.top - y) / -grid.resolution.y).astype(int)
    col = np.floor((x - box.left) / grid.resolution.x).astype(int)
    for r, c, code in zip(row.ravel(), col.ravel(), values.ravel(), strict=True):
        if 0 <= r < grid.shape.y and 0 <= c < grid.shape.x:
            total[r, c] += 1
            if code in codes:
                counts[groups[list(codes).index(code)]][r, c] += 1
    known = sum(counts.values())
    enough = known >= 0.5 * total
    return {
        f"fraction_{group}": np.where(enough, count / np.maximum(known, 1), np.nan)
        for group, count in counts.items()
    }


def assert_like(ds, expected):
    for name, values in expected.items():
        np.testing.assert_allclose(ds[name], values, rtol=0, atol=1e-7, err_msg=name)


def in_degrees(grid, step=9e-5):
    """Return a lattice as WorldCover's that covers a grid with room."""
    box = grid.footprint("EPSG:4326").boundingbox
    bounds = (box.left - 0.002, box.bottom - 0.002, box.right + 0.002, box.top + 0.002)
    return GeoBox.from_bbox(bounds, "EPSG:4326", resolution=step)


def around(grid, crs):
    """Return pixels of 10 m in another CRS that cover a grid with room."""
    box = grid.footprint(crs).boundingbox.buffered(150, 150)
    return GeoBox.from_bbox(box.bbox, crs, resolution=10)


@pytest.mark.parametrize(
    "native",
    [
        GRID.zoom_to((60, 70)),
        in_degrees(GRID),
        around(GRID, "EPSG:32632"),  # the neighbouring zone: turned by 4.6 degrees
    ],
    ids=["nested", "degrees", "turned"],
)
def test_shares_are_counts_of_pixel_centres(tmp_path, native):
    values = random_map(native)
    entry = spec(write_cog(tmp_path / "map.tif", values, native, nodata=0))
    expected = brute_force(values, native, GRID)
    for chunks in (512, 4):
        ds = load_source(entry, GRID, PERIOD, chunks=chunks).compute()
        assert_like(ds, expected)
    known = np.isfinite(expected["fraction_water"])
    assert known.mean() > 0.5
    total = sum(ds[name] for name in FRACTIONS).values
    np.testing.assert_allclose(total[known], 1, atol=1e-6)


def test_a_corner_of_water_stands_in_its_cell(tmp_path):
    native = GRID.zoom_to((60, 70))
    values = np.full(native.shape, 40, "uint8")
    values[20:25, 30:40] = 80  # the upper half of the cell in row 2, column 3
    entry = spec(write_cog(tmp_path / "map.tif", values, native, nodata=0))
    ds = load_source(entry, GRID, PERIOD).compute()
    expected = np.zeros(GRID.shape)
    expected[2, 3] = 0.5
    np.testing.assert_array_equal(ds["fraction_water"], expected)
    np.testing.assert_array_equal(ds["fraction_crop"], 1 - expected)


def test_pixels_without_a_class_do_not_count(tmp_path):
    native = GRID.zoom_to((60, 70))
    values = np.full(native.shape, 40, "uint8")
    values[:, 35:] = 0  # from the middle of column 3 on
    values[3, :10] = 80
    values[:6, 10:20] = 0  # six tenths of a cell
    entry = spec(write_cog(tmp_path / "map.tif", values, native, nodata=0), provides=FRACTIONS[:1])
    water = load_source(entry, GRID, PERIOD)["fraction_water"].values
    assert water[0, 0] == np.float32(0.1)
    assert np.isnan(water[0, 1])
    assert np.isfinite(water[:, 3]).all()  # half is enough
    assert np.isnan(water[:, 4:]).all()


def test_outside_of_the_map_counts_as_missing(tmp_path):
    native = GRID.zoom_to((60, 70))[:, :16]
    values = np.full(native.shape, 10, "uint8")
    entry = spec(write_cog(tmp_path / "map.tif", values, native, nodata=0))
    tree = load_source(entry, GRID, PERIOD)["fraction_tree"].values
    np.testing.assert_array_equal(tree[:, :2], 1)
    assert np.isnan(tree[:, 2:]).all()
    far = utm_grid((2, 2), 100, left=700_000)
    with pytest.raises(NoDataError, match=r"map\.tif .* they do not overlap"):
        load_source(entry, far, PERIOD)


def test_cells_smaller_than_two_pixels_get_the_pixel_of_their_centre(tmp_path):
    grid = utm_grid((30, 40), 10)
    native = in_degrees(grid)
    values = random_map(native)
    entry = spec(write_cog(tmp_path / "map.tif", values, native, nodata=0))
    ds = load_source(entry, grid, PERIOD, chunks=16).compute()
    to_native = Transformer.from_crs(grid.crs.proj, "EPSG:4326", always_xy=True)
    lon, lat = to_native.transform(*np.meshgrid(grid_coords(grid)["x"], grid_coords(grid)["y"]))
    col, row = (np.floor(part).astype(int) for part in ~native.affine @ (lon, lat))
    codes = values[row, col]
    for name in FRACTIONS:
        wanted = [c for c, g in zip(CODES, GROUP_OF, strict=True) if name == f"fraction_{g}"]
        np.testing.assert_array_equal(ds[name], np.isin(codes, wanted), err_msg=name)


def test_the_largest_share_names_the_cell(tmp_path):
    native = GRID.zoom_to((60, 70))
    values = np.full(native.shape, 40, "uint8")
    values[:10, :6] = 80
    values[:10, 10:15] = 50  # as much built-up as crops: the first in the list
    values[50:, 60:] = 0
    path = write_cog(tmp_path / "map.tif", values, native, nodata=0)
    ds = load(spec(path, provides=("landcover",)), GRID, PERIOD)
    found = ds["landcover"]
    assert found.dtype == "uint8"
    assert found.values[0, :3].tolist() == [1, 2, 8]
    assert found.values[-1, -1] == 255
    meanings = dict(
        zip(found.attrs["flag_values"], found.attrs["flag_meanings"].split(), strict=True)
    )
    assert (meanings[1], meanings[2], meanings[8]) == ("water", "urban", "crop")


def test_maps_of_two_zones_are_counted_together(tmp_path):
    # The border of the zones at 6 E; each map ends there, one a little beyond it.
    grid = make_grid(bbox=(5.99, 50.0, 6.01, 50.005), resolution=100, crs="EPSG:32632")
    lon, _ = Transformer.from_crs(grid.crs.proj, "EPSG:4326", always_xy=True).transform(
        *np.meshgrid(grid_coords(grid)["x"], grid_coords(grid)["y"])
    )
    items = []
    for name, crs, west, east in (
        ("west", "EPSG:32631", 5.98, 6.0005),
        ("east", "EPSG:32632", 6.0, 6.02),
    ):
        region = make_grid(bbox=(west - 0.01, 49.99, east + 0.01, 50.02), resolution=10, crs=crs)
        x, y = np.meshgrid(grid_coords(region)["x"], grid_coords(region)["y"])
        place, _ = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
        code = np.where((place >= west) & (place < east), 2 if name == "west" else 5, 0)
        path = write_cog(tmp_path / f"{name}.tif", code.astype("uint8"), region, nodata=0)
        items.append(make_item(name, region, {"data": path}, start="2020-01-01"))
    href = write_catalog(tmp_path / "stac", "io-lulc-annual-v02", items)
    entry = spec(
        stac=StacQuery(str(href), "io-lulc-annual-v02"),
        assets={"landcover": "data"},
        options={"product": "io-lulc"},
    )
    ds = load_source(entry, grid, PERIOD, chunks=8).compute()
    assert np.isfinite(ds["fraction_tree"]).all()
    np.testing.assert_array_equal(ds["fraction_tree"].values[lon < 5.999], 1)
    np.testing.assert_array_equal(ds["fraction_crop"].values[lon > 6.002], 1)
    np.testing.assert_allclose(ds["fraction_tree"] + ds["fraction_crop"], 1, atol=1e-6)


@pytest.fixture
def yearly(tmp_path):
    """A collection with maps of 2019, 2020 and 2021 in two tiles, as the real ones are."""
    items = []
    for year, code in ((2019, 80), (2020, 40), (2021, 10)):
        for name, cols in (("a", slice(0, 30)), ("b", slice(30, 70))):
            tile = GRID.zoom_to((60, 70))[:, cols]
            path = write_cog(
                tmp_path / f"{name}{year}.tif", np.full(tile.shape, code, "uint8"), tile, nodata=0
            )
            item = make_item(
                f"{name}{year}",
                tile,
                {"map": path},
                start=f"{year}-01-01",
                end=f"{year}-12-31T23:59:59",
            )
            item.datetime = None
            item.properties["datetime"] = None
            items.append(item)
    href = write_catalog(tmp_path / "stac", "esa-worldcover", items)
    return spec(stac=StacQuery(str(href), "esa-worldcover"), assets={"landcover": "map"})


@pytest.mark.parametrize(
    ("period", "year", "group"),
    [
        (("2020-06-01", "2021-12-31"), None, "crop"),  # not the map that shows what came later
        ("2021", None, "tree"),
        ("2030", None, "tree"),
        ("2016", None, "water"),  # older than all: the earliest
        ("2030", 2020, "crop"),
    ],
)
def test_the_year_of_the_map(yearly, period, year, group):
    options = dict(yearly.options) | ({"year": year} if year else {})
    entry = SourceSpec(**{**vars(yearly), "options": options})
    ds = load_source(entry, GRID, Period.parse(period)).compute()
    np.testing.assert_array_equal(ds[f"fraction_{group}"], 1)


def test_a_year_without_a_map(yearly):
    entry = SourceSpec(**{**vars(yearly), "options": {**yearly.options, "year": 1999}})
    with pytest.raises(SourceError, match=r"options\.year of cover is 1999; there are .* 2019, 20"):
        load(entry, GRID, PERIOD)


def test_local_tiles(tmp_path):
    native = GRID.zoom_to((60, 70))
    values = random_map(native)
    for name, cols in (("a", slice(0, 33)), ("b", slice(33, 70))):
        write_cog(tmp_path / f"{name}.tif", values[:, cols], native[:, cols], nodata=0)
    entry = spec(paths=(f"{tmp_path}/*.tif",), assets={})
    ds = load_source(entry, GRID, PERIOD).compute()
    assert_like(ds, brute_force(values, native, GRID))


def test_nothing_is_read_when_loading(tmp_path):
    native = GRID.zoom_to((60, 70))
    path = write_cog(tmp_path / "map.tif", random_map(native), native, nodata=0)

    def refuse(*_, **__):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        load(spec(path, provides=(*FRACTIONS, "landcover")), GRID, PERIOD)


def test_a_code_of_another_product_is_refused(tmp_path):
    native = GRID.zoom_to((60, 70))
    values = np.full(native.shape, 40, "uint8")
    values[7, 9] = 7
    path = write_cog(tmp_path / "map.tif", values, native, nodata=0)
    with pytest.raises(SchemaError, match=r"found the code 7, which is no class of esa-worldcover"):
        load_source(spec(path), GRID, PERIOD).compute()


def test_zero_is_water_in_dynamic_world_only_where_it_is_data(tmp_path):
    native = GRID.zoom_to((60, 70))
    values = np.zeros(native.shape, "uint8")
    values[:, 20:] = 255
    path = write_cog(tmp_path / "map.tif", values, native)
    options = {"product": "dynamic-world"}
    water = load_source(spec(path, options=options, nodata=255), GRID, PERIOD)["fraction_water"]
    np.testing.assert_array_equal(water[:, :2], 1)
    assert np.isnan(water[:, 2:]).all()
    for nodata, found in ((None, "is missing"), (0, "is 0")):
        message = rf"nodata of cover {found}; in dynamic-world 0 is water: state the fill value"
        with pytest.raises(CatalogError, match=message):
            load(spec(path, options=options, nodata=nodata), GRID, PERIOD)


def test_other_mistakes(tmp_path):
    with pytest.raises(CatalogError, match=r"options\.product of cover is missing; use esa-world"):
        load(spec(options={}), GRID, PERIOD)
    path = write_cog(tmp_path / "map.tif", random_map(GRID), GRID, nodata=0)
    with pytest.raises(CatalogError, match=r"options\.year of cover needs stac; give files of"):
        load(spec(path, options={"product": "esa-worldcover", "year": 2020}), GRID, PERIOD)
    with pytest.raises(CatalogError, match=r"does not provide 'sand'"):
        load(spec(provides=("sand",)), GRID, PERIOD)
    with pytest.raises(CatalogError, match=r"options\.legend of cover: unknown key"):
        load(spec(options={"legend": 1}), GRID, PERIOD)
    with pytest.raises(CatalogError, match=r"assets\.landcover of cover is missing"):
        load(spec(assets={}), GRID, PERIOD)


@pytest.mark.parametrize("product", LEGENDS)
def test_legends_are_complete(product):
    legend = LEGENDS[product]
    assert set(legend.groups.values()) <= set(GROUPS)
    assert {"water", "urban", "wetland", "snow", "tree", "crop"} <= set(legend.groups.values())
    assert not legend.missing & legend.groups.keys()
    assert legend.citation


@pytest.mark.shared
@pytest.mark.parametrize(
    ("product", "path", "find"),
    [
        ("esa-worldcover", "planetary_computer/items_esa-worldcover.json", "map"),
        ("esa-worldcover", "stactools/item_esa-worldcover.json", "map"),
        ("io-lulc", "planetary_computer/search_items_io-lulc-annual-v02.json", "data"),
        ("io-lulc", "planetary_computer/items_io-lulc.json", "data"),
    ],
)
def test_legends_know_every_code_of_the_providers_items(shared, product, path, find):
    document = json.loads((shared / "data/real/stac_responses" / path).read_text())
    items = document if isinstance(document, list) else document.get("features", [document])
    known = LEGENDS[product].groups.keys() | LEGENDS[product].missing
    for item in items:
        asset = item["assets"][find]
        listed = [one["value"] for one in asset.get("classification:classes", [])]
        listed += [value for one in asset.get("file:values", []) for value in one["values"]]
        assert len(listed) > 8
        assert set(listed) <= known


def shares(**values):
    base = {f"fraction_{g}": values.get(g, 0.0) for g in ("water", "urban", "wetland", "snow")}
    data = {n: (("y", "x"), np.array([[v, np.nan]], "float32")) for n, v in base.items()}
    return xr.Dataset(data)


def test_masks_for_flags():
    masks = landcover_masks(shares(water=0.06, urban=0.25, snow=0.9))
    assert {name: mask.values.tolist() for name, mask in masks.items()} == {
        "water": [[True, False]],
        "urban": [[False, False]],  # a threshold is still allowed
        "wetland": [[False, False]],
        "snow": [[True, False]],
    }
    assert masks["water"].dtype == bool
    assert not landcover_masks(shares(water=0.06), thresholds={"water": 0.5})["water"].any()
    with pytest.raises(SchemaError, match="fraction_tree is missing; add it to the provides"):
        landcover_masks(shares(), thresholds={"tree": 0.5})
    with pytest.raises(ConfigError, match=r"thresholds: water: 50, expected a share"):
        landcover_masks(shares(), thresholds={"water": 50})


def test_in_a_cube_and_back(tmp_path):
    native = GRID.zoom_to((60, 70))
    values = random_map(native)
    values[:10, :10] = 0
    write_cog(tmp_path / "map.tif", values, native, nodata=0)
    (tmp_path / "catalog.yml").write_text(
        "smgrid_catalog: 1\nname: cover\ntitle: Land cover\nsources:\n  cover:\n"
        "    loader: smgrid.sources.landcover:load\n"
        "    provides: [fraction_water, fraction_tree, landcover]\n"
        "    assets: {landcover: map.tif}\n    native_resolution: 10\n"
        "    options: {product: esa-worldcover}\n"
    )
    cube = sg.load_cube(GRID, ("2021-01-01", "2022-03-01"), catalog=tmp_path / "catalog.yml")
    sg.write_cube(cube, tmp_path / "cube.zarr")
    opened = sg.open_cube(tmp_path / "cube.zarr")["base"].to_dataset()
    assert opened["landcover"].dtype == "uint8"
    assert opened["landcover"].values[0, 0] == 255
    np.testing.assert_array_equal(opened["landcover"], cube["base"]["landcover"])
    np.testing.assert_allclose(
        opened["fraction_tree"], cube["base"]["fraction_tree"], atol=2e-4, equal_nan=True
    )


@pytest.mark.shared
@pytest.mark.parametrize("year", [2020, 2021])
def test_a_real_map(shared, year):
    folder = shared / "data/real/landcover_worldcover"
    (path,) = folder.glob(f"ESA_WorldCover_10m_{year}_*.tif")
    # The north of Sao Tome: town, coast and forest; UTM 32 N, whose axes are not those of degrees.
    grid = make_grid(bbox=(6.715, 0.345, 6.745, 0.36), resolution=250)
    ds = load_source(spec(path), grid, PERIOD, chunks=7).compute()
    with rasterio.open(path) as src:
        native = GeoBox(src.shape, src.transform, "EPSG:4326")
        values = src.read(1)
    rows, cols = slice(690, 930), slice(3390, 3810)
    assert_like(ds, brute_force(values[rows, cols], native[rows, cols], grid))
    assert float(ds["fraction_urban"].max()) > 0.5
    assert float(ds["fraction_water"].max()) == 1
    assert float(ds["fraction_tree"].max()) > 0.9
    assert landcover_masks(ds)["water"].any()
