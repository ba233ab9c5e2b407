import numpy as np
import pytest
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from smgrid.features.assemble import SeriesBlock
from smgrid.inference.quality import (
    FLAGS,
    ground_flags,
    latitude_and_north,
    season_flags,
    snow_water,
    undetermined,
)


def place(shape, *, crs="EPSG:32631", latitude=50.8, longitude=3.0):
    """A grid of 100 m around a point; at the central meridian grid north is true north."""
    x, y = CRS("EPSG:4326").transformer_to_crs(CRS(crs), always_xy=True)(longitude, latitude)
    corner = Affine(100, 0, x - 50 * shape[1], 0, -100, y + 50 * shape[0])
    return GeoBox(shape, corner, crs)


HERE = place((1, 1))


def flagged(flags, name):
    return (flags & FLAGS[name]) > 0


def ground(**values):
    return {name: np.full((1, 1), value, np.float32) for name, value in values.items()}


def test_flags_are_single_bits_of_a_16_bit_mask():
    bits = list(FLAGS.values())
    assert all(bit & (bit - 1) == 0 for bit in bits)
    assert len(set(bits)) == len(bits)
    assert sum(bits) < 0xFFFF  # the fill value of an unwritten shard is no combination of flags


@pytest.mark.parametrize(
    ("flag", "name", "clear", "set_"),
    [
        ("open_water", "fraction_water", 0.05, 0.06),
        ("urban", "fraction_urban", 0.25, 0.26),
        ("dense_vegetation", "fraction_tree", 0.5, 0.51),
        ("snow", "fraction_snow", 0.05, 0.06),
        ("steep_slope", "slope", 10, 10.1),
    ],
)
def test_thresholds_of_the_ground(flag, name, clear, set_):
    def found(value):
        return flagged(ground_flags(ground(**{name: value}), orbit="", grid=HERE), flag).item()

    assert not found(clear)
    assert found(set_)
    assert found(np.nan) == name.startswith("fraction")  # a share that nobody knows is no clear one


def local_incidence(slope, aspect, angle, look):
    """Angle between the surface normal and the line to the radar, by vectors."""
    s, a, t, k = np.radians([slope, aspect, angle, look])
    normal = np.array([np.sin(s) * np.sin(a), np.sin(s) * np.cos(a), np.cos(s)])
    radar = np.array([-np.sin(t) * np.sin(k), -np.sin(t) * np.cos(k), np.cos(t)])
    return np.degrees(np.arccos(normal @ radar))


@pytest.mark.parametrize(("orbit", "west"), [("ascending", True), ("descending", False)])
def test_slopes_towards_the_radar_are_in_layover(orbit, west):
    """An ascending Sentinel-1 flies north and looks east: it sees western slopes steeply."""

    def hidden(aspect, slope=45.0, angle=35.0):
        rad = np.radians(aspect)
        values = ground(slope=slope, aspect_sin=np.sin(rad), aspect_cos=np.cos(rad), angle=angle)
        flags = ground_flags(values, orbit=orbit, grid=HERE)
        return flagged(flags, "layover_or_shadow").item()

    facing, averted = (270, 90) if west else (90, 270)
    assert hidden(facing)
    assert not hidden(averted)
    assert hidden(averted, slope=60, angle=40)  # in the shadow of its own hill
    assert not hidden(facing, slope=30)
    assert not hidden(0)


def test_shadow_begins_where_the_ray_grazes_the_slope():
    look = 90 - 12.99  # of the ascending track at 50.8 degrees
    for slope, expected in ((54, False), (57, True)):
        away = local_incidence(slope, look, 35, look)
        assert (away > 90) == expected
        rad = np.radians(look)
        values = ground(slope=slope, aspect_sin=np.sin(rad), aspect_cos=np.cos(rad), angle=35)
        flags = ground_flags(values, orbit="ascending", grid=HERE)
        assert flagged(flags, "layover_or_shadow").item() == expected


def test_layover_follows_true_north():
    """In Lisbon the north of Europe's equal-area grid lies 13 degrees to the west of true north."""
    grid = place((1, 1), crs="EPSG:3035", latitude=38.7, longitude=-9.1)
    latitude, north = latitude_and_north(grid, np.array([0]), np.array([0]))
    assert latitude.item() == pytest.approx(38.7, abs=1e-6)
    assert north.item() == pytest.approx(13.0, abs=0.2)
    track = np.degrees(np.arcsin(np.cos(np.radians(98.18)) / np.cos(np.radians(38.7))))
    facing = 270 + track + north.item()  # of the grid: where the radar is, seen from the ground
    # Of 40 degrees 35 are left towards the radar where the slope is turned away by 33.4.
    for turn, expected in ((0, True), (28, True), (-28, True), (39, False), (-39, False)):
        aspect = np.radians(facing + turn)
        sine, cosine = np.sin(aspect), np.cos(aspect)
        values = ground(slope=40, aspect_sin=sine, aspect_cos=cosine, angle=35)
        flags = ground_flags(values, orbit="ascending", grid=grid)
        assert flagged(flags, "layover_or_shadow").item() == expected


def test_layover_does_not_depend_on_tiles():
    grid = place((40, 30), latitude=68.0, longitude=5.9)
    rng = np.random.default_rng(0)
    aspect = rng.uniform(0, 2 * np.pi, grid.shape)
    values = {
        "slope": rng.uniform(20, 60, grid.shape),
        "aspect_sin": np.sin(aspect),
        "aspect_cos": np.cos(aspect),
        "angle": np.full(grid.shape, 35.0),
    }
    whole = ground_flags(values, orbit="descending", grid=grid)
    for part in (np.s_[:7, :30], np.s_[7:40, 11:30]):
        inside = {name: array[part] for name, array in values.items()}
        flags = ground_flags(inside, orbit="descending", grid=grid[part])
        np.testing.assert_array_equal(flags, whole[part])


