"""Sources that stand in for others: what is taken from which, and what is never taken."""

from datetime import date

import dask
import h5py
import numpy as np
import pandas as pd
import pytest
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, StacQuery
from smgrid.errors import ConfigError, NoDataError, SourceError
from smgrid.sources.fallback import load_chain, sources_needed
from smgrid.windows import Period, composite_calendar
from tests.builders import make_item, utm_grid, write_catalog, write_cog

GRID = utm_grid((4, 5), 100)
PERIOD = Period.parse(("2024-03-01", "2024-04-30"))
CALENDAR = composite_calendar(PERIOD).strftime("%Y-%m-%d").tolist()


def spec(name, loader, provides, **changes):
    options = {key: changes.pop(key) for key in list(changes) if key in OPTIONS}
    return SourceSpec(
        name,
        f"tests.providers:{loader}",
        provides,
        options=options,
        origin=f"test.yml, {name}",
        licence=f"licence of {name}",
        **changes,
    )


OPTIONS = {"value", "fate", "observed", "passes", "average", "composite_days", "skip", "log", "km"}


def series(name, value, provides=("ndvi",), **changes):
    return spec(name, "load_series", provides, value=value, **changes)


def passes(name, value, rows, **changes):
    changes = {"convention": "gamma0"} | changes
    return spec(name, "load_passes", ("vv", "vh"), value=value, passes=rows, **changes)


def static(name, value, provides=("sand",), **changes):
    return spec(name, "load_static", provides, value=value, **changes)


def load(*chain, period=PERIOD):
    return load_chain(chain, GRID, period, chunks=4)


def by_step(ds, name):
    return ds[name].isel(y=0, x=0).values.tolist()


def test_a_source_without_fallbacks_is_recorded_without_a_coordinate():
    ds = load(series("modis", 0.5, observed=CALENDAR[:3]))
    assert set(ds.coords) == {"date", "y", "x", "spatial_ref"}
    assert by_step(ds, "ndvi") == [0.5] * len(CALENDAR)
    assert ds["ndvi"].attrs["source"] == "modis"
    assert ds["ndvi"].attrs["license"] == "licence of modis"


def test_dates_after_the_end_of_the_record_come_from_the_fallback():
    last = date.fromisoformat(CALENDAR[2])
    ds = load(series("modis", 0.5, last_day=last), series("viirs", 0.25))
    rest = len(CALENDAR) - 3
    assert by_step(ds, "ndvi") == [0.5] * 3 + [0.25] * rest
    assert ds["ndvi_source"].values.tolist() == ["modis"] * 3 + ["viirs"] * rest
    assert ds["ndvi_source"].dims == ("date",)
    assert ds.indexes["date"].strftime("%Y-%m-%d").tolist() == CALENDAR


def test_dates_before_the_record_come_from_the_fallback():
    first = date.fromisoformat(CALENDAR[2])
    ds = load(series("modis", 0.5, first_day=first), series("viirs", 0.25))
    assert by_step(ds, "ndvi")[:3] == [0.25, 0.25, 0.5]


def test_composites_that_the_provider_lacks_come_from_the_fallbacks_in_order():
    own, others = CALENDAR[0::2], CALENDAR[1:4]
    ds = load(
        series("modis", 0.5, observed=own),
        series("viirs", 0.25, observed=others),
        series("last", 0.125),
    )
    expected = dict.fromkeys(CALENDAR, "last") | dict.fromkeys(others, "viirs")
    expected |= dict.fromkeys(own, "modis")
    assert ds["ndvi_source"].values.tolist() == [expected[day] for day in CALENDAR]
    values = {"modis": 0.5, "viirs": 0.25, "last": 0.125}
    assert by_step(ds, "ndvi") == [values[expected[day]] for day in CALENDAR]
    assert "observed" not in ds.coords
    assert ds["ndvi"].chunks[0] == (len(CALENDAR),)


def test_a_date_that_none_has_keeps_the_value_of_the_first():
    ds = load(
        series("modis", 0.5, observed=CALENDAR[:-1]), series("viirs", 0.25, observed=CALENDAR[:-1])
    )
    assert by_step(ds, "ndvi") == [0.5] * len(CALENDAR)
    assert set(ds["ndvi_source"].values) == {"modis"}


