import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from smgrid.errors import ConfigError, GridError, NoDataError, SchemaError
from smgrid.grid import grid_coords
from smgrid.training import site_cells
from smgrid.training.sites import merge_sites, select_sites

TREE, GRASS, CROP, WATER, MISSING = 1, 2, 4, 0, 255
LONLAT_BOX = (4.003, 50.001, 4.05, 50.03)


def make_map(codes, *, box=(500_030, 5_600_050), resolution=20, crs="EPSG:32631", nodata=MISSING):
    codes = np.asarray(codes, np.uint8)
    west, south = box[:2]
    east, north = west + codes.shape[1] * resolution, south + codes.shape[0] * resolution
    grid = GeoBox.from_bbox((west, south, east, north), crs, shape=codes.shape)
    return to_map(codes, grid, nodata)


def to_map(codes, grid, nodata=MISSING):
    da = xr.DataArray(codes, dims=("y", "x"), coords=grid_coords(grid), name="landcover")
    return da if nodata is None else da.rio.write_nodata(nodata)


def random_codes(shape=(41, 53), seed=0):
    """Patches of classes, so that shares differ, with missing pixels and a missing corner."""
    rng = np.random.default_rng(seed)
    patches = rng.choice([TREE, GRASS, CROP, WATER, 6], (-(-shape[0] // 6), -(-shape[1] // 6)))
    codes = np.kron(patches, np.ones((6, 6), np.uint8))[: shape[0], : shape[1]].astype(np.uint8)
    codes[rng.random(shape) < 0.1] = MISSING
    codes[:15, :15] = MISSING
    return codes


def brute_force(landcover, cell, *, crs="EPSG:32631", least_share=0.5, least_valid=0.5):
    """Share of every kept cell, pixel after pixel; the lattice goes on beyond the map."""
    grid, margin = landcover.odc.geobox, 12
    to_cells = Transformer.from_crs(grid.crs, crs, always_xy=True)
    valid, wanted, whole = {}, {}, {}
    for r in range(-margin, grid.shape.y + margin):
        for c in range(-margin, grid.shape.x + margin):
            px, py = grid.affine @ (c + 0.5, r + 0.5)
            x, y = to_cells.transform(px, py)
            key = int(np.floor(-y / cell)), int(np.floor(x / cell))
            whole[key] = whole.get(key, 0) + 1
            if not (0 <= r < grid.shape.y and 0 <= c < grid.shape.x):
                continue
            code = int(landcover.values[r, c])
            valid[key] = valid.get(key, 0) + (code != MISSING)
            wanted[key] = wanted.get(key, 0) + (code in (TREE, GRASS, CROP))
    return {
        k: wanted[k] / n
        for k, n in valid.items()
        if n >= least_valid * whole[k] and n and wanted[k] / n > least_share
    }


def cells_of(sites):
    return list(zip(sites["row"].values.tolist(), sites["column"].values.tolist(), strict=True))


def pixel_under(sites, landcover):
    grid = landcover.odc.geobox
    to_map_crs = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True)
    x, y = to_map_crs.transform(sites["longitude"].values, sites["latitude"].values)
    column, row = (x - grid.affine.c) / grid.affine.a, (y - grid.affine.f) / grid.affine.e
    np.testing.assert_allclose([column % 1, row % 1], 0.5, atol=1e-4)  # centres of pixels
    return row.astype(int), column.astype(int), x, y


@pytest.mark.parametrize("cell", [100, 130, 70])
@pytest.mark.parametrize("least_valid", [0.3, 0.8])
def test_cells_and_shares_are_those_of_a_loop_over_pixels(cell, least_valid):
    landcover = make_map(random_codes())
    sites = select_sites(landcover, cell=cell, product="dynamic-world", least_valid=least_valid)
    expected = brute_force(landcover, cell, least_valid=least_valid)
    assert len(expected) > 5
    found = dict(zip(cells_of(sites), sites["share"].values, strict=True))
    assert found == pytest.approx(expected)


def test_sites_lie_in_their_cells_on_the_classes_that_they_state():
    landcover = make_map(random_codes())
    sites = select_sites(landcover, cell=130, product="dynamic-world", per_cell=3)
    row, column, x, y = pixel_under(sites, landcover)
    np.testing.assert_array_equal(sites["landcover"], landcover.values[row, column])
    assert set(sites["landcover"].values.tolist()) == {TREE, GRASS, CROP}
    np.testing.assert_array_equal(np.floor(x / 130), sites["column"])
    np.testing.assert_array_equal(np.floor(-y / 130), sites["row"])
    assert len(set(sites["site"].values)) == sites.sizes["site"]
    assert len(set(zip(row, column, strict=True))) == sites.sizes["site"]


def test_degrees_are_cut_into_equal_areas():
    codes = random_codes((120, 140), seed=2)
    landcover = to_map(codes, GeoBox.from_bbox(LONLAT_BOX, "EPSG:4326", shape=codes.shape))
    sites = select_sites(landcover, cell=400, product="dynamic-world")
    expected = brute_force(landcover, 400, crs="EPSG:6933")
    assert len(expected) > 10
    assert dict(zip(cells_of(sites), sites["share"].values, strict=True)) == pytest.approx(expected)
    to_ease = Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True)
    x, y = to_ease.transform(sites["longitude"].values, sites["latitude"].values)
    assert sites.attrs["crs"] == "EPSG:6933"
    np.testing.assert_array_equal(np.floor(x / 400), sites["column"])
    np.testing.assert_array_equal(np.floor(-y / 400), sites["row"])


@pytest.mark.parametrize("chunks", [None, 7, (5, 53), (41, 11)])
@pytest.mark.parametrize("edge", [16, 2048])
def test_neither_chunks_nor_blocks_matter(chunks, edge, monkeypatch):
    landcover = make_map(random_codes())
    arguments = {"cell": 100, "product": "dynamic-world", "per_cell": 2, "preferred": "crop"}
    whole = select_sites(landcover, **arguments)
    monkeypatch.setattr(site_cells, "_EDGE", edge)
    lazy = (
        landcover
        if chunks is None
        else landcover.chunk(dict(zip("yx", np.broadcast_to(chunks, 2).tolist(), strict=True)))
    )
    xr.testing.assert_identical(select_sites(lazy, **arguments), whole)


def test_a_larger_map_keeps_the_sites_of_a_smaller_one():
    """Neighbouring regions share cells, and so do not overlap."""
    landcover = make_map(random_codes((60, 60)), box=(500_000, 5_600_000))
    whole = select_sites(landcover, cell=100, product="dynamic-world")
    part = select_sites(landcover[20:45, 10:50], cell=100, product="dynamic-world")
    assert 5 < part.sizes["site"] < whole.sizes["site"]
    xr.testing.assert_identical(whole.sel(site=part["site"]), part)


def test_the_draw_follows_the_seed():
    landcover = make_map(random_codes())
    one, again, other = (
        select_sites(landcover, cell=100, product="dynamic-world", seed=s) for s in (1, 1, 2)
    )
    xr.testing.assert_identical(one, again)
    moved = (one["longitude"].values != other["longitude"].values) | (
        one["latitude"].values != other["latitude"].values
    )
    assert cells_of(one) == cells_of(other)
    assert moved.mean() > 0.8


@pytest.mark.parametrize("per_cell", [1, 3])
def test_every_pixel_of_the_classes_is_equally_likely(per_cell):
    cell = np.full((4, 4), CROP)
    cell[1:3, 1] = WATER
    landcover = make_map(np.tile(cell, (50, 60)), box=(500_000, 5_600_000))
    sites = select_sites(landcover, cell=80, product="dynamic-world", per_cell=per_cell)
    row, column, _, _ = pixel_under(sites, landcover)
    hits = np.bincount((row % 4) * 4 + column % 4, minlength=16).reshape(4, 4)
    assert (hits[1:3, 1] == 0).all()
    hits = hits[cell == CROP]
    assert hits.sum() == 3000 * per_cell
    chi2 = ((hits - hits.mean()) ** 2 / hits.mean()).sum()
    assert chi2 < 34.5  # the 99.9 % point with 13 degrees of freedom
    # Neighbouring cells draw independently: the same pixel comes twice in a row 1 time in 14.
    place = ((row % 4) * 4 + column % 4).reshape(3000, per_cell)[:, 0]
    assert (place[1:] == place[:-1]).mean() == pytest.approx(1 / 14, abs=0.03)


def test_what_is_drawn_from():
    codes = np.full((10, 40), TREE)
    codes[:, 5:10] = codes[:, 25:30] = WATER
    codes[3, 12] = CROP  # in the second of four cells
    codes[2, 36:38] = CROP  # in the fourth
    codes[:, 20:25] = GRASS
    landcover = make_map(codes, box=(500_000, 5_600_000), resolution=10)
    arguments = {"cell": 100, "product": "dynamic-world", "least_share": 0.4, "per_cell": 100}

    def drawn(**more):
        sites = select_sites(landcover, **arguments, **more)
        return [
            set(part["landcover"].values.tolist()) for _, part in sites.groupby("column")
        ], sites.groupby("column").count()["share"].values.tolist()

    assert drawn() == ([{TREE}, {TREE, CROP}, {GRASS}, {TREE, CROP}], [50, 100, 50, 100])
    classes, counts = drawn(draw="cell")
    assert classes == [{TREE, WATER}, {TREE, CROP}, {GRASS, WATER}, {TREE, CROP}]
    assert counts == [100] * 4
    # One preferred pixel is one site.
    assert drawn(preferred="crop") == ([{TREE}, {CROP}, {GRASS}, {CROP}], [50, 1, 50, 2])
    assert drawn(preferred="water", draw="cell")[0] == [
        {WATER},
        {TREE, CROP},
        {WATER},
        {TREE, CROP},
    ]


def test_names_come_from_the_product_or_the_flags_of_the_map():
    codes = random_codes()
    by_product = select_sites(make_map(codes), cell=100, product="dynamic-world")
    by_code = select_sites(make_map(codes), cell=100, classes=(1, 2, 4))
    xr.testing.assert_equal(by_product, by_code)
    # As the loader of land cover marks its map: no nodata, but the values that mean something.
    flagged = make_map(codes, nodata=None).assign_attrs(
        flag_values=np.array([0, 1, 2, 4, 6], "u1"), flag_meanings="water tree grass crop urban"
    )
    xr.testing.assert_equal(select_sites(flagged, cell=100), by_product)
    floats = make_map(codes, nodata=None).where(codes != MISSING)
    xr.testing.assert_equal(select_sites(floats, cell=100, product="dynamic-world"), by_product)


def test_a_name_stands_for_all_codes_of_its_group():
    codes = np.array([[111, 126], [121, 200]]).repeat(5, 0).repeat(5, 1)
    sites = select_sites(
        make_map(codes), cell=1000, least_valid=0, product="copernicus-100m", classes=["tree"]
    )
    assert float(sites["share"][0]) == 0.75


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"product": None}, ConfigError, "the map has no legend; give product"),
        ({"product": "dynamic-wold"}, ConfigError, "dynamic-world"),
        ({"classes": ("forest",)}, ConfigError, "'forest' is not in the legend .* 1 tree"),
        ({"classes": (12,)}, ConfigError, "12 is not in the legend"),
        ({"classes": ()}, ConfigError, "at least one class"),
        ({"preferred": "maize"}, ConfigError, "'maize' is not in the legend"),
        ({"per_cell": 0}, ConfigError, "per_cell"),
        ({"least_share": 50}, ConfigError, "least_share: expected a share"),
        ({"draw": "random"}, ConfigError, "draw: expected one of"),
        ({"cell": 12}, GridError, "smaller than a pixel"),
        ({"cell": -5}, ConfigError, "cell: expected a positive"),
        ({"product": "esa-worldcover"}, SchemaError, "code 1, which is no class of esa-worldcover"),
    ],
)
def test_arguments_that_make_no_sense(change, error, message):
    landcover = make_map(np.full((10, 10), TREE))
    with pytest.raises(error, match=message):
        select_sites(landcover, **{"cell": 100, "product": "dynamic-world"} | change)


