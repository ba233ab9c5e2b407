import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from smgrid.errors import LayoutError
from smgrid.features.layout import (
    Column,
    FeatureLayout,
    SeriesColumn,
    get_layout,
    released_9km,
    scale_columns,
    scale_series,
    with_means,
)

NAMES = ("published", "released-9km", "smgrid-1")

# A change of any of these orphans every bundle made with the layout.
DIGESTS = {
    "published": "bf7a74eca6231666667859d053f5d9d320d1c9f6f35f2bc0e347c68a42c4671b",
    "released-9km": "7a20be5eacf6d55fd735e1ab0385e7a04a270ec4ef77c97de384b32c4004a00d",
    "smgrid-1": "f1329661ccc6fbbb025f68188399e720af5bae959f22ed10f5501236199b28ab",
}

VV, VH, ANGLE = ("vv", -30, 5), ("vh", -35, 0), ("angle", 29.1, 46)
SOIL = [("sand", 0, 1000), ("clay", 0, 1000), ("bdod", 100, 180)]
TERRAIN = [("elevation", 0, 5500), ("slope", 0, 40), ("aspect_sin", -1, 1), ("aspect_cos", -1, 1)]
COLUMN = [("ease_col_sin", -1, 1), ("ease_col_cos", -1, 1)]
SIN, COS = ("doy_sin", -1, 1), ("doy_cos", -1, 1)
SNAPSHOTS = {
    "published": [VV, VH, ANGLE, SIN, COS, *SOIL, *TERRAIN, ("ease_row", -1, 1), *COLUMN],
    "released-9km": [VV, VH, ANGLE, *SOIL, *TERRAIN, ("ease_row", 0, 1), *COLUMN, COS, COS],
    "smgrid-1": [VV, VH, ANGLE, *SOIL, *TERRAIN, ("ease_row", 0, 1), *COLUMN, SIN, COS],
}
SERIES = {
    "published": [
        ("ndvi", -0.2, 1, "first"),
        ("t2m", 263.15, 308.15, "mean"),
        ("tp", 0, 0.3, "mean"),
    ],
    "released-9km": [
        ("ndvi", -0.2, 1, "first"),
        ("t2m", 263.15, 308.15, "mean"),
        ("tp", 0, 0.03, "mean"),
    ],
    "smgrid-1": [
        ("ndvi", -0.2, 1, "first"),
        ("t2m", 263.15, 308.15, "mean"),
        ("tp", 0, 0.3, "sum"),
    ],
}


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "reference" / "golden" / "densesm_golden.npz") as data:
        return dict(data)


@pytest.mark.parametrize("name", NAMES)
def test_builtin_layout_is_the_documented_one(name):
    layout = get_layout(name)
    assert [(c.feature, c.low, c.high) for c in layout.snapshot] == SNAPSHOTS[name]
    series = [(c.feature, c.low, pytest.approx(c.high), c.block) for c in layout.series]
    assert series == SERIES[name]
    assert (layout.name, layout.n_columns, layout.steps) == (name, 153, 46)
    assert layout.averaging == "db"


def test_conventions_of_the_builtin_layouts():
    rules = {
        n: (y.convention, y.window, y.aspect, y.ease, y.ease_km)
        for n in NAMES
        for y in [get_layout(n)]
    }
    assert rules == {
        "published": ("sigma0", "published", "direction", "published", 0.1),
        "released-9km": ("sigma0", "causal", "components", "centre", 9.0),
        "smgrid-1": ("gamma0", "causal", "components", "centre", 9.0),
    }


@pytest.mark.parametrize("name", NAMES)
def test_digest_of_a_builtin_layout_does_not_change_unannounced(name):
    assert get_layout(name).digest == DIGESTS[name]


def test_unknown_layout_is_refused_with_the_known_ones():
    with pytest.raises(LayoutError, match=r"'densesm'.*published, released-9km, smgrid-1"):
        get_layout("densesm")


