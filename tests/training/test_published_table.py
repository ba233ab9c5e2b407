"""Tables of the published scripts: what they hold is read, what cannot be true is refused."""

import gzip
import logging

import numpy as np
import pandas as pd
import pytest
import torch

from smgrid.ease import ease_position
from smgrid.errors import ConfigError, LayoutError, NoDataError, SourceError
from smgrid.features.layout import get_layout
from smgrid.grid import ease_grid, pixel_centres, transform_points
from smgrid.models.bundle import load_ensemble
from smgrid.models.ensemble import predict_samples
from smgrid.training import published_table
from smgrid.training.published_table import (
    read_published_csv,
    stream_published_csv,
    write_published_csv,
)
from smgrid.training.tablestore import open_samples, write_samples
from tests.training.published_tables import (
    COLUMNS,
    PUBLISHED,
    RELEASED,
    make_features,
    published_samples,
    write_table,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.csv"


@pytest.mark.parametrize("layout", [PUBLISHED, RELEASED], ids=lambda layout: layout.name)
@pytest.mark.parametrize("label", ["gt", "sm", "SMAP"])
def test_what_is_written_is_read_to_the_last_bit(path, monkeypatch, layout, label):
    monkeypatch.setattr(published_table, "_ROWS", 7)
    samples = published_samples(layout=layout)
    samples.series[3, 1, 5] = 1e-42  # no float32 is too small
    assert write_published_csv(samples, path, layout=layout, label=label) == path
    found = read_published_csv(path, layout=layout, label=label)
    assert found.features.numpy().tobytes() == samples.features.numpy().tobytes()
    assert found.label.numpy().tobytes() == samples.label.numpy().tobytes()
    for name in ("time", "longitude", "latitude", "station", "network"):
        np.testing.assert_array_equal(getattr(found, name), getattr(samples, name))
    assert found.time.dtype == "M8[ns]"
    assert torch.equal(found.weight, torch.ones(30))
    assert np.isnan(found.lag).all()
    header = path.read_text().splitlines()[0].split(",")
    assert header[-153:] == COLUMNS
    assert {"s_index", "network", "station", "edate", "date", "r", "c", label} <= set(header)
    assert pd.read_csv(path).s_index.tolist() == list(range(1, 31))


def test_unknown_facts_are_written_and_read_as_unknown(path):
    names = ["NA", "", "nan", 'a, "b"', "Zürich", "007"]
    label = torch.tensor([0.1, torch.nan, -0.01, 0.9, 0, 55])
    time = np.array(["NaT", "2020-02-29", "NaT", "1999-12-31", "2024-12-31", "NaT"], "M8[ns]")
    samples = published_samples(
        6, label=label, time=time, longitude=np.nan, latitude=np.nan, station=names, network=""
    )
    write_published_csv(samples, path, layout=PUBLISHED)
    found = read_published_csv(path, layout=PUBLISHED)
    np.testing.assert_array_equal(found.time, time)
    assert found.station.tolist() == names
    assert found.network.tolist() == [""] * 6
    np.testing.assert_array_equal(found.label, label)
    assert np.isnan(found.longitude).all()
    assert np.isnan(found.latitude).all()


@pytest.mark.shared
@pytest.mark.parametrize(
    ("layout", "name"), [(PUBLISHED, "published_order"), (RELEASED, "weights_layout")]
)
def test_real_rows_give_the_predictions_of_the_published_code(shared, path, layout, name):
    """The way of a user: a table of the published scripts, read, predicted with their weights."""
    golden = np.load(shared / "reference/golden/densesm_golden.npz")
    x, label = golden[f"real_x_{name}"], golden["real_obs_sm"]
    days = pd.date_range("2021-01-01", periods=108).strftime("%Y-%m-%d")
    write_table(path, x, station=golden["real_source"], date=days, sm=label)
    samples = read_published_csv(path, layout=layout, label="sm")
    assert samples.features.numpy().tobytes() == x.tobytes()
    np.testing.assert_array_equal(samples.label, label.astype("f4"))
    assert samples.station.tolist() == golden["real_source"].tolist()
    ensemble = load_ensemble(shared / "data/densesm_9km")
    columns = [
        ensemble.names.index(f"coarse_{depth}_{width}")
        for depth, width in golden["main_depth_width"]
    ]
    predicted = predict_samples(ensemble, np.asarray(samples.features))[columns]
    expected = golden[f"real_pred_main_{name}"]
    np.testing.assert_allclose(predicted, expected, rtol=0, atol=2e-6)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("layout", "name"), [(RELEASED, "published_order"), (PUBLISHED, "weights_layout")]
)
def test_real_rows_are_refused_in_the_wrong_layout(shared, path, layout, name):
    golden = np.load(shared / "reference/golden/densesm_golden.npz")
    for rows in (slice(None), slice(50, 51)):  # one row is enough
        write_table(path, golden[f"real_x_{name}"][rows], gt=golden["real_obs_sm"][rows])
        with pytest.raises(LayoutError, match=f"is not in the layout '{layout.name}'"):
            read_published_csv(path, layout=layout)