def test_a_series_without_anything_is_replaced_as_a_whole():
    ds = load(series("modis", 0.5, fate="no data"), series("viirs", 0.25))
    assert by_step(ds, "ndvi") == [0.25] * len(CALENDAR)
    assert set(ds["ndvi_source"].values) == {"viirs"}
    later = Period.parse(("2026-01-01", "2026-02-01"))
    ds = load(
        series("modis", 0.5, last_day=date(2025, 12, 31)), series("viirs", 0.25), period=later
    )
    assert set(ds["ndvi_source"].values) == {"viirs"}


def test_a_fallback_is_asked_for_the_dates_that_are_lacking_only(tmp_path):
    log = tmp_path / "log"
    load(
        series("modis", 0.5, observed=CALENDAR[:2] + CALENDAR[4:]),
        series("viirs", 0.25, log=str(log)),
        series("never", 0.1, log=str(log)),
    )
    assert log.read_text() == f"viirs {CALENDAR[2]}/{CALENDAR[3]}\n"


def test_only_what_is_wanted_is_asked_of_a_fallback():
    ds = load(
        series("one", 285.0, ("t2m",), last_day=date(2024, 3, 10)),
        series("two", 280, ("tp", "t2m")),
    )
    assert set(ds.data_vars) == {"t2m"}
    assert by_step(ds, "t2m")[9:11] == [285, 280]
    assert set(ds.coords) == {"date", "y", "x", "spatial_ref", "t2m_source"}


def test_a_fallback_with_other_dates_is_refused():
    with pytest.raises(SourceError, match=r"viirs cannot stand in .*2024-03-05 is in one of them"):
        load(series("modis", 0.5, fate=None, observed=[]), series("viirs", 0.25, skip=1))


@pytest.mark.parametrize("make", [series, static])
def test_a_fault_is_never_papered_over(make):
    with pytest.raises(SourceError, match="first cannot be read"):
        load(make("first", 0.5, fate="unreadable"), make("second", 0.25))


def test_a_fault_of_a_search_for_passes_is_never_papered_over():
    rows = [["2024-03-05T05:00", "sentinel-1a", 37]]
    with pytest.raises(SourceError, match="rtc cannot be read"):
        load(passes("rtc", -11, rows, fate="unreadable"), passes("grd", -12, rows))
    with pytest.raises(SourceError, match="grd cannot be read"):
        load(passes("rtc", -11, rows), passes("grd", -12, rows, fate="unreadable"))


@pytest.mark.parametrize("make", [series, static])
def test_when_none_has_anything_all_are_named(make):
    with pytest.raises(NoDataError, match=r"(?s)first has nothing here.*second has nothing here"):
        load(make("first", 0.5, fate="no data"), make("second", 0.25, fate="no data"))


ROWS = [
    ["2024-03-05T05:00:00", "sentinel-1a", 37],
    ["2024-03-11T17:20:00", "sentinel-1c", 161],
]


def test_missing_passes_come_from_the_fallback_in_order_of_time():
    others = [
        ["2024-03-05T05:00:04", "sentinel-1a", 37],  # the same pass, cut otherwise
        ["2024-03-08T05:00:00", "sentinel-1a", 80],
        ["2024-03-17T05:00:00", "sentinel-1a", 37],
    ]
    ds = load(passes("rtc", -11, ROWS), passes("opera", -12, others))
    assert ds["source"].values.tolist() == ["rtc", "opera", "rtc", "opera"]
    assert by_step(ds, "vv") == [-11, -12, -11, -12]
    assert ds["relative_orbit"].values.tolist() == [37, 80, 161, 37]
    assert ds["platform"].values.tolist() == [
        "sentinel-1a",
        "sentinel-1a",
        "sentinel-1c",
        "sentinel-1a",
    ]
    assert ds.indexes["time"].is_monotonic_increasing
    assert ds["vv"].chunks[0] == (1, 1, 1, 1)
    assert ds["vv"].attrs["convention"] == "gamma0"


