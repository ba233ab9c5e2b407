"""Pictures, by what they show: the artists of a figure before it is written, and pixels of PNGs."""

import itertools

import dask.array as da
import matplotlib.dates as mdates
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import rasterio.transform
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import FillBetweenPolyCollection
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from pyproj import Transformer

from smgrid.errors import ConfigError, NoDataError
from smgrid.export import plot
from smgrid.export.pixel import find_pixel
from smgrid.export.plot import plot_maps, plot_overview, plot_point, plot_scatter, plot_series
from smgrid.metrics import score
from tests.builders import utm_grid

DIMS = ("time", "y", "x")
TIMES = pd.DatetimeIndex([f"2024-03-{day:02d}T05:41:07" for day in (1, 7, 13, 19, 25)])
GRID = utm_grid((6, 8))
FLAGS = {"flag_masks": np.array([1, 4, 256], "u2"), "flag_meanings": "input_missing snow urban"}


def make_map(*, calibrated=True, seed=0):
    rng = np.random.default_rng(seed)
    shape = (TIMES.size, *GRID.shape)
    sm = rng.uniform(0.05, 0.4, shape).astype("f4")
    sm[2, 3, 4] = np.nan
    sm[:, 0, 0] = np.nan
    flags = np.where(np.isnan(sm), 1, 0).astype("u2")
    flags[1, 3, 4], flags[3, 3, 4] = 4, 4 + 256
    data = {"soil_moisture": sm, "soil_moisture_std": np.full(shape, 0.02, "f4"), "flags": flags}
    if calibrated:
        data |= {"soil_moisture_lower": sm - 0.05, "soil_moisture_upper": sm + 0.08}
        data["dissimilarity"] = rng.uniform(0, 2, shape).astype("f4")
    coords = {**xr_coords(GRID), "time": TIMES}
    ds = xr.Dataset({n: (DIMS, v) for n, v in data.items()}, coords)
    ds["flags"].attrs = FLAGS
    if calibrated:
        ds["soil_moisture_upper"].attrs["coverage"] = 0.9
        ds["dissimilarity"].attrs["threshold"] = 1.0
    return ds


def counted(array, chunks):
    """Return a lazy array, and a list that gets a value whenever one of its blocks is read."""
    reads = []

    def read(block):
        reads.append(block.shape)
        return block

    lazy = da.from_array(array.values, chunks).map_blocks(read, meta=array.values[:0])
    return array.copy(data=lazy), reads


@pytest.fixture
def figures(monkeypatch):
    """Figures in the order in which they would be written."""
    kept = []
    monkeypatch.setattr(plot, "_save", lambda figure, path: kept.append(figure))
    return kept


@pytest.fixture
def point():
    """A place in the pixel of row 3 and column 4, away from its centre."""
    return {"x": 500_000 + 420.0, "y": 5_600_000 - 390.0}


@given(
    x=st.floats(500_000, 500_799.99, allow_nan=False),
    y=st.floats(5_599_400.01, 5_600_000, allow_nan=False),
)
def test_a_point_lies_in_the_pixel_that_rasterio_finds(x, y):
    pixel = find_pixel(GRID, x=x, y=y)
    row, column = rasterio.transform.rowcol(GRID.transform, x, y)
    assert (pixel.row, pixel.column) == (row, column)
    assert abs(pixel.x - x) <= 50
    assert abs(pixel.y - y) <= 50


def test_the_outer_edge_belongs_to_the_map():
    corner = find_pixel(GRID, x=500_800, y=5_599_400)
    assert (corner.row, corner.column) == (5, 7)


def test_a_point_in_degrees_is_the_same_place(point):
    to_degrees = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(point["x"], point["y"])
    pixel = find_pixel(GRID, lon=lon, lat=lat)
    assert pixel == find_pixel(GRID, **point)
    centre = to_degrees.transform(500_450, 5_599_650)
    assert (pixel.longitude, pixel.latitude) == pytest.approx(centre, abs=1e-9)


def test_a_point_outside_says_where_the_map_is(tmp_path):
    with pytest.raises(ConfigError, match=r"x=1, y=2 lies outside.*500000 to 500800.*EPSG:32631"):
        plot_point(make_map(), tmp_path / "p.png", x=1, y=2)
    with pytest.raises(ConfigError, match=r"lon=4, lat=51 lies outside.*lon=3\.0"):
        plot_point(make_map(), tmp_path / "p.png", lon=4, lat=51)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("given", [{}, {"x": 1}, {"x": 1, "lat": 2}, {"x": 1, "y": 1, "lon": 3}])
