import numpy as np
import pandas as pd
import pytest
from odc.geo.geobox import GeoBox

from smgrid.features.assemble import Block, SeriesBlock, block_features, required_variables
from smgrid.features.layout import get_layout
from smgrid.windows import one_year_windows

PUBLISHED_COLUMNS = np.r_[0:12, 15:153]  # 12-14 are the location, tested with the grid


def one_pixel(golden, row):
    """The inputs of the published preparation code as a block of one pixel."""
    composites = pd.DatetimeIndex(golden["ndvi_dates"])
    days = pd.DatetimeIndex(golden["weather_dates"])
    time = pd.Timestamp(str(golden["acq"][row]))
    windows = one_year_windows(
        pd.DatetimeIndex([time]), composites=composites, days=days, rule="published"
    )
    names = ("sand", "clay", "bdod", "elevation", "slope", "aspect_sin", "aspect_cos")
    values = dict(zip(names, golden["aux"], strict=False))
    values |= {n: golden[k][row] for n, k in (("vv", "VV"), ("vh", "VH"), ("angle", "angle"))}
    c, d = int(windows.composite_start[0]), int(windows.day_start[0])
    cell = np.zeros(1, np.int64)

    def series(values):
        return SeriesBlock(np.float32(values)[:, None, None], cell, cell)

    return Block(
        time=time,
        grid=GeoBox.from_bbox((0, 0, 100, 100), "EPSG:32648", resolution=100),
        values={k: np.full((1, 1), v, np.float32) for k, v in values.items()},
        series={
            "ndvi": series(golden["ndvi"][c : c + 46] / 1e4),
            "t2m": series(golden["t2m"][d : d + 368]),
            "tp": series(golden["tp"][d : d + 368]),
        },
    )


@pytest.mark.shared
def test_published_layout_reproduces_the_published_preparation(shared):
    """Columns of every sample that the published code could make, to single precision."""
    from dataclasses import replace

    golden = np.load(shared / "reference/golden/prep_golden.npz")
    layout = replace(get_layout("published"), aspect="components")  # as the golden input has it
    ok = np.flatnonzero(golden["rszlj_8day_mean_timestamp_status"] == "ok")
    assert len(ok) >= 6
    for row in ok:
        features = block_features(one_pixel(golden, row), layout)
        expected = golden["rszlj_8day_mean_timestamp"][row]
        np.testing.assert_allclose(
            features.rows()[0, PUBLISHED_COLUMNS], expected[PUBLISHED_COLUMNS], atol=2e-6
        )


def test_sum_mean_and_first_of_a_weather_block():
    from smgrid.features.assemble import _block_steps

    days = np.arange(368, dtype=np.float32).reshape(368, 1, 1)
    for block, first in (("first", 0.0), ("mean", 3.5), ("sum", 28.0)):
        steps = _block_steps(days, block, 46)
        assert steps.shape == (46, 1, 1)
        assert steps[0, 0, 0] == first
    assert _block_steps(days, "mean", 46)[-1, 0, 0] == 363.5


def test_required_variables_are_those_of_the_cube():
    assert required_variables(get_layout("released-9km")) == (
        *("vv", "vh", "angle", "sand", "clay", "bdod", "elevation", "slope"),
        *("aspect_sin", "aspect_cos", "ndvi", "t2m", "tp"),
    )


def test_flat_ground_faces_north_in_a_direction_layout():
    from smgrid.features.assemble import _unit_aspect

    zero, part = np.zeros((1, 1), np.float32), np.full((1, 1), 0.3, np.float32)
    flat = _unit_aspect(zero, zero)
    assert (flat["aspect_sin"], flat["aspect_cos"]) == (0, 1)
    east = _unit_aspect(part, zero)
    assert (east["aspect_sin"], east["aspect_cos"]) == (1, 0)