@pytest.mark.parametrize(
    ("row", "known"),
    [
        (["2024-03-05T05:09:59", "sentinel-1a", 37], True),
        (["2024-03-05T04:50:01", "sentinel-1a", 37], True),
        (["2024-03-05T05:10:01", "sentinel-1a", 37], False),
        (["2024-03-05T05:05:00", "sentinel-1b", 37], False),
        (["2024-03-04T05:00:00", "sentinel-1a", 37], False),
        (["2024-03-05T05:05:00", "sentinel-1a", 38], False),
        (["2024-03-05T05:05:00", "", 0], True),
        (["2024-03-05T05:05:00", "", 38], False),
    ],
)
def test_what_counts_as_the_same_pass(row, known):
    ds = load(passes("rtc", -11, ROWS[:1]), passes("opera", -12, [row]))
    assert ds["source"].values.tolist().count("opera") == (0 if known else 1)


def test_passes_without_anything_are_replaced_and_the_other_way_round():
    ds = load(passes("rtc", -11, [], fate="no data"), passes("opera", -12, ROWS))
    assert ds["source"].values.tolist() == ["opera", "opera"]
    ds = load(passes("rtc", -11, ROWS), passes("opera", -12, [], fate="no data"))
    assert ds["source"].values.tolist() == ["rtc", "rtc"]


def test_two_passes_of_one_second_are_refused():
    row = [[ROWS[0][0], "sentinel-1b", 99]]
    with pytest.raises(SourceError, match=r"two passes of rtc, opera start at 2024-03-05 05:00"):
        load(passes("rtc", -11, ROWS), passes("opera", -12, row))


def test_passes_averaged_otherwise_are_refused():
    with pytest.raises(SourceError, match=r"vv: the averaging of sources .* is db and linear"):
        load(passes("rtc", -11, ROWS[:1]), passes("opera", -12, ROWS[1:], average="linear"))


def test_static_data_come_from_the_first_that_has_them():
    ds = load(static("soilgrids", 300, fate="no data"), static("survey", 400))
    assert float(ds["sand"][0, 0]) == 400
    assert ds["sand"].attrs["source"] == "survey"
    assert "value" in ds["sand"].attrs["source_settings"]
    assert ds["sand"].attrs["license"] == "licence of survey"
    ds = load(static("soilgrids", 300), static("survey", 400))
    assert ds["sand"].attrs["source"] == "soilgrids"


def test_attributes_tell_of_all_sources_whether_they_were_needed_or_not():
    chain = series("modis", 0.5, composite_days=8), series("viirs", 0.25, composite_days=16)
    attrs = load(*chain)["ndvi"].attrs
    assert attrs["source"] == "modis, viirs"
    assert attrs["source_settings"].startswith("modis: {options: ")
    assert "viirs: {options: " in attrs["source_settings"]
    assert attrs["license"] == "licence of modis; licence of viirs"
    assert attrs["composite_days"] == 8
    used = load(series("modis", 0.5, composite_days=8, observed=CALENDAR[:1]), chain[1])
    assert used["ndvi"].attrs["composite_days"] == 16
    assert used["ndvi"].attrs["source_settings"].count("loader") == 2


def test_nothing_is_computed():
    def refuse(*_args, **_kwargs):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        load(series("modis", 0.5, observed=CALENDAR[::2]), series("viirs", 0.25))
        load(passes("rtc", -11, ROWS[:1]), passes("opera", -12, ROWS))