def test_a_point_has_one_pair_of_coordinates(given):
    with pytest.raises(ConfigError, match="either x and y or lon and lat"):
        find_pixel(GRID, **given)


def test_a_point_shows_its_pixel_and_breaks_at_gaps(figures, point):
    sm = make_map()
    plot_point(sm, "", **point, title="Here")
    line = figures[0].axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), sm["soil_moisture"].values[:, 3, 4])
    assert np.isnan(line.get_ydata()[2])
    np.testing.assert_array_equal(line.get_xdata(), TIMES.values)
    said = figures[0].axes[0].get_title()
    assert "500450, 5599650 in EPSG:32631" in said
    assert "of 4 values: snow 2, urban 1" in said


def test_flagged_values_are_hollow(figures, point):
    sm = make_map()
    plot_point(sm, "", **point)
    line, hollow = figures[0].axes[0].lines
    assert hollow.get_markerfacecolor() == "white"
    assert hollow.get_markeredgecolor() == line.get_color()
    assert np.flatnonzero(np.isfinite(hollow.get_ydata())).tolist() == [1, 3]
    assert line.get_markerfacecolor() == line.get_color()
    sm["flags"] = xr.zeros_like(sm["flags"])
    plot_point(sm, "", **point)
    assert len(figures[1].axes[0].lines) == 1


def band_of(axis):
    (band,) = [c for c in axis.collections if isinstance(c, FillBetweenPolyCollection)]
    vertices = np.concatenate([path.vertices for path in band.get_paths()])
    return band.get_label(), vertices[:, 1].min(), vertices[:, 1].max()


@pytest.mark.parametrize(
    ("calibrated", "label", "below", "above"),
    [(True, "90 % interval", 0.05, 0.08), (False, "± spread", 0.02, 0.02)],
)
def test_the_band_is_the_interval_or_else_the_spread(
    figures, point, calibrated, label, below, above
):
    sm = make_map(calibrated=calibrated)
    plot_point(sm, "", **point)
    values = sm["soil_moisture"].values[:, 3, 4]
    expected = (label, np.nanmin(values) - below, np.nanmax(values) + above)
    assert band_of(figures[0].axes[0]) == pytest.approx(expected)


def test_a_value_between_gaps_has_a_bar(figures, point):
    sm = make_map()
    sm["soil_moisture_lower"][{"time": 3, "y": 3, "x": 4}] = np.nan
    plot_point(sm, "", **point)
    (bars,) = [c for c in figures[0].axes[0].collections if hasattr(c, "get_segments")]
    (segment,) = bars.get_segments()
    value = sm["soil_moisture"].values[4, 3, 4]
    np.testing.assert_allclose(segment[:, 1], [value - 0.05, value + 0.08], rtol=1e-6)


def make_stations(*places):
    to_degrees = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
    lon, lat = np.transpose([to_degrees.transform(*place) for place in places])
    days = pd.date_range("2024-02-01", "2024-04-30")
    values = np.arange(len(places) * days.size).reshape(len(places), -1) / 1000
    names = [f"S{i}" for i in range(len(places))]
    coords = {"longitude": ("station", lon), "latitude": ("station", lat)}
    return xr.DataArray(
        values, {"station": names, "time": days, **coords}, ("station", "time"), name="sm"
    )


def test_stations_in_the_pixel_are_drawn_in_the_period_of_the_map(figures, point):
    stations = make_stations((500_750, 5_599_650), (500_401, 5_599_601))
    plot_point(make_map(), "", **point, reference=stations)
    labels = [line.get_label() for line in figures[0].axes[0].lines]
    assert labels == ["map", "S1", "flagged"]
    drawn = figures[0].axes[0].lines[1]
    expected = stations.sel(station="S1", time=slice("2024-03-01", "2024-03-26"))
    np.testing.assert_array_equal(drawn.get_ydata(), expected)


def test_a_series_is_a_reference_too(figures, point):
    truth = make_map(seed=1)["soil_moisture"][:, 0, 1].rename("truth")
    plot_point(make_map(), "", **point, reference=truth)
    assert figures[0].axes[0].lines[1].get_label() == "truth"
    np.testing.assert_array_equal(figures[0].axes[0].lines[1].get_ydata(), truth)