@pytest.mark.parametrize("layout", [PUBLISHED, RELEASED, get_layout("smgrid-1")])
def test_layouts_are_told_apart(path, layout):
    write_table(path, make_features(5, layout), gt=0.2)
    assert len(read_published_csv(path, layout=layout)) == 5
    for other in {PUBLISHED, RELEASED, get_layout("smgrid-1")} - {layout}:
        with pytest.raises(LayoutError, match="Give the layout that the file was made with"):
            read_published_csv(path, layout=other)


def test_the_message_names_what_does_not_hold(path):
    x = make_features(5, PUBLISHED)
    x[3, 3:5] = 0.5, 0.75
    with pytest.raises(
        LayoutError,
        match=r"columns 3 and 4 \(doy_sin, doy_cos\) are the sine and cosine of one angle: "
        r"unscaled they are 0\.0000 and 0\.5000 in row 4\.",
    ):
        read_published_csv(write_table(path, x, gt=0.2), layout=PUBLISHED)
    x = make_features(5, RELEASED)
    x[2, 14] = 1 - x[2, 13]
    with pytest.raises(LayoutError, match=r"columns 13 and 14 \(doy_cos, doy_cos\) are the same"):
        read_published_csv(write_table(path, x, gt=0.2), layout=RELEASED)


def test_columns_rounded_to_three_digits_are_accepted(path):
    x = make_features(500, PUBLISHED).round(3)
    write_table(path, x, gt=0.2)
    assert torch.equal(read_published_csv(path, layout=PUBLISHED).features, torch.from_numpy(x))


def test_excel_days(path):
    """42735 ... 44561 are the ends of 2016 ... 2021 in the published scripts."""
    ends = {42735: 2016, 43100: 2017, 43465: 2018, 43830: 2019, 44196: 2020, 44561: 2021}
    days = [*ends, 43831, 61, np.nan]
    expected = [f"{year}-12-31" for year in ends.values()] + ["2020-01-01", "1900-03-01", "NaT"]
    write_table(path, make_features(9, PUBLISHED), edate=days, gt=0.2)
    found = read_published_csv(path, layout=PUBLISHED)
    np.testing.assert_array_equal(found.time, np.array(expected, "M8[ns]"))


def test_a_date_goes_before_an_excel_day(path):
    days, dates = [43831, 43831, np.nan], ["2021-05-06", "", "2021-05-06"]
    write_table(path, make_features(3, PUBLISHED), edate=days, date=dates, gt=0.2)
    found = read_published_csv(path, layout=PUBLISHED)
    expected = np.array(["2021-05-06", "2020-01-01", "2021-05-06"], "M8[ns]")
    np.testing.assert_array_equal(found.time, expected)


def test_the_centre_of_the_ease_cell_stands_for_a_missing_position(path):
    """A window of the EASE grid itself says where its cells are; rows are counted from one."""
    grid = ease_grid(9, (105.5, 20.5, 106.0, 21.0))
    longitude, latitude = (values[0, 0] for values in pixel_centres(grid, "EPSG:4326"))
    x, y = (values[0, 0] for values in pixel_centres(grid, "EPSG:6933"))
    row, column = (int(v) for v in ease_position(x, y, km=9, convention="exact"))
    facts = {"r": [row + 1] * 3 + [row + 0.5], "c": [column, column, "", column]}
    lat = [np.nan, 10.0, np.nan, np.nan]
    write_table(path, make_features(4, PUBLISHED), **facts, lat=lat, lon=[7, 20, 7, 7], gt=0.2)
    found = read_published_csv(path, layout=PUBLISHED)
    np.testing.assert_allclose(found.longitude, [longitude, 20, 7, 7], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.latitude, [latitude, 10, np.nan, np.nan], rtol=0, atol=1e-9)