def test_fill_values_never_count_as_a_class():
    codes = random_codes()
    with pytest.raises(ConfigError, match="uint8 without nodata"):
        select_sites(make_map(codes, nodata=None), cell=100, product="dynamic-world")
    with pytest.raises(ConfigError, match="nodata 0 is the class 'water'"):
        select_sites(make_map(codes, nodata=0), cell=100, product="dynamic-world")
    arguments = {"cell": 100, "classes": (1, 2, 4), "draw": "cell"}
    expected = select_sites(make_map(codes), **arguments)
    arguments |= {"classes": (1, 2, 4, MISSING), "preferred": MISSING}
    xr.testing.assert_equal(select_sites(make_map(codes), **arguments), expected)
    # ESA WorldCover defines its own.
    worldcover = np.where(codes == MISSING, 0, 10)
    sites = select_sites(make_map(worldcover, nodata=None), cell=100, product="esa-worldcover")
    assert (sites["share"] == 1).all()


def test_where_nothing_is_kept_the_best_share_is_told():
    codes = np.full((10, 20), WATER)
    codes[:5, :10] = TREE
    landcover = make_map(codes, box=(500_000, 5_600_000), resolution=10)
    with pytest.raises(NoDataError, match=r"more than 50% of the classes 1, 2, 4; the best has 50"):
        select_sites(landcover, cell=100, product="dynamic-world")
    assert select_sites(landcover, cell=100, product="dynamic-world", least_share=0.49).site.size
    with pytest.raises(NoDataError, match="no cell of 100 has a class in 50% of its pixels"):
        select_sites(make_map(np.full((9, 9), MISSING)), cell=100, product="dynamic-world")


