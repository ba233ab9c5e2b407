"""Calibration and noise against the real tables, and borders."""

import xml.etree.ElementTree as ET
import zipfile

import numpy as np
import pytest
import xarray as xr

from smgrid.errors import SourceError
from smgrid.sources.calibration import (
    BORDER_DEPTH,
    Noise,
    Table,
    extend_to_border,
    mask_border,
    parse_calibration,
    parse_noise,
    to_sigma0,
)
from tests.safe_scene import Scene, ramps
from tests.sources.real_products import TABLES, open_real, real_file

OLD, NEW = TABLES[0], TABLES[-1]


def real_xml(shared, name, polarisation, kind):
    with zipfile.ZipFile(real_file(shared, name)) as archive:
        member = next(
            m for m in archive.namelist() if f"/{kind}-" in m and f"-{polarisation}-" in m
        )
        return ET.fromstring(archive.read(member))


def extract(shared, tmp_path, name, polarisation, kind):
    with zipfile.ZipFile(real_file(shared, name)) as archive:
        member = next(
            m for m in archive.namelist() if f"/{kind}-" in m and f"-{polarisation}-" in m
        )
        return archive.extract(member, tmp_path)


def numbers(element, tag):
    return [float(value) for value in element.findtext(tag).split()]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "polarisation"), TABLES)
def test_calibration_is_exact_at_the_nodes_of_real_tables(shared, name, polarisation):
    root = real_xml(shared, name, polarisation, "calibration")
    table = parse_calibration(root, source="test")
    vectors = root.findall("calibrationVectorList/calibrationVector")
    assert table.line.size == len(vectors) == 27
    for vector in vectors[:2] + vectors[-3:]:
        line = int(vector.findtext("line"))
        pixel, values = numbers(vector, "pixel"), numbers(vector, "sigmaNought")
        row = table.interpolate((slice(line, line + 1), slice(0, int(pixel[-1]) + 1)))[0]
        np.testing.assert_array_equal(row[np.array(pixel, int)], values)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "polarisation"), TABLES)
def test_sigma0_against_xarray_sentinel(shared, tmp_path, name, polarisation):
    from xarray_sentinel.sentinel1 import calibrate_intensity, open_calibration_dataset

    tables = open_calibration_dataset(extract(shared, tmp_path, name, polarisation, "calibration"))
    window = slice(660, 700), slice(8870, 8930)
    values = np.random.default_rng(0).integers(1, 900, (40, 60)).astype("uint16")
    coords = {
        dim: np.arange(w.start, w.stop) for dim, w in zip(("line", "pixel"), window, strict=True)
    }
    image = xr.DataArray(values.astype("float64"), dims=("line", "pixel"), coords=coords)
    expected = calibrate_intensity(image, tables["sigmaNought"])
    calibration = parse_calibration(
        real_xml(shared, name, polarisation, "calibration"), source="test"
    )
    silence = Noise(Table(np.array([0, 1]), [np.array([0.0])] * 2, [np.array([0.0])] * 2), ())
    found = to_sigma0(values, window, calibration=calibration, noise=silence)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "polarisation"), TABLES[2:])