def test_a_missing_credential_is_found_before_the_loader_is_called(tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.delenv("EARTHDATA_TOKEN", raising=False)
    needing = series("viirs", 0.25, log=str(log), credentials=("EARTHDATA_TOKEN",), note="how to")
    message = r"test\.yml, viirs: viirs needs the environment variable EARTHDATA_TOKEN.*\(how to\)"
    with pytest.raises(ConfigError, match=message):
        load(needing)
    with pytest.raises(ConfigError, match=message):
        load(series("modis", 0.5, observed=CALENDAR[:1]), needing)
    assert not log.exists()
    load(series("modis", 0.5), needing)  # it is not needed
    monkeypatch.setenv("EARTHDATA_TOKEN", "t")
    load(needing)


def test_which_sources_will_be_asked():
    ends = series("modis", 0.5, last_day=date(2024, 4, 1))
    covers, late = series("viirs", 0.25), series("late", 0.1, first_day=date(2025, 1, 1))
    assert sources_needed((ends, covers, late), PERIOD) == (ends, covers)
    assert sources_needed((covers, ends), PERIOD) == (covers,)
    assert sources_needed((late, covers), PERIOD) == (covers,)
    assert sources_needed((ends, late), PERIOD) == (ends,)
    radar = passes("rtc", -11, ROWS), passes("opera", -12, ROWS)
    assert sources_needed(radar, PERIOD) == radar


def test_the_last_day_of_a_record_is_part_of_it():
    days = Period.parse(("2024-03-01", "2024-03-04"))
    one = series("one", 285.0, ("t2m",), first_day=date(2024, 3, 2), last_day=date(2024, 3, 3))
    ds = load(one, series("two", 280.0, ("t2m",)), period=days)
    assert by_step(ds, "t2m") == [280, 285, 285, 280]
    np.testing.assert_array_equal(ds.indexes["date"], pd.date_range("2024-03-01", periods=4))


# South-east of 60 N 0 E, in the corner of the VIIRS tile h18v03.
CORNER = GeoBox.from_bbox((0.002, 59.985, 0.018, 59.998), "EPSG:4326", resolution=0.002)


def write_modis(folder, starts):
    """Write composites of NDVI 0.5 for some slots of the calendar and return their source."""
    pixels = CORNER.buffered(0.01, 0.01)
    path = write_cog(folder / "ndvi.tif", np.full(pixels.shape.yx, 5000, "int16"), pixels)
    items = [
        make_item(
            f"MOD13Q1.A{start:%Y%j}.h18v03.061.2024200000000",
            pixels,
            {"250m_16_days_NDVI": path},
            start=start,
            end=start + pd.Timedelta(days=16, seconds=-1),
        )
        for start in starts
    ]
    href = write_catalog(folder / "stac", "modis-13Q1-061", items)
    return SourceSpec(
        "modis",
        "smgrid.sources.ndvi:load_modis",
        ("ndvi", "ndvi_filled"),
        stac=StacQuery(str(href), "modis-13Q1-061"),
        assets={"ndvi": "250m_16_days_NDVI"},
        scale={"ndvi": 1e-4},
        native_resolution=231.7,
        options={"fill_days": 32},
        origin="test.yml, modis",
    )


def write_viirs(folder, starts):
    """Write tiles of NDVI 0.6 and return their source."""
    for start in starts:
        name = f"VNP13A1.A{start:%Y%j}.h18v03.002.2024200000000.h5"
        with h5py.File(folder / name, "w") as file:
            field = file.create_dataset(
                "HDFEOS/GRIDS/VIIRS_Grid_16Day_VI_500m/Data Fields/500 m 16 days NDVI",
                (2400, 2400),
                "i2",
                chunks=(120, 120),
                fillvalue=-15000,
            )
            field[:40, :40] = 6000
    return SourceSpec(
        "viirs",
        "smgrid.sources.ndvi:load_viirs",
        ("ndvi", "ndvi_filled"),
        paths=(f"{folder}/*.h5",),
        assets={"ndvi": "500 m 16 days NDVI"},
        scale={"ndvi": 1e-4},
        native_resolution=463.3,
        options={"fill_days": 0},
        origin="test.yml, viirs",
    )


def test_viirs_goes_on_where_modis_ended(tmp_path):
    """The files of both, as they are read: composites of MODIS end, and one in between is lost."""
    slots = composite_calendar(PERIOD)
    modis = write_modis(tmp_path, [*slots[:2], slots[3]])
    viirs = write_viirs(tmp_path, slots)
    ds = load_chain((modis, viirs), CORNER, PERIOD, chunks=8)
    names = ["modis", "modis", "viirs", "modis"] + ["viirs"] * (len(slots) - 4)
    assert ds["ndvi_source"].values.tolist() == names
    assert ds["ndvi_filled_source"].values.tolist() == names
    expected = [0.5 if name == "modis" else 0.6 for name in names]
    np.testing.assert_allclose(by_step(ds, "ndvi"), expected, rtol=1e-6)
    assert by_step(ds, "ndvi_filled") == [0.0] * len(slots)
    alone = load_chain((modis,), CORNER, PERIOD, chunks=8)
    assert by_step(alone, "ndvi_filled")[:6] == [0, 0, 1, 0, 1, 1]  # held for 32 days