def test_digest_is_the_identity():
    layout = get_layout("released-9km")
    other_window = layout.with_window("published")
    assert other_window.window == "published"
    digests = {
        layout.digest,
        other_window.digest,
        released_9km(8).digest,
        dataclasses.replace(layout, snapshot=layout.snapshot[::-1]).digest,
    }
    assert len(digests) == 4
    assert other_window.with_window("causal") == layout
    renoted = dataclasses.replace(layout, note="another remark")
    assert renoted.digest == layout.digest
    assert renoted == layout


def test_precipitation_factor_narrows_the_range():
    assert released_9km(8).series[2].high == pytest.approx(0.0375)
    with pytest.raises(LayoutError, match="precipitation_factor must be positive, not 0"):
        released_9km(0)


@pytest.mark.parametrize(
    "layout", [*map(get_layout, NAMES), released_9km(8).with_window("published")]
)
def test_description_round_trips_through_json(layout):
    again = FeatureLayout.from_dict(json.loads(json.dumps(layout.to_dict())))
    assert again == layout
    assert again.note == layout.note
    assert again.digest == layout.digest


def test_integers_and_floats_have_one_digest():
    layout = get_layout("released-9km")
    integers = dataclasses.replace(layout, snapshot=(Column("vv", -30, 5),), ease_km=9)
    floats = dataclasses.replace(layout, snapshot=(Column("vv", -30.0, 5.0),), ease_km=9.0)
    assert integers.digest == floats.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "colour: Unexpected"),
        ({"version": 2}, "has version 2, this smgrid reads version 1"),
        ({"window": "future"}, "window: Input should be"),
        ({"snapshot": [{"feature": "vv", "low": 0, "high": 1, "unit": "dB"}]}, "snapshot.0.unit"),
        ({"snapshot": [{"feature": "sigma", "low": 0, "high": 1}]}, "snapshot.0.feature"),
        ({"snapshot": [{"feature": "vv", "low": 1, "high": 1}]}, "range of vv must rise"),
        ({"snapshot": [{"feature": "vv", "low": 0, "high": float("nan")}]}, "snapshot.0.high"),
        ({"snapshot": []}, "needs snapshot columns"),
        ({"steps": 0}, "must be positive"),
    ],
)
def test_bad_description_is_refused(change, message):
    with pytest.raises(LayoutError, match=message):
        FeatureLayout.from_dict(get_layout("published").to_dict() | change)


def test_description_without_a_field_is_refused():
    plain = get_layout("published").to_dict()
    del plain["window"]
    with pytest.raises(LayoutError, match="window: Field required"):
        FeatureLayout.from_dict(plain)


def test_repeated_series_is_refused():
    layout = get_layout("published")
    with pytest.raises(LayoutError, match="distinct series"):
        dataclasses.replace(layout, series=(*layout.series, SeriesColumn("tp", 0, 1, "sum")))


def test_unknown_window_is_refused():
    with pytest.raises(LayoutError, match="'future'"):
        get_layout("published").with_window("future")


def test_column_names_are_unique_and_in_order():
    names = get_layout("released-9km").column_names
    assert len(set(names)) == 153
    assert names[:3] == ("vv", "vh", "angle")
    assert names[13:17] == ("doy_cos", "doy_cos_2", "ndvi_00", "ndvi_01")
    assert names[-1] == "tp_45"


@given(
    arrays(
        np.float32,
        (4, 15),
        elements=st.floats(-6000, 6000, width=32) | st.just(np.float32(np.nan)),
    )
)
def test_scaling_inverts_inside_the_range_and_clips_outside(values):
    layout = get_layout("published")
    scaled, clipped = scale_columns(values, layout)
    low = np.array([c.low for c in layout.snapshot])
    high = np.array([c.high for c in layout.snapshot])
    missing = np.isnan(values)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(scaled), missing)
    assert not clipped[missing].any()
    inside = ~missing & ~clipped
    back = low + scaled.astype(float) * (high - low)
    tolerance = np.broadcast_to((high - low) * 1e-6, values.shape)
    assert (abs(back - values)[inside] <= tolerance[inside]).all()
    expected = np.where(values < low.astype(np.float32), 0, 1)
    np.testing.assert_array_equal(scaled[clipped], expected[clipped])