@pytest.mark.parametrize("box", [(179.9, 0, 180, 0.1), (350, 0, 370, 1), (0, 89.9, 0.1, 90)])
def test_no_cell_crosses_a_pole_or_the_antimeridian(box):
    landcover = to_map(
        np.full((20, 20), 1, "u1"), GeoBox.from_bbox(box, "EPSG:4326", shape=(20, 20))
    )
    with pytest.raises(GridError, match="a pole or the antimeridian"):
        select_sites(landcover, cell=10_000, product="dynamic-world")


def test_a_map_in_feet_is_refused():
    # State plane of Long Island in US survey feet: 1000 of them are 305 m.
    landcover = make_map(random_codes(), box=(980_000, 190_000), crs="EPSG:2263")
    with pytest.raises(GridError, match=r"cell: .*metres.*Long Island.*US survey foot; reproject"):
        select_sites(landcover, cell=1000, product="dynamic-world")


def test_a_stack_of_maps_is_refused():
    landcover = make_map(random_codes()).expand_dims(time=2)
    with pytest.raises(ConfigError, match=r"expected one map \(y, x\)"):
        select_sites(landcover, cell=100, product="dynamic-world")


def test_regions_are_merged_under_their_names():
    one = select_sites(make_map(random_codes()), cell=100, product="dynamic-world")
    two = one.isel(site=slice(3))
    merged = merge_sites({"india": one, "china": two})
    n = one.sizes["site"]
    assert merged["network"].values.tolist() == ["india"] * n + ["china"] * 3
    assert merged["site"].values[n] == f"china/{one['site'].values[0]}"
    assert merged.indexes["site"].is_unique
    np.testing.assert_array_equal(merged["longitude"][n:], two["longitude"])
    np.testing.assert_array_equal(merged["share"][:n], one["share"])
    with pytest.raises(ConfigError, match="no sites to merge"):
        merge_sites({})
