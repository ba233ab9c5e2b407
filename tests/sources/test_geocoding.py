"""Range and Doppler: places of real and written images."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from odc.geo.geobox import GeoBox

from smgrid.errors import MissingDependencyError
from smgrid.grid import make_grid, pixel_centres
from smgrid.sources.annotation import parse_annotation
from smgrid.sources.geocoding import (
    Geoid,
    _ground_range,
    _to_ecef,
    image_position,
    position_field,
    require_sarsen,
    sample_image,
)
from smgrid.sources.safe import read_xml
from tests.safe_scene import Scene, ramps
from tests.sources.real_products import ANNOTATIONS, open_real

REAL = [pair for pair in ANNOTATIONS if pair[1] == "vv"]
OLD = REAL[0]


def ecef(longitude, latitude, height):
    height = np.broadcast_to(height, np.shape(longitude))
    return np.stack(_to_ecef().transform(longitude, latitude, height))


def read(scene):
    return parse_annotation(ET.fromstring(scene.annotation("vv")), source="test")


@pytest.mark.shared
@pytest.mark.parametrize(("name", "polarisation"), REAL)
def test_annotated_places_lie_on_their_lines(shared, name, polarisation):
    """With the heights of the annotation, at sea and in the Alps.

    The state vectors of 2015 are 1.7 m off those that the processor used. In range the annotated
    points hold the polynomials of the next update, 0.1 s away, so that they differ from the
    interpolated ones by up to 1.5 pixels where terrain changes them fast; the last line of 2015
    lies beyond the last update.
    """
    annotation = open_real(shared, name).read_annotation(polarisation)
    grid = annotation.grid
    line, pixel = image_position(annotation, ecef(grid.longitude, grid.latitude, grid.height))
    off_line, off_pixel = line - grid.line[:, np.newaxis], pixel - grid.pixel
    assert np.abs(off_line).max() < (0.2 if name == OLD[0] else 0.03)
    assert np.ptp(off_line) < 0.03, "the residual of the bistatic correction is taken off"
    assert np.abs(off_pixel[:-1]).max() < 1.6
    assert off_pixel.std() < 0.5


@pytest.mark.shared
@pytest.mark.parametrize(("name", "polarisation"), REAL)
def test_ground_range_inverts_the_annotated_polynomials(shared, name, polarisation):
    """At the time of an update itself the annotated points follow to 0.01 pixel."""
    annotation = open_real(shared, name).read_annotation(polarisation)
    grid, ranges = annotation.grid, annotation.ranges
    rows = grid.azimuth_time[:, 0] <= ranges.time[-1]
    following = np.searchsorted(ranges.time, grid.azimuth_time[rows])
    distance = grid.slant_range_time[rows] * 299_792_458.0 / 2
    width = annotation.spacing[1] * (annotation.shape[1] - 1)
    found = _ground_range(ranges, ranges.time[following], distance, width)
    np.testing.assert_allclose(
        found / annotation.spacing[1], np.broadcast_to(grid.pixel, found.shape), atol=0.01
    )


@pytest.mark.shared
@pytest.mark.parametrize(("name", "polarisation"), REAL[1:])
def test_ground_range_against_xarray_sentinel(shared, name, polarisation):
    """Between updates; the polynomials in its direction are fits, good to 0.01 pixel since 2018."""
    import xarray as xr
    from xarray_sentinel.sentinel1 import slant_range_time_to_ground_range

    product = open_real(shared, name)
    annotation = product.read_annotation(polarisation)
    path = "coordinateConversion/coordinateConversionList/coordinateConversion"
    nodes = read_xml(product.annotation[polarisation], sign="none", origin="").findall(path)
    conversion = xr.Dataset(
        {
            "sr0": ("azimuth_time", [float(n.findtext("sr0")) for n in nodes]),
            "srgrCoefficients": (
                ("azimuth_time", "degree"),
                [[float(v) for v in n.findtext("srgrCoefficients").split()] for n in nodes],
            ),
        },
        coords={"azimuth_time": annotation.ranges.time, "degree": range(9)},
    )
    rng = np.random.default_rng(0)
    seconds = rng.uniform(3, 20, (1, 200))
    time = annotation.ranges.time[0] + (seconds * 1e9).astype("timedelta64[ns]")
    spans = annotation.grid.slant_range_time
    tau = rng.uniform(spans.min() * 1.001, spans.max() * 0.999, (1, 200))
    expected = slant_range_time_to_ground_range(
        xr.DataArray(time, dims=("y", "x")), xr.DataArray(tau, dims=("y", "x")), conversion
    )
    width = annotation.spacing[1] * (annotation.shape[1] - 1)
    found = _ground_range(annotation.ranges, time, tau * 299_792_458.0 / 2, width)
    np.testing.assert_allclose(found, expected.values, atol=1.5)


@pytest.mark.parametrize("height", [0.0, 700.0, 3000.0])
def test_a_written_image_by_elementary_geometry(height):
    scene = Scene(ramps())
    rng = np.random.default_rng(0)
    line, pixel = rng.uniform(0, 359, (4, 30)), rng.uniform(0, 399, (4, 30))
    found = image_position(read(scene), ecef(*scene.place(line, pixel, height), height))
    np.testing.assert_allclose(found[0], line, atol=1e-3)
    np.testing.assert_allclose(found[1], pixel, atol=1e-3)


def test_far_from_an_image_there_is_no_position():
    scene = Scene(ramps())
    longitude, latitude = scene.place(180.0, 200.0)
    away = np.array([[0.0, 0.3, -0.3, 8.0, 0.0, 0.0]])
    north = np.array([[0.0, 0.0, 0.0, 0.0, 1.0, -20.0]])
    line, pixel = image_position(read(scene), ecef(longitude + away, latitude + north, 0.0))
    known = np.isfinite(line) & np.isfinite(pixel)
    assert known.tolist() == [[True, False, False, False, False, False]]


@pytest.mark.shared
@pytest.mark.parametrize("crs", ["utm", "EPSG:4326", "EPSG:3035"])
def test_the_field_is_exact_between_its_nodes(shared, crs):
    annotation = open_real(shared, *ANNOTATIONS[-1:][0][:1]).read_annotation("vv")
    resolution = 10 if crs != "EPSG:4326" else 1e-4
    grid = make_grid((12.4, 41.7, 12.6, 41.9), resolution=resolution, crs=crs)
    field = position_field(annotation, grid, heights=(-20.0, 3100.0))
    rows, columns = slice(300, 340), slice(900, 960)
    height = np.random.default_rng(0).uniform(-20, 3100, (40, 60))
    height[3, 4] = np.nan
    line, pixel = field.interpolate(rows, columns, height)
    places = pixel_centres(grid[rows, columns], "EPSG:4326")
    expected = image_position(annotation, ecef(*places, np.nan_to_num(height)))
    assert np.isnan(line[3, 4])
    assert np.isnan(pixel[3, 4])
    known = np.isfinite(height)
    np.testing.assert_allclose(line[known], expected[0][known], atol=0.002)
    np.testing.assert_allclose(pixel[known], expected[1][known], atol=0.02)


def geoid_of(value, crs="EPSG:4326"):
    grid = GeoBox.from_bbox((-10, 40, 20, 60), crs, resolution=1.0)
    x = grid.coordinates["longitude" if crs == "EPSG:4326" else "x"].values
    return Geoid(grid, np.broadcast_to(value(x), grid.shape).astype("float32"))


def test_heights_above_the_geoid_count_from_it():
    scene = Scene(ramps())
    longitude, latitude = (float(v) for v in scene.place(180.0, 200.0))
    box = (longitude - 0.003, latitude - 0.003, longitude + 0.003, latitude + 0.003)
    grid = make_grid(box, resolution=10)
    whole = slice(0, grid.shape.y), slice(0, grid.shape.x)
    geoid = position_field(read(scene), grid, heights=(0, 10), geoid=geoid_of(lambda x: 40 + 0 * x))
    plain = position_field(read(scene), grid, heights=(0, 100))
    above = geoid.interpolate(*whole, np.full(grid.shape, 5.0))
    expected = plain.interpolate(*whole, np.full(grid.shape, 45.0))
    np.testing.assert_allclose(above, expected, atol=1e-3)


def test_a_geoid_is_bilinear_between_pixel_centres():
    geoid = geoid_of(lambda x: 10 * x)
    found = geoid.sample(np.array([4.5, 5.0, 5.25]), np.array([50.0, 50.5, 51.3]))
    np.testing.assert_allclose(found, [45.0, 50.0, 52.5], atol=1e-4)


def test_samples_of_an_image():
    image = np.array([[1, 2, np.nan], [5, 6, 7]], dtype="float32")
    line, pixel = np.array([0.0, 0.5, 0.0, 1.0, 0.25]), np.array([1.0, 0.5, 1.5, 1.5, 1.0])
    found = sample_image(image, line, pixel)
    np.testing.assert_allclose(found, [2.0, 3.5, np.nan, 6.5, 3.0])


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'smgrid\[safe\]'"):
        require_sarsen()