@pytest.mark.parametrize("name", NAMES)
def test_ends_of_the_range_are_exact_and_not_clipped(name):
    layout = get_layout(name)
    ends = np.array([[getattr(c, e) for c in layout.snapshot] for e in ("low", "high")], np.float32)
    scaled, clipped = scale_columns(ends, layout)
    np.testing.assert_array_equal(scaled, [[0] * 15, [1] * 15])
    assert not clipped.any()
    beyond = np.nextafter(ends, np.float32([[-np.inf], [np.inf]]))
    assert scale_columns(beyond, layout).clipped.all()


def test_series_scale_with_their_own_range():
    values = np.empty((2, 3, 46), np.float32)
    values[:, 0], values[:, 1], values[:, 2] = 0.4, 285.65, 0.015
    values[1, 2, 7], values[1, 0, 3] = 0.04, np.nan
    scaled, clipped = scale_series(values, get_layout("released-9km"))
    np.testing.assert_allclose(scaled[0], 0.5, rtol=0, atol=1e-6)
    assert np.argwhere(clipped).tolist() == [[1, 2, 7]]
    assert scaled[1, 2, 7] == 1
    assert np.isnan(scaled[1, 0, 3])


def test_wrong_shapes_are_refused():
    layout = get_layout("published")
    with pytest.raises(LayoutError, match=r"\(n, 15\), got \(2, 14\)"):
        scale_columns(np.zeros((2, 14), np.float32), layout)
    with pytest.raises(LayoutError, match=r"\(n, 3, 46\), got \(2, 46, 3\)"):
        scale_series(np.zeros((2, 46, 3), np.float32), layout)


def test_means_ignore_gaps():
    x = np.zeros((2, 153), np.float32)
    x[0, 15:61], x[0, 61:107], x[0, 107:] = 0.25, np.arange(46), np.nan
    x[0, 20] = np.nan
    wide = with_means(x)
    assert wide.shape == (2, 156)
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide[0, 15:18], [0.25, 22.5, np.nan])
    np.testing.assert_array_equal(np.delete(wide, [15, 16, 17], axis=1), x)


@pytest.mark.shared
def test_means_equal_the_golden_vectors(golden):
    np.testing.assert_allclose(with_means(golden["random_x"]), golden["random_x156"], atol=1e-6)


@pytest.mark.shared
def test_real_samples_scale_to_the_golden_columns(golden):
    raw = golden["real_raw_static"][1:].astype(np.float32)
    published = scale_columns(raw, get_layout("published"))
    expected = golden["real_x_published_order"][1:, :15]
    np.testing.assert_allclose(published.values, expected, atol=2e-6)

    order = [c.feature for c in get_layout("published").snapshot]
    columns = [order.index(c.feature) for c in get_layout("released-9km").snapshot]
    released = scale_columns(raw[:, columns], get_layout("released-9km"))
    expected = golden["real_x_weights_layout"][1:, :15]
    np.testing.assert_allclose(released.values, expected, atol=2e-6)


@pytest.mark.shared
def test_real_series_scale_to_the_golden_columns(golden):
    # The samples come from the fork, whose temperatures run from 273.15 to 318.15 K.
    stored = golden["real_x_published_order"][1:, 15:].reshape(-1, 3, 46)
    low, high = np.float32([[-0.2], [273.15], [0]]), np.float32([[1], [318.15], [0.3]])
    scaled = scale_series(low + stored * (high - low), get_layout("released-9km")).values
    expected = golden["real_x_weights_layout"][1:, 15:]
    np.testing.assert_allclose(scaled.reshape(-1, 138), expected, atol=2e-6)
