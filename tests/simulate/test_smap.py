import h5py
import numpy as np
import pandas as pd
import pytest

from smgrid.ease import ease_position
from smgrid.grid import pixel_centres
from smgrid.simulate.fields import stream
from smgrid.simulate.smap import NOISE, SmapWriter, file_name, retrieve
from smgrid.windows import Period

PERIOD = Period.parse(("2022-01-01", "2022-01-31"))


def write(land, day, folder):
    SmapWriter(folder, land, scenes=PERIOD, seed=1).observe(day)
    return folder / file_name(day.date)


@pytest.fixture(scope="module")
def cells(land):
    """EASE-Grid row and column of every pixel of the domain."""
    x, y = pixel_centres(land.frame.domain, "EPSG:6933")
    return ease_position(x, y, km=9, convention="exact")


def test_a_wet_cell_is_in_its_row_and_column(land, cells, make_day, tmp_path):
    row, column = cells
    inner = land.frame.inner
    wet = row[inner][0, 0], column[inner][0, 0]
    moisture = np.where((row == wet[0]) & (column == wet[1]), 0.5, 0.1)
    path = write(land, make_day("2022-01-01", moisture=moisture), tmp_path)
    with h5py.File(path) as file:
        values = file["Soil_Moisture_Retrieval_Data_AM/soil_moisture"][:]
        rows = file["Soil_Moisture_Retrieval_Data_AM/EASE_row_index"][:]
        columns = file["Soil_Moisture_Retrieval_Data_AM/EASE_column_index"][:]
        latitude = file["Soil_Moisture_Retrieval_Data_AM/latitude"][:]
    assert values.shape == (1624, 3856)
    seen = values != -9999
    assert seen[row[inner], column[inner]].all()
    assert seen.sum() < 10
    assert values[wet] > 0.35
    assert (values[seen] > 0.35).sum() == 1
    assert (rows[wet], columns[wet]) == wet
    assert abs(latitude[wet] - 41.3) < 0.2
    assert (latitude[~seen] == -9999).all()


def test_values_are_means_over_the_cell(land, cells, make_day, tmp_path):
    """Half of the cell wet: the mean over repeated noise is half way."""
    row, column = cells
    wet = row[land.frame.inner][0, 0], column[land.frame.inner][0, 0]
    here = (row == wet[0]) & (column == wet[1])
    moisture = np.where(here & (np.cumsum(here).reshape(here.shape) % 2 == 0), 0.5, 0.1)
    found = []
    for date in pd.date_range("2022-01-01", "2022-01-25", freq="8D"):
        with h5py.File(write(land, make_day(date, moisture=moisture), tmp_path)) as file:
            found.append(file["Soil_Moisture_Retrieval_Data_AM/soil_moisture"][wet])
    assert abs(np.mean(found) - 0.3) < 0.07


def test_retrievals_have_the_stated_noise_and_flags():
    truth = np.full((400, 400), 0.25, dtype=np.float32)
    frozen = np.zeros(truth.shape, dtype=bool)
    frozen[:40] = True
    flag, moisture = retrieve(stream(1, "test"), truth, frozen=frozen)
    good, poor = flag == 0, flag == 1
    assert abs(moisture[good].std() / NOISE - 1) < 0.02
    assert abs(moisture[good].mean() - 0.25) < 1e-3
    assert abs(moisture[poor].std() / (2 * NOISE) - 1) < 0.05
    assert abs(poor.sum() / (~frozen).sum() - 0.1) < 0.01
    assert (moisture[frozen] == -9999).all()
    assert (flag[frozen] & 1 == 1).all()


def test_files_have_the_groups_and_fills_of_the_product(land, make_day, tmp_path):
    path = write(land, make_day("2022-01-01"), tmp_path)  # seen in the morning only
    with h5py.File(path) as file:
        am, pm = (file[f"Soil_Moisture_Retrieval_Data_{half}"] for half in ("AM", "PM"))
        assert {f"{name}_pm" for name in am} == set(pm)
        for group, suffix in ((am, ""), (pm, "_pm")):
            moisture = group[f"soil_moisture{suffix}"]
            assert moisture.dtype == np.float32
            assert moisture.fillvalue == -9999
            assert moisture.attrs["_FillValue"] == -9999
            assert moisture.attrs["units"] == "cm**3/cm**3"
            flag = group[f"retrieval_qual_flag{suffix}"]
            assert flag.dtype == np.uint16
            assert flag.fillvalue == 65534
        assert (pm["soil_moisture_pm"][:] == -9999).all()
        assert file["Metadata/DatasetIdentification"].attrs["shortName"] == "SPL3SMP_E"
        stamp = am["tb_time_utc"][:]
        time = pd.Timestamp(stamp[stamp != b""][0].decode())
        seconds = am["tb_time_seconds"][:]
        elapsed = float(seconds[seconds != -9999][0])
    local = time + pd.Timedelta(hours=-5.4 / 15)
    assert abs((local - pd.Timestamp("2022-01-01T06:00", tz="UTC")).total_seconds()) < 120
    epoch = pd.Timestamp("2000-01-01T11:58:55.816", tz="UTC")
    assert abs((time - epoch).total_seconds() - elapsed) < 1


def test_the_region_is_seen_every_two_to_three_days(land, make_day, tmp_path):
    writer = SmapWriter(tmp_path, land, scenes=PERIOD, seed=1)
    seen = {"AM": [], "PM": []}
    for date in pd.date_range("2021-12-20", "2022-02-05"):
        writer.observe(make_day(date))
        path = tmp_path / file_name(date)
        if not path.exists():
            continue
        with h5py.File(path) as file:
            for half, suffix in (("AM", ""), ("PM", "_pm")):
                name = f"Soil_Moisture_Retrieval_Data_{half}/soil_moisture{suffix}"
                if (file[name][250:300, 1850:1900] != -9999).any():
                    seen[half].append(date)
    for dates in seen.values():
        gaps = set(np.diff(dates) / np.timedelta64(1, "D"))
        assert gaps <= {2.0, 3.0}
        assert PERIOD.start <= dates[0] <= dates[-1] <= PERIOD.end


def test_files_are_small(land, make_day, tmp_path):
    """A daily file of the real archive holds a few hundred megabytes when it is unpacked."""
    assert write(land, make_day("2022-01-04"), tmp_path).stat().st_size < 150_000