def test_a_pixel_without_station_names_the_nearest(figures, point):
    stations = make_stations((500_050, 5_599_650), (500_550, 5_599_650))
    with pytest.raises(ConfigError, match=r"none of its 2 stations.*nearest is S1"):
        plot_point(make_map(), "", **point, reference=stations)
    with pytest.raises(ConfigError, match=r"expected \(time,\), or \(station, time\)"):
        plot_point(make_map(), "", **point, reference=stations.drop_vars("longitude"))


def test_a_pixel_without_values_is_an_error(figures):
    with pytest.raises(NoDataError, match="no value in the pixel centre 500050, 5599950"):
        plot_point(make_map(), "", x=500_001, y=5_599_999)


def test_a_point_reads_its_own_blocks_only(figures, point):
    sm = make_map(calibrated=False)
    sm["soil_moisture"], reads = counted(sm["soil_moisture"], (1, 2, 2))
    plot_point(sm, "", **point)
    assert len(reads) == TIMES.size


def test_rain_hangs_from_above_in_mm(figures, point):
    rain = xr.DataArray([0.0, 0.012], {"date": pd.date_range("2024-03-02", periods=2)}, ("date",))
    plot_point(make_map(), "", **point, rain=rain)
    above = figures[0].axes[1]
    assert [bar.get_height() for bar in above.patches] == pytest.approx([0, 12])
    bottom, top = above.get_ylim()
    assert top == 0 < 12 < bottom


def test_the_scatter_counts_every_pair_and_says_the_metrics(figures):
    sm = make_map()["soil_moisture"]
    reference = (sm * 0.8 + 0.03).where(sm["x"] > 500_200)
    scores = plot_scatter(sm, reference, "", names=("map", "truth"))
    axis = figures[0].axes[0]
    assert axis.collections[0].get_array().sum() == scores.n == int(reference.count())
    expected = score(sm, reference)
    assert scores.rmse == pytest.approx(expected.rmse, abs=1e-9)
    (box,) = axis.texts
    assert f"bias = {expected.bias:+.3f}" in box.get_text()
    assert f"ubRMSE = {expected.ubrmse:.3f}" in box.get_text()
    assert f"R = {expected.r:.3f}" in box.get_text()
    assert axis.get_xlim() == axis.get_ylim()
    assert axis.get_aspect() == 1
    assert axis.get_xlabel() == "truth (m³ m⁻³)"
    assert axis.get_ylabel() == "map (m³ m⁻³)"
    pairs = np.column_stack([reference.values.ravel(), sm.values.ravel()])
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    low, high = axis.get_xlim()
    assert low < pairs.min()
    assert pairs.max() < high
    centres = axis.collections[0].get_offsets()
    gaps = np.abs(pairs[:, None] - centres[None]).max(axis=2).min(axis=1)
    assert gaps.max() < (high - low) / 30


def test_the_scatter_reads_lazy_values_once(figures):
    sm = make_map()["soil_moisture"]
    plain = plot_scatter(sm, sm * 0.9, "")
    lazy, reads = counted(sm, (1, 3, 4))
    reference, reads_too = counted(sm * 0.9, (5, 6, 8))
    assert plot_scatter(lazy, reference, "") == pytest.approx(plain, abs=1e-9)
    assert (len(reads), len(reads_too)) == (20, 1)


def test_a_scatter_of_a_map_and_one_series_pairs_them(figures):
    sm = make_map()["soil_moisture"].chunk(time=1)
    reference = sm.mean(("y", "x")).compute()
    assert plot_scatter(sm, reference, "").n == int(sm.count())


def test_no_pair_is_an_error():
    sm = make_map()["soil_moisture"]
    for missing in (sm * np.nan, sm.chunk(time=1) * np.nan):
        with pytest.raises(NoDataError, match="no pair of values"):
            plot_scatter(sm, missing, "")
    with pytest.raises(ConfigError, match="collocate them first"):
        plot_scatter(sm, sm.assign_coords(x=sm["x"] + 1), "")


