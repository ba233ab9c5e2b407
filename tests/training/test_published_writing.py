"""What is written in the form of the published scripts, and what is not."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from smgrid.errors import LayoutError, NoDataError, SourceError, StoreError
from smgrid.grid import transform_points
from smgrid.training import published_table
from smgrid.training.published_table import (
    read_published_csv,
    write_published_csv,
)
from tests.training.published_tables import (
    PUBLISHED,
    published_samples,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.csv"


def test_both_forms_of_the_date_are_written(path):
    time = np.array(["2020-01-01T23:59:59", "2016-12-31T06:00", "NaT"], "M8[ns]")
    write_published_csv(published_samples(3, time=time), path, layout=PUBLISHED)
    table = pd.read_csv(path)
    assert table.edate.tolist()[:2] == [43831, 42735]
    assert table.date.tolist()[:2] == ["2020-01-01", "2016-12-31"]
    assert table[["edate", "date"]].iloc[2].isna().all()
    found = read_published_csv(path, layout=PUBLISHED)
    np.testing.assert_array_equal(found.time, time.astype("M8[D]"))


def test_cells_are_written_as_the_published_scripts_count_them(path):
    samples = published_samples(3, longitude=[4.0, np.nan, -179.99], latitude=[51.0, 51.0, -60.0])
    write_published_csv(samples, path, layout=PUBLISHED)
    x, y = transform_points(samples.longitude, samples.latitude, "EPSG:4326", "EPSG:6933")
    row = np.ceil((7314540.83 - y) / 9008.05)
    column = np.floor((x + 17367530.45) / 9008.05)
    known = [0, 2]
    table = pd.read_csv(path)
    np.testing.assert_array_equal(table.r[known], row[known])
    np.testing.assert_array_equal(table.c[known], column[known])
    assert table.loc[1, ["r", "c"]].isna().all()


NAMES = [
    "a,b",
    'q"q',
    "line\nbreak",
    " lead",
    "trail ",
    "\t",
    "#c",
    "1e5",
    "NaN",
    "é☃",
    "'",
    "x\x1ay",
]


def test_odd_names_are_read_as_they_were(path):
    samples = published_samples(len(NAMES), station=NAMES, network=NAMES[::-1])
    write_published_csv(samples, path, layout=PUBLISHED)
    found = read_published_csv(path, layout=PUBLISHED)
    assert (found.station.tolist(), found.network.tolist()) == (NAMES, NAMES[::-1])


@pytest.mark.parametrize("name", ["cr\rhere", "x\x00y"])
@pytest.mark.parametrize("fact", ["station", "network"])
def test_names_that_no_csv_file_keeps_are_refused(tmp_path, path, monkeypatch, name, fact):
    monkeypatch.setattr(published_table, "_ROWS", 4)
    names = ["a"] * 5 + [name]
    with pytest.raises(SourceError, match=rf"row 6, column '{fact}': expected a name without"):
        write_published_csv(published_samples(6, **{fact: names}), path, layout=PUBLISHED)
    assert list(tmp_path.iterdir()) == []


def test_excel_has_no_day_for_old_and_far_dates(path):
    dates = ["1899-05-01", "1900-02-28", "1900-03-01", "2173-10-14", "2173-10-15", "2200-01-01"]
    time = np.array(dates, "M8[ns]")
    write_published_csv(published_samples(6, time=time), path, layout=PUBLISHED)
    assert pd.read_csv(path)["edate"].fillna(0).tolist() == [0, 0, 61, 100_000, 0, 0]
    np.testing.assert_array_equal(read_published_csv(path, layout=PUBLISHED).time, time)


@pytest.mark.parametrize("value", [1.2, -0.05, np.nan])
def test_inputs_that_would_not_be_read_are_not_written(tmp_path, path, monkeypatch, value):
    monkeypatch.setattr(published_table, "_ROWS", 4)
    for column, name in (("snapshot", (5, 0)), ("series", (5, 0, 2))):
        samples = published_samples(9)
        getattr(samples, column)[name] = value
        expected = f"row 6, column '{0 if column == 'snapshot' else 17}': expected a scaled value"
        with pytest.raises(SourceError, match=expected):
            write_published_csv(samples, path, layout=PUBLISHED)
    assert list(tmp_path.iterdir()) == []
    samples = published_samples(9)
    samples.snapshot[5, 3:5] = torch.tensor([0.5, 0.75])
    with pytest.raises(LayoutError, match=r"sine and cosine of one angle.* in row 6\."):
        write_published_csv(samples, path, layout=PUBLISHED)


@pytest.mark.parametrize("facts", [{"latitude": -9999.0}, {"longitude": 500.0}])
def test_positions_off_the_globe_are_not_written(path, facts):
    with pytest.raises(SourceError, match=r"row 1, column 'l.*itude': expected degrees"):
        write_published_csv(published_samples(3, **facts), path, layout=PUBLISHED)


def test_nothing_is_overwritten_or_left_behind(tmp_path, path, monkeypatch):
    path.write_text("mine")
    with pytest.raises(StoreError, match="exists already"):
        write_published_csv(published_samples(2), path, layout=PUBLISHED)
    assert path.read_text() == "mine"
    path.unlink()
    empty = published_samples(2).take(np.array([], np.int64))
    with pytest.raises(NoDataError, match="no sample to write"):
        write_published_csv(empty, path, layout=PUBLISHED)
    samples = published_samples(2)
    narrow = replace(samples, snapshot=samples.snapshot[:, :14])
    with pytest.raises(LayoutError, match="14, 3 and 46"):
        write_published_csv(narrow, path, layout=PUBLISHED)
    monkeypatch.setattr(published_table, "_ROWS", 1)
    original = pd.DataFrame.to_csv

    def fail_later(self, target, *args, header, **kwargs):
        if not header:
            raise OSError(28, "No space left on device")
        return original(self, target, *args, header=header, **kwargs)

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail_later)
    with pytest.raises(StoreError, match="No space left on device"):
        write_published_csv(samples, path, layout=PUBLISHED)
    assert list(tmp_path.iterdir()) == []
