"""Sentinel-1's passes: when the satellite is over the region, in which orbit, at which angle."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from odc.geo.geobox import GeoBox

from smgrid.simulate.fields import Array
from smgrid.simulate.radar import ground_distance, incidence_angle
from smgrid.windows import Period

OrbitState = Literal["ascending", "descending"]

PLATFORM = "SENTINEL-1A"
REPEAT = pd.Timedelta(days=12)
ORBITS_PER_REPEAT = 175  # ESA, Sentinel-1 User Handbook
SCENE_LENGTH = pd.Timedelta(seconds=25)
# Orbit 58252 of Sentinel-1A, from which the numbers of all others are counted.
_KNOWN_ORBIT, _KNOWN_TIME = 58252, pd.Timestamp("2025-03-11T04:42:40")
_RELATIVE_SHIFT = 73  # relative = (absolute - 73) mod 175 + 1 for Sentinel-1A


@dataclass(frozen=True)
class Track:
    """One of the orbits from which the region is seen."""

    orbit_state: OrbitState
    look: float
    """Azimuth of the radar beam, to the right of the flight [degree clockwise from north]."""
    angle: float
    """Incidence angle in the middle of the region [degree]."""
    local_hour: float
    """Local solar time of the pass [h]."""
    first_day: int
    """Days from the start of the period to the first pass."""


# Headings of 348 and 192 degrees, as over the middle latitudes.
TRACKS = (
    Track("ascending", look=78.0, angle=39.0, local_hour=18.0, first_day=1),
    Track("descending", look=282.0, angle=34.0, local_hour=6.0, first_day=6),
)


@dataclass(frozen=True)
class Pass:
    """One acquisition."""

    track: Track
    start: pd.Timestamp
    """UTC."""
    absolute_orbit: int

    @property
    def relative_orbit(self) -> int:
        """Number within the repeat cycle, 1 to 175."""
        return (self.absolute_orbit - _RELATIVE_SHIFT) % ORBITS_PER_REPEAT + 1

    @property
    def end(self) -> pd.Timestamp:
        """UTC."""
        return self.start + SCENE_LENGTH


def passes_of(track: Track, period: Period, *, longitude: float) -> list[Pass]:
    """Every pass of a track in a period, 12 days apart.

    Parameters
    ----------
    track
        The orbit.
    period
        First and last UTC day.
    longitude
        Of the region's centre [degree]: local solar time is ahead of UTC by 1 h per 15 degrees.
    """
    hour = (track.local_hour - longitude / 15.0) % 24.0
    first = period.start + pd.Timedelta(days=track.first_day, seconds=round(hour * 3600.0) % 86400)
    orbit = _KNOWN_ORBIT + round((first - _KNOWN_TIME) / REPEAT * ORBITS_PER_REPEAT)
    count = max(0, (period.end + pd.Timedelta(days=1) - first) // REPEAT + 1)
    every = (Pass(track, first + i * REPEAT, orbit + i * ORBITS_PER_REPEAT) for i in range(count))
    return [one for one in every if one.start < period.end + pd.Timedelta(days=1)]


def swath_angle(track: Track, grid: GeoBox, base: GeoBox) -> Array:
    """Incidence angle at every pixel of `grid` [degree]; NaN beyond the far edge of the swath.

    The swath ends where the region ends, so that a wedge of the grid's margin is not seen, as at
    the edges of real scenes.
    """
    y, x = (axis.values for axis in grid.coordinates.values())
    box = base.boundingbox
    centre = (box.left + box.right) / 2, (box.bottom + box.top) / 2
    east, north = np.sin(np.radians(track.look)), np.cos(np.radians(track.look))
    across = (x - centre[0]) * east + (y[:, None] - centre[1]) * north
    corners = [
        (cx - centre[0]) * east + (cy - centre[1]) * north
        for cx in (box.left, box.right)
        for cy in (box.bottom, box.top)
    ]
    angle = incidence_angle(ground_distance(track.angle) + across / 1000.0)
    angle[across > max(corners)] = np.nan
    return angle
