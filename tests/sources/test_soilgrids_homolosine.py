"""SoilGrids where its projection is awkward: every lobe, its interruptions, and VRTs over HTTP."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from smgrid.catalog import SourceSpec
from smgrid.errors import SourceError
from smgrid.grid import make_grid, pixel_centres
from smgrid.sources import load_source
from smgrid.windows import Period
from tests.builders import write_cog

PERIOD = Period.parse("2024")
HOMOLOSINE = "ESRI:54052"
PIXEL = 250.0
SIZE = 80
# Goode (1925): a sinusoidal projection up to this latitude, Mollweide's beyond it, on a sphere.
JUNCTION = np.radians(40 + 44 / 60 + 11.8 / 3600)
RADIUS = 6_378_137.0
LOBES_NORTH = [(-180, -40, -100), (-40, 180, 30)]
LOBES_SOUTH = [(-180, -100, -160), (-100, -20, -60), (-20, 80, 20), (80, 180, 140)]


def mollweide_angle(lat):
    """Solve 2 t + sin 2 t = pi sin(lat) by bisection."""
    low, high = np.zeros_like(lat), np.full_like(lat, np.pi / 2)
    for _ in range(60):
        middle = (low + high) / 2
        is_low = 2 * middle + np.sin(2 * middle) < np.pi * np.sin(lat)
        low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
    return low


def homolosine(lon, lat):
    """Project by Goode's formulas, without PROJ."""
    lon, lat = np.atleast_1d(lon).astype(float), np.atleast_1d(lat).astype(float)
    centre = np.empty_like(lon)
    for is_south, lobes in ((False, LOBES_NORTH), (True, LOBES_SOUTH)):
        for west, east, middle in lobes:
            centre[(lon > west) & (lon <= east) & ((lat < 0) == is_south)] = middle
    phi, offset = np.radians(np.abs(lat)), np.radians(lon - centre)
    angle = mollweide_angle(phi)
    shift = np.sqrt(2) * np.sin(mollweide_angle(np.array([JUNCTION]))) - JUNCTION
    is_sinusoidal = phi <= JUNCTION
    x = np.where(
        is_sinusoidal, offset * np.cos(phi), 2 * np.sqrt(2) / np.pi * offset * np.cos(angle)
    )
    y = np.where(is_sinusoidal, phi, np.sqrt(2) * np.sin(angle) - shift)
    return RADIUS * (np.radians(centre) + x), RADIUS * np.copysign(y, lat)