def test_the_overview_shows_all_that_is_known_of_a_date(figures):
    sm = make_map()
    plot_overview(sm, "", date="2024-03-08")
    axes = {axis.get_title().split("\n")[0]: axis for axis in figures[0].axes}
    panels = {name: axis.images[0] for name, axis in axes.items() if axis.images}
    one = sm.isel(time=1)
    expected = {
        "soil moisture, 2024-03-07 05:41 UTC": one["soil_moisture"],
        "spread of the members": one["soil_moisture_std"],
        "width of the 90 % interval": one["soil_moisture_upper"] - one["soil_moisture_lower"],
        "dissimilarity to the training": one["dissimilarity"],
    }
    assert [*panels] == [*expected]
    for name, field in expected.items():
        np.testing.assert_array_equal(panels[name].get_array().filled(np.nan), field)
        assert panels[name].get_extent() == pytest.approx([500, 500.8, 5599.4, 5600])
    assert "m³ m⁻³" not in axes["dissimilarity to the training"].get_title()


def test_the_line_of_the_threshold_separates_what_lies_beyond(figures):
    sm = make_map()
    dissimilarity = np.zeros((TIMES.size, *GRID.shape), "f4")
    dissimilarity[:, :3, 4:] = 2
    sm["dissimilarity"] = (DIMS, dissimilarity, {"threshold": 1.0})
    plot_overview(sm, "")
    (axis,) = [a for a in figures[0].axes if a.get_title().startswith("dissimilarity")]
    assert "25.0 % beyond 1.00" in axis.get_title()
    (contour,) = axis.collections
    vertices = np.concatenate([path.vertices for path in contour.get_paths()])
    # Half-way between the centres of the columns 3 and 4, and of the rows 2 and 3.
    assert vertices.min(axis=0) == pytest.approx([500.4, 5599.7])
    assert vertices.max(axis=0) == pytest.approx([500.75, 5599.95])


def test_flags_are_shares_of_the_pixels(figures):
    plot_overview(make_map(), "", date=TIMES[3])
    (axis,) = [a for a in figures[0].axes if a.get_title() == "flags of this date"]
    shares = {
        label.get_text(): bar.get_width()
        for label, bar in zip(axis.get_yticklabels(), axis.patches, strict=True)
    }
    assert shares == pytest.approx({"input missing": 100 / 48, "snow": 100 / 48, "urban": 100 / 48})


def test_flags_that_are_not_determined_are_named(figures):
    sm = make_map()
    sm["flags"] = xr.zeros_like(sm["flags"]).assign_attrs(not_determined="urban open_water")
    plot_overview(sm, "")
    texts = [text.get_text() for axis in figures[0].axes for text in axis.texts]
    note = "clear but not determined: urban,\nopen\xa0water"  # no name in two lines
    assert texts == [f"no pixel has a flag on this date\n{note}"]


@pytest.mark.parametrize(
    ("days", "calibrated"),
    [(0, True), (3, False), (13, False), (20, False), (45, True), (200, False), (800, True)],
)
def test_dates_and_places_do_not_overlap(figures, days, calibrated):
    sm = make_map(calibrated=calibrated).isel(time=[0, 1, 3])
    sm["time"] = pd.Timestamp("2024-02-25T05:41") + pd.to_timedelta([0, days / 3, days], "D")
    plot_overview(sm.isel(time=slice(None if days else 1)), "")
    FigureCanvasAgg(figures[0]).draw()
    (series,) = [a for a in figures[0].axes if a.get_ylabel().startswith("soil moisture")]
    first, last = mdates.num2date(series.get_xlim())
    assert 0 < (last - first).days < 1.2 * days + 8
    for axis in figures[0].axes:
        boxes = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
        inside = [
            box for box in boxes if axis.bbox.x0 - 1 < (box.x0 + box.x1) / 2 < axis.bbox.x1 + 1
        ]
        assert len(inside) > 1 or axis is not series
        gaps = [right.x0 - left.x1 for left, right in itertools.pairwise(inside)]
        assert min(gaps, default=9) > 3


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_a_panel_of_one_value_has_a_colour_from_the_middle_of_its_scale(figures, noise):
    sm = make_map()
    rng = np.random.default_rng(1)
    flat = xr.full_like(sm["soil_moisture"], 0.1) + noise * rng.normal(size=sm["flags"].shape)
    sm["soil_moisture"], sm["soil_moisture_std"] = 2 * flat, flat
    sm["soil_moisture_lower"], sm["soil_moisture_upper"] = 0 * flat, flat
    sm["soil_moisture_upper"].attrs["coverage"] = 0.9
    sm["dissimilarity"] = 5 * flat
    plot_overview(sm, "")
    images = [axis.images[0] for axis in figures[0].axes if axis.images]
    assert len(images) == 4
    for image in images:
        shares = image.norm(image.get_array())
        assert 0.4 < shares.min() <= shares.max() < 0.6
    low, high = images[2].get_clim()
    assert (low, high) == (0, pytest.approx(0.2, rel=0.01))