def test_the_cell_of_the_published_row(path):
    """The row of result.csv: 9 km cell (638, 3083), about 12.4 degrees north, 107.9 east."""
    write_table(path, make_features(1, PUBLISHED), r=638, c=3083, gt=0.2)
    found = read_published_csv(path, layout=PUBLISHED)
    x, y = transform_points(found.longitude, found.latitude, "EPSG:4326", "EPSG:6933")
    row, column = ease_position(x, y, km=9, convention="published")
    assert (row[0], column[0]) == (638, 3083)
    # Half a cell is 4504 m, so this is the centre by the constants of the published scripts, too.
    assert abs(7314540.83 - 637.5 * 9008.05 - y[0]) < 5
    assert abs(-17367530.45 + 3083.5 * 9008.05 - x[0]) < 20


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("r", 0, "1 to 1624"),
        ("r", 63840, "1 to 1624"),
        ("c", 3856, "0 to 3855"),
        ("c", -1, "0 to 3855"),
    ],
)
def test_a_cell_of_another_grid_is_refused(path, column, value, expected):
    cells = {"r": [700, 638], "c": [3000, 3083]}
    cells[column][1] = value
    write_table(path, make_features(2, PUBLISHED), **cells, gt=0.2)
    with pytest.raises(SourceError, match=f"row 2, column '{column}': .*{expected}, found {value}"):
        read_published_csv(path, layout=PUBLISHED)


def test_rows_without_an_input_are_dropped_and_counted(path, monkeypatch, caplog):
    monkeypatch.setattr(published_table, "_ROWS", 4)
    x = make_features(11, PUBLISHED)
    x[2, 0] = x[9, 152] = x[9, 3] = np.nan
    label = np.arange(11) / 20
    label[5] = np.nan
    with caplog.at_level(logging.INFO, "smgrid"):
        found = read_published_csv(write_table(path, x, gt=label), layout=PUBLISHED)
    kept = np.delete(np.arange(11), [2, 9])
    np.testing.assert_array_equal(found.label, label[kept].astype("f4"))
    np.testing.assert_array_equal(found.features, x[kept])
    assert "2 of 11 rows were dropped" in caplog.text
    x[:, 7] = np.nan
    with pytest.raises(NoDataError, match="no row with all 153 inputs"):
        read_published_csv(write_table(path, x, gt=label), layout=PUBLISHED)


def test_series_that_rows_share_are_held_once(path, monkeypatch):
    monkeypatch.setattr(published_table, "_ROWS", 4)
    x = make_features(10, PUBLISHED)
    x[:, 15:] = x[np.arange(10) % 3, 15:]
    found = read_published_csv(write_table(path, x, gt=0.2), layout=PUBLISHED)
    assert len(found.series) == 3
    np.testing.assert_array_equal(found.features, x)
    assert len(next(stream_published_csv(path, layout=PUBLISHED)).series) == 3


def test_a_table_without_labels(path):
    write_table(path, make_features(3, PUBLISHED), gt=0.2)
    assert torch.isnan(read_published_csv(path, layout=PUBLISHED, label=None).label).all()


def test_a_file_streams_into_a_store(tmp_path, path, monkeypatch):
    monkeypatch.setattr(published_table, "_ROWS", 4)
    samples = published_samples(10)
    write_published_csv(samples, path, layout=PUBLISHED)
    stream = stream_published_csv(path, layout=PUBLISHED)
    assert len(next(stream)) == 4
    stream = stream_published_csv(path, layout=PUBLISHED)
    assert write_samples(stream, tmp_path / "t.zarr", layout=PUBLISHED) == 10
    found = open_samples(tmp_path / "t.zarr", layout=PUBLISHED)
    assert torch.equal(found.features, samples.features)
    assert found.station.tolist() == samples.station.tolist()


def test_a_compressed_file(tmp_path):
    samples, path = published_samples(5), tmp_path / "t.csv.gz"
    write_published_csv(samples, path, layout=PUBLISHED)
    assert gzip.decompress(path.read_bytes()).startswith(b"s_index,")
    assert torch.equal(read_published_csv(path, layout=PUBLISHED).features, samples.features)


def test_columns_are_counted(path):
    x = make_features(2, PUBLISHED)
    write_table(path, x[:, :150], gt=0.2)
    with pytest.raises(SourceError, match=r"columns 0 to 152 .* missing are 150, 151, 152, not"):
        read_published_csv(path, layout=PUBLISHED)
    pd.DataFrame(np.full((2, 156), 0.5)).assign(gt=0.2).to_csv(path)
    with pytest.raises(SourceError, match=r"missing are none, not expected 153, 154, 155$"):
        read_published_csv(path, layout=PUBLISHED)