def lattice(lon, lat):
    """Return SIZE x SIZE pixels around a place, on SoilGrids' lattice of 250 m."""
    x, y = (float(part[0]) for part in homolosine(lon, lat))
    left = PIXEL * (np.floor(x / PIXEL) - SIZE // 2)
    top = PIXEL * (np.floor(y / PIXEL) + SIZE // 2)
    bounds = (left, top - SIZE * PIXEL, left + SIZE * PIXEL, top)
    return GeoBox.from_bbox(bounds, HOMOLOSINE, resolution=PIXEL)


def spec(sand, clay, **changes):
    fields = {
        "name": "soil",
        "loader": "smgrid.sources.soilgrids:load",
        "provides": ("sand", "clay"),
        "assets": {"sand": str(sand), "clay": str(clay)},
        "units": {"sand": "g/kg", "clay": "g/kg"},
        "nodata": -32768,
        "native_resolution": PIXEL,
        "crs": HOMOLOSINE,
        "origin": "test.yml, line 9",
    }
    return SourceSpec(**(fields | changes))


def numbered(folder, native, name=""):
    """Write rasters that hold the number of the row and of the column."""
    rows, cols = (part.astype("int16") for part in np.indices(native.shape))
    return (
        write_cog(folder / f"{name}row.tif", rows, native, nodata=-32768),
        write_cog(folder / f"{name}col.tif", cols, native, nodata=-32768),
    )


def expected_pixels(grid, native):
    """Rows and columns by the formulas; -1 beyond the raster or too near to a border to tell."""
    x, y = homolosine(*(part.ravel() for part in pixel_centres(grid, "EPSG:4326")))
    row = (native.boundingbox.top - y) / PIXEL
    col = (x - native.boundingbox.left) / PIXEL
    is_clear = np.ones(row.shape, bool)
    for position in (row, col):
        is_clear &= abs(position - np.round(position)) > 1e-3
        is_clear &= (position > 0) & (position < SIZE)
    found = [np.where(is_clear, np.floor(part), -1).reshape(grid.shape) for part in (row, col)]
    return found[0], found[1]


def assert_in_place(ds, grid, native, *, share):
    row, col = expected_pixels(grid, native)
    is_clear = row >= 0
    assert is_clear.mean() > share
    np.testing.assert_array_equal(ds["sand"].values[is_clear], row[is_clear])
    np.testing.assert_array_equal(ds["clay"].values[is_clear], col[is_clear])


def test_the_formulas_are_those_of_the_projection():
    lon, lat = np.meshgrid(np.linspace(-179, 179, 72), np.linspace(-56, 83, 47))
    x, y = Transformer.from_crs("EPSG:4326", HOMOLOSINE, always_xy=True).transform(lon, lat)
    found_x, found_y = homolosine(lon.ravel(), lat.ravel())
    # PROJ's shift between the two projections is rounded to seven digits.
    np.testing.assert_allclose(found_x, x.ravel(), atol=0.01)
    np.testing.assert_allclose(found_y, y.ravel(), atol=0.5)


def test_a_known_corner_computed_by_hand(tmp_path):
    # Hanoi, 105.85 E 21.03 N, in the sinusoidal part of the lobe whose meridian is 30 E:
    # x = R (30 + 75.85 cos 21.03) pi / 180, y = R 21.03 pi / 180.
    corner_x, corner_y = 44_883 * PIXEL, 9_364 * PIXEL
    native = GeoBox.from_bbox(
        (corner_x - 5000, corner_y - 5000, corner_x + 5000, corner_y + 5000),
        HOMOLOSINE,
        resolution=PIXEL,
    )
    sand = np.full(native.shape, 100, "int16")
    sand[20:, 20:] = 900  # south-east of the corner
    path = write_cog(tmp_path / "sand.tif", sand, native)
    lat = np.degrees(corner_y / RADIUS)
    lon = 30 + np.degrees(corner_x / RADIUS - np.radians(30)) / np.cos(np.radians(lat))
    assert (round(lon, 2), round(lat, 2)) == (105.85, 21.03)
    grid = make_grid(bbox=(lon - 0.01, lat - 0.01, lon + 0.01, lat + 0.01), resolution=10)
    entry = spec(path, path, provides=("sand",))
    found = load_source(entry, grid, PERIOD)["sand"].compute()
    to_grid = Transformer.from_crs("EPSG:4326", grid.crs.proj, always_xy=True)
    metre = 1 / 111_195
    for north, east, value in ((-8, 12, 900), (8, 8, 100), (-8, -18, 100), (8, -12, 100)):
        # West is more to the west the farther south: the sinusoidal meridians lean here.
        x, y = to_grid.transform(lon + east * metre, lat + north * metre)
        assert found.sel(x=x, y=y, method="nearest").item() == value, (north, east)


@settings(max_examples=8, deadline=None)
@given(lon=st.floats(-179.8, 179.8), lat=st.floats(-55.5, 79.5))
def test_every_cell_gets_its_pixel_anywhere(tmp_path_factory, lon, lat):
    native = lattice(lon, lat)
    paths = numbered(tmp_path_factory.mktemp("soil"), native)
    grid = make_grid(bbox=(lon - 0.02, lat - 0.01, lon + 0.02, lat + 0.01), resolution=150)
    ds = load_source(spec(*paths), grid, PERIOD).compute()
    # Next to an interruption half of the cells may lie in another lobe.
    assert_in_place(ds, grid, native, share=0.3)


@pytest.fixture
def two_lobes(file_server, tmp_path_factory):
    """A VRT of two tiles, one on each side of the interruption at 40 W in Greenland, on HTTP."""
    folder = file_server.folder / tmp_path_factory.mktemp("vrt").name
    tiles = {name: lattice(lon, 65.0) for name, lon in (("west", -40.05), ("east", -39.95))}
    for name, native in tiles.items():
        numbered(folder / "tiles", native, name)

    def write(crs):
        for band in ("row", "col"):
            (folder / f"{band}.vrt").write_text(vrt(tiles, band, crs))
        url = f"{file_server.url}/{folder.name}"
        return f"{url}/row.vrt", f"{url}/col.vrt"

    return write, tiles


def vrt(tiles, band, crs):
    """Return a VRT as SoilGrids has them, with paths relative to itself."""
    left = min(box.boundingbox.left for box in tiles.values())
    right = max(box.boundingbox.right for box in tiles.values())
    top = next(iter(tiles.values())).boundingbox.top
    width = round((right - left) / PIXEL)
    sources = "".join(
        f'<ComplexSource><SourceFilename relativeToVRT="1">./tiles/{name}{band}.tif'
        "</SourceFilename><SourceBand>1</SourceBand>"
        f'<SrcRect xOff="0" yOff="0" xSize="{SIZE}" ySize="{SIZE}"/>'
        f'<DstRect xOff="{round((box.boundingbox.left - left) / PIXEL)}" yOff="0" '
        f'xSize="{SIZE}" ySize="{SIZE}"/><NODATA>-32768</NODATA></ComplexSource>'
        for name, box in tiles.items()
    )
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{SIZE}">{crs}'
        f"<GeoTransform>{left}, {PIXEL}, 0, {top}, 0, {-PIXEL}</GeoTransform>"
        '<VRTRasterBand dataType="Int16" band="1"><NoDataValue>-32768</NoDataValue>'
        f"{sources}</VRTRasterBand></VRTDataset>"
    )


NAMELESS = '<SRS>LOCAL_CS["Homolosine",UNIT["metre",1]]</SRS>'
OTHER = "<SRS>EPSG:3857</SRS>"


@pytest.mark.parametrize("crs", ["", NAMELESS, OTHER], ids=["none", "a name", "a wrong one"])
def test_a_vrt_over_http_that_names_its_crs_badly(two_lobes, crs):
    write, tiles = two_lobes
    # The grid reaches over 40 W, where two neighbouring cells are 6900 km apart in Homolosine.
    grid = make_grid(bbox=(-40.06, 64.98, -39.94, 65.02), resolution=200)
    ds = load_source(spec(*write(crs)), grid, PERIOD).compute()
    for native in tiles.values():
        assert_in_place(ds, grid, native, share=0.4)


@pytest.mark.parametrize(
    ("crs", "message"),
    [("", "has no CRS"), (NAMELESS, "names its CRS 'Homolosine', which says not where its pixels")],
)
def test_a_vrt_without_a_place_is_refused(two_lobes, crs, message):
    write, _ = two_lobes
    grid = make_grid(bbox=(-40.06, 64.98, -39.94, 65.02), resolution=200)
    with pytest.raises(SourceError, match=rf"row\.vrt {message}"):
        load_source(spec(*write(crs), crs=None), grid, PERIOD)


def test_area_means_beside_an_interruption(two_lobes):
    write, tiles = two_lobes
    grid = make_grid(bbox=(-40.06, 64.98, -39.94, 65.02), resolution=1000)
    ds = load_source(spec(*write("")), grid, PERIOD).compute()
    lon, _ = pixel_centres(grid, "EPSG:4326")
    away = abs(lon + 40) > 0.025
    for native in tiles.values():
        row, col = expected_pixels(grid, native)
        seen = away & (row >= 4) & (row < SIZE - 4) & (col >= 4) & (col < SIZE - 4)
        assert seen.sum() > 5
        np.testing.assert_allclose(ds["sand"].values[seen], row[seen], atol=1.6)
        np.testing.assert_allclose(ds["clay"].values[seen], col[seen], atol=1.6)