def test_new_noise_is_range_times_azimuth_in_each_swath(shared, tmp_path, name, polarisation):
    from xarray_sentinel.sentinel1 import open_noise_range_dataset

    root = real_xml(shared, name, polarisation, "noise")
    noise = parse_noise(root, source="test")
    shape = open_real(shared, name).read_annotation(polarisation).shape
    assert noise.masks_border
    along_range = open_noise_range_dataset(extract(shared, tmp_path, name, polarisation, "noise"))
    blocks = root.findall("noiseAzimuthVectorList/noiseAzimuthVector")
    assert [block.findtext("swath") for block in blocks] == ["IW1", "IW2", "IW3"]
    covered = 0
    for block in blocks:
        line, factor = numbers(block, "line"), numbers(block, "noiseAzimuthLut")
        first, last = (int(block.findtext(f"{end}RangeSample")) for end in ("first", "last"))
        covered += last + 1 - first
        for k in (0, len(line) // 2, len(line) - 1):
            window = slice(int(line[k]), int(line[k]) + 1), slice(first, last + 1)
            expected = along_range["noiseRangeLut"].interp(
                line=line[k], pixel=np.arange(first, last + 1)
            )
            found = noise.interpolate(window)[0]
            np.testing.assert_allclose(found, expected * factor[k], rtol=1e-5, atol=1e-3)
    assert covered == shape[1], "every pixel is in one swath"
    corner = slice(shape[0] - 30, shape[0]), slice(shape[1] - 30, shape[1])
    assert np.isfinite(noise.interpolate(corner)).all()


@pytest.mark.shared
def test_noise_between_nodes_is_bilinear(shared):
    noise = parse_noise(real_xml(shared, *NEW, "noise"), source="test")
    table = noise.along_range
    line, pixel = int((table.line[3] + table.line[4]) / 2), 20
    share = (line - table.line[3]) / (table.line[4] - table.line[3])
    middle = [(table.values[k][0] + table.values[k][1]) / 2 for k in (3, 4)]
    expected = (1 - share) * middle[0] + share * middle[1]
    found = table.interpolate((slice(line, line + 1), slice(pixel, pixel + 1)))
    assert found.item() == pytest.approx(expected)


@pytest.mark.shared
def test_old_noise_has_one_table_and_that_of_2015_is_empty(shared):
    noise = parse_noise(real_xml(shared, *OLD, "noise"), source="test")
    assert not noise.masks_border
    assert noise.along_range.line.size == 27
    assert (noise.interpolate((slice(16600, 16685), slice(25300, 25357))) == 0).all()


@pytest.mark.shared
def test_windows_agree_where_they_overlap(shared):
    noise = parse_noise(real_xml(shared, *NEW, "noise"), source="test")
    whole = noise.interpolate((slice(600, 1400), slice(8800, 9000)))
    part = noise.interpolate((slice(667, 669), slice(8889, 8891)))
    np.testing.assert_array_equal(whole[67:69, 89:91], part)


def constant(value, lines=(0, 100)):
    pixel = np.array([0.0, 99.0])
    return Table(np.array(lines), [pixel] * len(lines), [np.full(2, float(value))] * len(lines))


def test_sigma0_by_hand_and_what_has_no_value():
    values = np.array([[0, 30, 100, 50]], dtype="uint16")
    window = slice(10, 11), slice(4, 8)
    found = to_sigma0(values, window, calibration=constant(500), noise=Noise(constant(2500), ()))
    expected = [np.nan, (900 - 2500) / 250_000, (10_000 - 2500) / 250_000, 0.0]
    np.testing.assert_allclose(found[0], np.float32(expected), rtol=1e-6)


def test_a_table_keeps_its_values_beyond_its_nodes():
    table = Table(np.array([10, 20]), [np.array([5.0, 15.0])] * 2, [np.array([1.0, 2.0])] * 2)
    found = table.interpolate((slice(8, 23, None), slice(3, 18)))
    assert found[0, 0] == found[2, 2] == 1.0
    assert found[-1, -1] == 2.0


def test_vectors_may_have_different_pixels():
    table = Table(
        np.array([0, 2]),
        [np.array([0.0, 4.0]), np.array([0.0, 2.0, 4.0])],
        [np.array([0.0, 4.0]), np.array([0.0, 20.0, 0.0])],
    )
    found = table.interpolate((slice(1, 2), slice(0, 5)))[0]
    np.testing.assert_allclose(found, [0, 5.5, 11, 6.5, 2])


@pytest.mark.parametrize("parse", [parse_calibration, parse_noise])
def test_another_document_is_refused(parse):
    with pytest.raises(SourceError, match=r"c.xml: its 0 vectors of \w+ are no table"):
        parse(ET.fromstring("<product/>"), source="c.xml")


def test_a_vector_of_wrong_length_is_refused():
    text = Scene(ramps()).calibration()
    shorter = text.replace("500.0 500.0", "500.0", 1)
    with pytest.raises(SourceError, match="no table with increasing lines"):
        parse_calibration(ET.fromstring(shorter), source="c.xml")


def test_a_damaged_block_of_noise_is_refused():
    text = Scene(ramps()).noise_table().replace("<noiseAzimuthLut>2.0 2.0", "<noiseAzimuthLut>2.0")
    with pytest.raises(SourceError, match="a block of noise along azimuth"):
        parse_noise(ET.fromstring(text), source="n.xml")


def bordered(shape=(2600, 2700), seed=0):
    """An image with a slanted strip of small values on the left and one at the top."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape, sparse=True)
    strip = (columns < 140 + rows // 20) | (rows < 35)
    looks = 4.4
    land = 220 * np.sqrt(rng.gamma(looks, 1 / looks, shape))
    weak = np.minimum(rng.exponential(8.0, shape), 60.0)
    return np.where(strip, weak, land).astype("uint16"), np.broadcast_to(strip, shape)


SILENCE = Noise(constant(0, (0, 5000)), ())


def test_a_strip_of_border_noise_is_masked_and_the_image_kept():
    image, strip = bordered()
    whole = slice(0, image.shape[0]), slice(0, image.shape[1])
    masked = mask_border(image, whole, image.shape, noise=SILENCE)
    assert masked[strip].mean() > 0.9999
    # The right edge begins a run at every line: single dark samples may go.
    assert masked[~strip].mean() < 1e-5


def test_the_mask_does_not_depend_on_the_window():
    image, _ = bordered()
    shape = image.shape
    whole = mask_border(image, (slice(0, shape[0]), slice(0, shape[1])), shape, noise=SILENCE)
    for rows, columns in [
        (slice(700, 900), slice(100, 300)),
        (slice(2200, 2500), slice(1990, 2010)),
        (slice(10, 50), slice(600, 700)),
        (slice(2500, 2600), slice(2600, 2700)),
    ]:
        wider = extend_to_border((rows, columns), shape)
        part = mask_border(image[wider], wider, shape, noise=SILENCE)
        inner = part[
            rows.start - wider[0].start : rows.stop - wider[0].start,
            columns.start - wider[1].start : columns.stop - wider[1].start,
        ]
        np.testing.assert_array_equal(inner, whole[rows, columns])


def test_dark_water_inside_the_image_stays():
    image = np.full((60, 400), 200, dtype="uint16")
    image[20:40, 100:150] = 5
    image[:, :50] = 5
    whole = slice(0, 60), slice(0, 400)
    masked = mask_border(image, whole, image.shape, noise=SILENCE)
    assert masked[:, :50].all()
    assert not masked[:, 50:].any()


def test_no_more_than_the_border_is_masked():
    image = np.full((BORDER_DEPTH * 3, BORDER_DEPTH * 2 + 50), 5, dtype="uint16")
    window = slice(BORDER_DEPTH, BORDER_DEPTH + 40), slice(0, image.shape[1])
    assert extend_to_border(window, image.shape) == window
    masked = mask_border(image[window], window, image.shape, noise=SILENCE)
    assert masked[:, :BORDER_DEPTH].all()
    assert masked[:, -BORDER_DEPTH:].all()
    assert not masked[:, BORDER_DEPTH:-BORDER_DEPTH].any()


def test_noise_is_taken_off_before_the_border_is_sought():
    image = np.full((60, 300), 200, dtype="uint16")
    image[:, :50] = 120
    whole = slice(0, 60), slice(0, 300)
    loud = Noise(constant(120.0**2, (0, 100)), ())
    assert not mask_border(image, whole, image.shape, noise=SILENCE).any()
    assert mask_border(image, whole, image.shape, noise=loud)[:, :50].all()