def test_snow_where_rain_and_temperature_lie_on_grids_of_their_own():
    cold = np.full((2, 2, 2), 280, np.float32)
    cold[:, 1] = 260  # the lower cells
    rain = np.zeros((2, 2, 2), np.float32)
    rain[:, :, 1] = 0.01  # the right ones
    series = season([280, 280], [0, 0], [0.2, 0.2])
    series["t2m"] = SeriesBlock(cold, np.array([0, 0, 1]), np.array([0, 0, 1, 1]))
    series["tp"] = SeriesBlock(rain, np.array([0, 1, 1]), np.array([0, 1, 1, 1]))
    expected = np.zeros((3, 4), bool)
    expected[2, 1:] = True
    np.testing.assert_array_equal(flagged(season_flags(series, day=1), "snow"), expected)


def test_an_unknown_orbit_leaves_layover_open():
    values = ground(slope=80, aspect_sin=-1, aspect_cos=0, angle=35)
    assert not flagged(ground_flags(values, orbit="", grid=HERE), "layover_or_shadow").any()


def test_snow_falls_in_the_cold_and_melts_in_the_warm():
    t2m = np.array([270, 270, 280, 275.15, 290], np.float32)[:, None, None]
    tp = np.array([0.01, 0.01, 0.5, 0, 0], np.float32)[:, None, None]
    waters = [snow_water(t2m[: n + 1], tp[: n + 1]).item() for n in range(5)]
    # 4 mm per kelvin and day: 6.85 K melt 27.4 mm, more than there is
    np.testing.assert_allclose(waters, [0.01, 0.02, 0, 0, 0], atol=1e-6)
    mild = np.array([270, 274.15], np.float32)[:, None, None]
    kept = snow_water(mild, np.array([0.01, 0], np.float32)[:, None, None]).item()
    assert kept == pytest.approx(0.006, abs=1e-6)
    gap = np.array([270, np.nan], np.float32)[:, None, None]
    assert snow_water(gap, gap * 0 + 0.01).item() == pytest.approx(0.01)


def season(t2m, tp, ndvi, **more):
    rows, columns = np.array([0, 0, 1]), np.array([0, 1, 1, 1])

    def block(values):
        cells = np.zeros((len(values), 2, 2), np.float32) + np.float32(values)[:, None, None]
        return SeriesBlock(cells, rows, columns)

    series = {"t2m": t2m, "tp": tp, "ndvi": ndvi, **more}
    return {name: block(np.asarray(values)) for name, values in series.items()}


def test_frost_snow_and_vegetation_of_the_season():
    series = season([280, 270, 290], [0, 0.01, 0], [0.9, 0.2])
    series["ndvi"].values[-1, 1, 1] = 0.8
    flags = season_flags(series, day=1)
    assert flags.shape == (3, 4)
    assert flagged(flags, "frozen_soil").all()
    assert flagged(flags, "snow").all()
    dense = np.zeros((3, 4), bool)
    dense[2, 1:] = True
    np.testing.assert_array_equal(flagged(flags, "dense_vegetation"), dense)
    later = season_flags(series, day=2)
    assert not flagged(later, "frozen_soil").any()
    assert not flagged(later, "snow").any()


@pytest.mark.parametrize(("share", "expected"), [(0.5, False), (0.6, True), (np.nan, True)])
def test_ndvi_that_was_mostly_filled(share, expected):
    series = season([280], [0], [0.2, 0.2], ndvi_filled=[share, share])
    assert flagged(season_flags(series, day=0), "ndvi_filled").all() == expected


LAND = ["fraction_water", "fraction_urban", "fraction_tree", "fraction_snow"]
SEASON = ["t2m", "tp", "ndvi", "ndvi_filled"]
TERRAIN = ["slope", "aspect_sin", "aspect_cos", "angle", "orbit_state"]


def test_flags_without_their_variables_are_undetermined():
    assert undetermined([*LAND, *SEASON, *TERRAIN]) == []
    of_land = ["open_water", "urban", "dense_vegetation", "snow"]
    assert undetermined([*SEASON, *TERRAIN]) == of_land
    assert undetermined([*LAND, *SEASON, *TERRAIN[:-1]]) == ["layover_or_shadow"]


@pytest.mark.parametrize(
    ("lacking", "flags"),
    [
        ("fraction_tree", ["dense_vegetation"]),
        ("ndvi", ["dense_vegetation"]),
        ("fraction_snow", ["snow"]),
        ("tp", ["snow"]),
        ("t2m", ["snow", "frozen_soil"]),
        ("slope", ["steep_slope", "layover_or_shadow"]),
    ],
)
def test_a_flag_needs_all_of_its_variables(lacking, flags):
    assert undetermined({*LAND, *SEASON, *TERRAIN} - {lacking}) == flags


@pytest.mark.parametrize("name", [*LAND, "slope"])
def test_every_variable_that_sets_a_flag_of_the_ground_is_needed_by_it(name):
    """By experiment: whatever a large value sets is not determined without the variable."""
    found = ground_flags(ground(**{name: 60.0}), orbit="", grid=HERE)
    raised = {flag for flag in FLAGS if flagged(found, flag).any()}
    assert raised
    assert raised <= {*undetermined({*LAND, *SEASON, *TERRAIN} - {name})}