def test_the_label_is_named(path):
    write_table(path, make_features(2, PUBLISHED), SMAP=0.2)
    with pytest.raises(SourceError, match="no column 'gt' for the label; give label='SMAP'"):
        read_published_csv(path, layout=PUBLISHED)
    write_table(path, make_features(2, PUBLISHED))
    with pytest.raises(SourceError, match="give label=None"):
        read_published_csv(path, layout=PUBLISHED)
    with pytest.raises(ConfigError, match="found 'truth'"):
        read_published_csv(path, layout=PUBLISHED, label="truth")
    with pytest.raises(ConfigError, match="found 'station'"):
        write_published_csv(published_samples(2), path, layout=PUBLISHED, label="station")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("17", "0,5", "row 6, column '17': '0,5' is no number"),
        ("gt", "dry", "row 6, column 'gt': 'dry' is no number"),
        ("lat", "51N", "row 6, column 'lat': '51N' is no number"),
        ("0", -12.3, "row 6, column '0': expected a scaled value, 0 to 1, found -12.3"),
        ("152", "inf", "row 6, column '152': expected a scaled value"),
        ("edate", 20200101, "row 6, column 'edate': expected an Excel serial day, .*20200101"),
        ("edate", 60, "row 6, column 'edate'"),
        ("date", "31/12/2020", "row 6, column 'date': expected a date, .* found '31/12/2020'"),
        ("date", "2021-02-30", "row 6, column 'date'"),
        ("lat", -9999, "row 6, column 'lat': expected .*-90 to 90, or nothing, found -9999"),
        ("lat", 90.1, "row 6, column 'lat'"),
        ("lat", "inf", "row 6, column 'lat'"),
        ("lon", -9999, "row 6, column 'lon': expected .*-180 to 360, or nothing, found -9999"),
        ("lon", 500, "row 6, column 'lon'"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(path, monkeypatch, column, value, message):
    monkeypatch.setattr(published_table, "_ROWS", 4)
    facts = {"date": "2021-01-01", "edate": 43831, "lat": 51.0, "lon": 4.0, "gt": 0.2}
    write_table(path, make_features(9, PUBLISHED), **facts)
    table = pd.read_csv(path, dtype=str)
    table.loc[5, column] = str(value)
    table.loc[7, column] = str(value)
    table.to_csv(path, index=False)
    with pytest.raises(SourceError, match=message):
        read_published_csv(path, layout=PUBLISHED)


def test_a_file_that_is_none_is_told(tmp_path, path):
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        read_published_csv(path, layout=PUBLISHED)
    with pytest.raises(SourceError, match="cannot be read: Is a directory"):
        read_published_csv(tmp_path, layout=PUBLISHED)
    path.write_text("")
    with pytest.raises(SourceError, match="no CSV file with a header"):
        read_published_csv(path, layout=PUBLISHED)
    path.write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with pytest.raises(SourceError, match=r"expected text in UTF-8.*0xff"):
        read_published_csv(path, layout=PUBLISHED)
    write_table(path, make_features(3, PUBLISHED), gt=0.2)
    header, *rows = path.read_text().splitlines(keepends=True)
    for text in (header + ",".join(["9", *rows]), header + rows[0] + "9," + rows[1]):
        path.write_text(text)
        with pytest.raises(
            SourceError, match=r"row 1 has more values|Expected 155 fields in line 3"
        ):
            read_published_csv(path, layout=PUBLISHED)
    compressed = tmp_path / "t.csv.gz"
    write_table(path, make_features(300, PUBLISHED), gt=0.2)
    compressed.write_bytes(gzip.compress(path.read_bytes())[:-5000])
    with pytest.raises(SourceError, match=r"t\.csv\.gz"):
        read_published_csv(compressed, layout=PUBLISHED)


@pytest.mark.parametrize("rows", [3, 2000])
def test_text_in_another_encoding_is_told(path, rows):
    # Of a short file the header is refused, of a long one what follows.
    station = ["Zuerich"] * (rows - 1) + ["Zürich"]
    write_table(path, make_features(rows, PUBLISHED), station=station, gt=0.2)
    path.write_bytes(path.read_text("utf-8").encode("latin-1"))
    with pytest.raises(SourceError, match=r"table\.csv.*: expected text in UTF-8.*0xfc"):
        read_published_csv(path, layout=PUBLISHED)
