"""ISMN archives: both text layouts, zip and folder, flags, layers, daily means; real archives."""

import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest

from smgrid.errors import NoDataError, SourceError
from smgrid.sources.stations import open_stations

HEADER = "NET        NET        {station}           52.08130 6.94089          46.0 {top} {bottom} P"


def readings(day, values, flag="G"):
    return [f"{day} {hour:02d}:00 {v:.4f} {flag} M" for hour, v in enumerate(values)]


def write_sensor(
    folder, station, lines, *, depth=(0.0, 0.05), sensor="Probe", network="NET", ends="\n"
):
    top, bottom = depth
    header = HEADER.format(station=station, top=f"{top:.4f}", bottom=f"{bottom:.4f}")
    path = folder / network / station
    path.mkdir(parents=True, exist_ok=True)
    name = f"{network}_{network}_{station}_sm_{top:.6f}_{bottom:.6f}_{sensor}_20240101_20240131.stm"
    text = ends.join([header.replace("NET", network), *lines]) + ends
    (path / name).write_bytes(text.encode())


def test_daily_mean_and_count_of_good_readings(tmp_path):
    lines = [*readings("2024/01/02", [0.2, 0.3]), "2024/01/02 02:00 0.9000 D06 M"]
    lines += ["2024/01/02 03:00 -9999 M M", "2024/01/03 00:00 0.7000 C03,D01 M"]
    lines += readings("2024/01/04", [0.1])
    write_sensor(tmp_path, "A", lines)
    ds = open_stations(tmp_path)
    assert list(ds["time"].values) == list(pd.date_range("2024-01-02", "2024-01-04").values)
    np.testing.assert_allclose(ds["soil_moisture"].values, [[0.25, np.nan, 0.1]], atol=1e-6)
    assert ds["count"].values.tolist() == [[2, 0, 1]]
    assert ds["soil_moisture"].dims == ("station", "time")
    assert ds["soil_moisture"].attrs["units"] == "m3 m-3"
    assert ds["station"].item() == "A"
    assert ds["network"].item() == "NET"
    assert (ds["longitude"].item(), ds["latitude"].item()) == (6.94089, 52.0813)
    assert (ds["depth_from"].item(), ds["depth_to"].item()) == (0.0, 0.05)


def test_several_flags_are_good_only_if_all_are(tmp_path):
    write_sensor(tmp_path, "A", ["2024/01/01 00:00 0.2 D01,D03 M", "2024/01/01 01:00 0.4 D01 M"])
    ds = open_stations(tmp_path, quality=("G", "D01"))
    np.testing.assert_allclose(ds["soil_moisture"].values, [[0.4]], atol=1e-6)


def test_sensors_of_the_layer_are_averaged_per_time_stamp(tmp_path):
    write_sensor(tmp_path, "A", readings("2024/01/01", [0.1, 0.3]), depth=(0.0, 0.05))
    write_sensor(tmp_path, "A", readings("2024/01/01", [0.3]), depth=(0.0508, 0.0508))
    write_sensor(tmp_path, "A", readings("2024/01/01", [0.9] * 5), depth=(0.1, 0.1))
    ds = open_stations(tmp_path)
    # 00:00 is the mean of 0.1 and 0.3, 01:00 is 0.3: their mean, not that of three readings.
    np.testing.assert_allclose(ds["soil_moisture"].values, [[0.25]], atol=1e-6)
    assert ds["count"].values.tolist() == [[2]]
    assert ds["depth_to"].item() == 0.0508


@pytest.mark.parametrize(
    ("depth", "is_found"), [((0.0508, 0.0508), True), ((0.0, 0.052), False), ((0.1, 0.1), False)]
)
def test_the_layer_has_a_tolerance_of_a_millimetre(tmp_path, depth, is_found):
    write_sensor(tmp_path, "A", readings("2024/01/01", [0.2]), depth=depth)
    if is_found:
        assert open_stations(tmp_path).sizes["station"] == 1
    else:
        with pytest.raises(NoDataError, match="0 soil-moisture sensors lie between 0"):
            open_stations(tmp_path)


def test_period_fixes_the_calendar_and_silent_stations_are_named(tmp_path):
    write_sensor(tmp_path, "A", readings("2024/01/01", [0.2]) + readings("2024/01/05", [0.4]))
    write_sensor(tmp_path, "B", readings("2024/01/05", [0.4]))
    write_sensor(tmp_path, "C", readings("2024/01/01", [0.4], flag="D06"))
    ds = open_stations(tmp_path, period=("2024-01-01", "2024-01-03"))
    assert ds["station"].values.tolist() == ["A"]
    assert ds.sizes["time"] == 3
    assert ds.attrs["stations_without_good_readings"] == "NET/B, NET/C"
    with pytest.raises(NoDataError, match="from 2025-01-01 to 2025-12-31"):
        open_stations(tmp_path, period="2025")


def test_the_last_hour_of_the_period_counts(tmp_path):
    lines = ["2024/01/03 23:00 0.2 G M", "2024/01/04 00:00 0.8 G M"]
    write_sensor(tmp_path, "A", lines)
    ds = open_stations(tmp_path, period=("2024-01-03", "2024-01-03"))
    np.testing.assert_allclose(ds["soil_moisture"].values, [[0.2]], atol=1e-6)


