import json

import numpy as np
import pandas as pd
import pytest
from odc.geo.geobox import GeoBox

from smgrid.simulate.orbits import TRACKS, Pass, passes_of, swath_angle
from smgrid.windows import Period

PERIOD = Period.parse(("2022-01-01", "2023-03-31"))
BASE = GeoBox.from_bbox((3e5, 4.5e6, 3.13e5, 4.513e6), "EPSG:32630", resolution=100)


@pytest.mark.parametrize("track", TRACKS, ids=lambda t: t.orbit_state)
@pytest.mark.parametrize("longitude", [-120.0, -5.4, 106.0, 179.0])
def test_passes_come_every_12_days_at_the_local_hour(track, longitude):
    passes = passes_of(track, PERIOD, longitude=longitude)
    times = pd.DatetimeIndex([p.start for p in passes])
    assert len(passes) in (37, 38)
    assert set(np.diff(times)) == {np.timedelta64(12, "D")}
    local = times + pd.Timedelta(hours=longitude / 15)
    assert set(np.round(local.hour + local.minute / 60)) == {track.local_hour}
    assert PERIOD.start <= times[0]
    assert times[-1] < PERIOD.end + pd.Timedelta(days=1)
    assert times[-1] + pd.Timedelta(days=12) >= PERIOD.end + pd.Timedelta(days=1)
    assert len({p.relative_orbit for p in passes}) == 1
    assert set(np.diff([p.absolute_orbit for p in passes])) == {175}


def test_the_two_tracks_are_told_apart():
    orbits = {passes_of(t, PERIOD, longitude=-5.4)[0].relative_orbit for t in TRACKS}
    assert len(orbits) == 2
    assert {t.orbit_state for t in TRACKS} == {"ascending", "descending"}


def test_relative_orbits_agree_with_recorded_items(shared):
    folder = shared / "data/real/stac_responses/planetary_computer"
    found = json.loads((folder / "search_items_sentinel-1-rtc.json").read_text())
    items = found["features"] if isinstance(found, dict) else found
    for item in items:
        p = item["properties"]
        start = pd.Timestamp(p["start_datetime"]).tz_localize(None)
        one = Pass(TRACKS[0], start, p["sat:absolute_orbit"])
        assert one.relative_orbit == p["sat:relative_orbit"]


def test_absolute_orbits_agree_with_recorded_items(shared):
    """The count from the known orbit hits the number of a pass eleven months earlier."""
    folder = shared / "data/real/stac_responses/planetary_computer"
    found = json.loads((folder / "search_items_sentinel-1-rtc.json").read_text())
    item = (found["features"] if isinstance(found, dict) else found)[0]
    start = pd.Timestamp(item["properties"]["start_datetime"]).tz_localize(None)
    track = TRACKS[1]
    hours = start.hour + start.minute / 60 + start.second / 3600
    longitude = (track.local_hour - hours) * 15
    day = start.normalize() - pd.Timedelta(days=track.first_day)
    one = passes_of(track, Period(day, day + pd.Timedelta(days=20)), longitude=longitude)[0]
    assert abs(one.start - start) < pd.Timedelta(seconds=2)
    assert abs(one.absolute_orbit - item["properties"]["sat:absolute_orbit"]) <= 1


@pytest.mark.parametrize("track", TRACKS, ids=lambda t: t.orbit_state)
def test_the_angle_grows_away_from_the_track(track):
    angle = swath_angle(track, BASE, BASE)
    assert np.isfinite(angle).all()
    assert abs(angle.mean() - track.angle) < 0.02
    assert 0.5 < np.ptp(angle) < 1.5  # about 0.065 degrees per kilometre
    to_the_east = np.diff(angle, axis=1)
    assert (to_the_east > 0).all() if track.orbit_state == "ascending" else (to_the_east < 0).all()


def test_the_margin_has_a_wedge_beyond_the_swath():
    for track in TRACKS:
        angle = swath_angle(track, BASE.pad(5), BASE)
        seen = np.isfinite(angle)
        assert 0 < (~seen).sum() < 0.05 * angle.size
        assert seen[5:-5, 5:-5].all()