def test_nothing_and_no_spread_and_no_difference_have_a_scale_too(figures):
    one = make_map()["soil_moisture"][0]
    panels = {"none": one * np.nan, "spread": one * 0, "difference": one * 0}
    plot_maps(panels, "", spreads=("spread",), differences=("difference",))
    none, spread, difference = (a.images[0] for a in figures[0].axes if a.images)
    assert none.get_clim() == (0, 0.6)
    assert spread.get_clim() == (0, 0.02)
    assert difference.get_clim() == (-0.01, 0.01)


def test_a_colour_bar_is_as_high_as_its_map(figures):
    for grid in (utm_grid((4, 12)), utm_grid((12, 4))):
        plot_maps({"one": xr.DataArray(np.eye(*grid.shape), xr_coords(grid), ("y", "x"))}, "")
        FigureCanvasAgg(figures[-1]).draw()
        (axis,) = figures[-1].axes
        (bar,) = axis.child_axes
        height = axis.get_window_extent().height
        assert bar.get_window_extent().height == pytest.approx(height, rel=0.01)
        assert figures[-1].bbox.height - height < 1.7 * figures[-1].dpi  # no more than its titles


def test_a_map_without_the_newer_variables_has_two_panels(figures):
    plot_overview(make_map(calibrated=False).drop_vars("flags"), "")
    assert sum(bool(axis.images) for axis in figures[0].axes) == 2


def test_the_date_with_most_values_is_shown(figures):
    sm = make_map()
    sm["soil_moisture"] = sm["soil_moisture"].where(sm["time"] == TIMES[4], np.nan)
    plot_overview(sm, "")
    assert "2024-03-25" in figures[0].axes[0].get_title()
    with pytest.raises(NoDataError, match="no valid pixel"):
        plot_overview(sm.where(False), "")


def test_maps_of_degrees_have_axes_in_degrees(figures):
    grid = GeoBox.from_bbox((4, 50, 5, 51), "EPSG:4326", shape=(4, 4))
    field = xr.DataArray(np.eye(4), xr_coords(grid), dims=grid.dimensions)
    plot_maps({"one": field}, "")
    axis = figures[0].axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("longitude (°)", "latitude (°)")
    assert axis.images[0].get_extent() == [4, 5, 50, 51]
    assert axis.get_aspect() == pytest.approx(1 / np.cos(np.radians(50.5)))  # of lengths on Earth


def test_a_picture_has_north_above_and_wet_in_blue(tmp_path):
    field = xr.DataArray(np.full(GRID.shape, 0.05), xr_coords(GRID), ("y", "x"))
    field[:3, :4] = 0.4
    plot_maps({"one": field}, tmp_path / "map.png")
    rgb = matplotlib.image.imread(tmp_path / "map.png")[..., :3]
    rgb = rgb[:, : int(0.82 * rgb.shape[1])]  # without the colour bar
    wet, dry = matplotlib.colormaps["YlGnBu"](1.0)[:3], matplotlib.colormaps["YlGnBu"](0.0)[:3]
    rows, columns = (np.abs(rgb - wet).max(axis=2) < 0.02).nonzero()
    dry_rows, dry_columns = (np.abs(rgb - dry).max(axis=2) < 0.02).nonzero()
    assert rows.size > 1000
    assert dry_rows.size == pytest.approx(3 * rows.size, rel=0.05)
    assert rows.mean() < dry_rows.mean()
    assert columns.mean() < dry_columns.mean()


@pytest.mark.parametrize("name", ["overview", "point", "scatter", "series"])
def test_pictures_are_written(tmp_path, name, point):
    sm, path = make_map(), tmp_path / f"{name}.png"
    line = sm["soil_moisture"][:, 3, 4]
    write = {
        "overview": lambda: plot_overview(sm, path),
        "point": lambda: plot_point(sm, path, **point),
        "scatter": lambda: plot_scatter(line, line, path),
        "series": lambda: plot_series({"one": line}, path),
    }
    write[name]()
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 300
    assert np.ptp(pixels[..., :3]) == 1