def test_one_name_in_two_networks(tmp_path):
    for network in ("NET", "OTHER"):
        write_sensor(tmp_path, "A", readings("2024/01/01", [0.2]), network=network)
    assert open_stations(tmp_path)["station"].values.tolist() == ["NET/A", "OTHER/A"]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_zip_equals_folder_whatever_the_line_ends(tmp_path, ends):
    folder = tmp_path / "archive"
    write_sensor(folder, "A", readings("2024/01/01", [0.2, 0.4]), ends=ends)
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", folder)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert open_stations(archive).identical(open_stations(folder))
    np.testing.assert_allclose(open_stations(archive)["soil_moisture"], [[0.3]], atol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_both_layouts_read_the_same(tmp_path):
    write_sensor(tmp_path / "header", "A", readings("2024/01/01", [0.2, 0.4]))
    ceop = tmp_path / "ceop"
    ceop.mkdir()
    station = "NET        NET        A            52.08130   6.94089   46.00    0.00    0.05"
    lines = [
        f"2024/01/01 {h:02d}:00 2024/01/01 {h:02d}:00 {station} {v} G M"
        for h, v in enumerate((0.2, 0.4))
    ]
    name = "NET_NET_A_sm_0.000000_0.050000_P_20240101_20240131.stm"
    (ceop / name).write_text("\n".join(lines))
    assert open_stations(ceop).identical(open_stations(tmp_path / "header"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("what is this\n2024/01/01 00:00 0.2 G M\n", "neither in the CEOP nor in the header"),
        (HEADER.format(station="A", top="0", bottom="0") + "\n2024-01-01 00:00 0.2 G M", "CEOP"),
        (HEADER.format(station="A", top="0", bottom="0") + "\n2024/01/01 00:00 24.0 G M", "24"),
    ],
)
def test_other_text_is_refused_with_its_name(tmp_path, text, message):
    name = "NET_NET_A_sm_0.000000_0.050000_P_20240101_20240131.stm"
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=message) as caught:
        open_stations(tmp_path)
    assert name in str(caught.value)


def test_neither_folder_nor_zip(tmp_path):
    with pytest.raises(SourceError, match="neither a folder nor a zip file"):
        open_stations(tmp_path / "missing.zip")
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(SourceError, match="neither a folder nor a zip file"):
        open_stations(tmp_path / "text.zip")


@pytest.mark.shared
def test_real_archive_agrees_with_the_ismn_package(shared):
    archive = shared / "data/real/ismn/ISMN_2024-08-25_2025-08-25_DWD_SMOSMANIA_REMEDHUS.zip"
    ds = open_stations(archive)
    assert ds.sizes["station"] == 31  # 44 sensors, 31 of them within 0-5 cm
    assert set(ds["network"].values) == {"DWD", "SMOSMANIA", "REMEDHUS"}
    # ismn 1.5.4: read_ts, flag G, resample("1D").
    first = ds.sel(station="Ahaus").isel(time=slice(3))
    np.testing.assert_allclose(first["soil_moisture"], [0.285917, 0.280333, 0.270875], atol=5e-7)
    assert first["count"].values.tolist() == [24, 24, 24]


@pytest.mark.shared
def test_real_archive_without_static_tables(shared):
    ds = open_stations(shared / "data/real/ismn/OZNET_2017_2021_0-5cm.zip")
    assert ds.sizes["station"] == 11
    # ismn 1.5.4 lists all eleven files as malformed and reads these values all the same.
    banandra = ds.sel(station="Banandra", time=slice("2019-03-27", "2019-03-29"))
    np.testing.assert_allclose(banandra["soil_moisture"], [0.087167, 0.085912, 0.085604], atol=5e-7)
    assert banandra["count"].values.tolist() == [6, 17, 24]


@pytest.mark.shared
def test_real_two_inch_labels_and_both_layouts(shared):
    folder = shared / "data/real/ismn/tuw_geo"
    ds = open_stations(folder / "Data_header_values_MAQU_SCAN_SOILSCAPE.zip", quality=("U",))
    assert {"AAMU-jtg", "Abrams", "Adams_Ranch_#1"} <= set(ds["station"].values)
    kwargs = {"depth": (0.0, 0.21)}
    ceop = open_stations(folder / "ceop_Data_seperate_files_20170810_20180809.zip", **kwargs)
    header = open_stations(
        folder / "header_Data_seperate_files_header_20170810_20180809.zip", **kwargs
    )
    assert ceop.identical(header)
    assert ceop.sizes["station"] == 2


@pytest.mark.shared
def test_real_ten_centimetre_archive_has_no_surface_sensor(shared):
    archive = shared / "data/real/ismn/TAHMO_Ghana_2019_2021_10cm.zip"
    with pytest.raises(NoDataError, match="0 soil-moisture sensors"):
        open_stations(archive)
    with zipfile.ZipFile(archive) as files:
        assert open_stations(archive, depth=(0.1, 0.1)).sizes["station"] == len(files.namelist())
