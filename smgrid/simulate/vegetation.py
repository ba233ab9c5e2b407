"""Vegetation: parcels of fields, pasture and woodland, whose NDVI follows season and soil water."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from smgrid.simulate.fields import Array, stream
from smgrid.simulate.frame import Frame

PARCEL_SIZE = 320.0  # m between neighbouring parcels' centres
_DRY_SHARE = 0.35  # of the seasonal green-up that a parcel keeps in a drought
_MEMORY_DAYS = 20.0  # over which plants follow soil water


@dataclass(frozen=True)
class Cover:
    """A kind of land cover; days count from the year's start of a northern warm season (day 200).

    Phenology is the difference of two logistic curves (Zhang et al. 2003,
    doi:10.1016/S0034-4257(02)00135-9).
    """

    name: str
    share: float
    """Of the parcels [1]."""
    floor: float
    """NDVI outside of the growing season [1]."""
    peak: float
    """NDVI of the full canopy [1]."""
    green_up: float
    """Day of fastest greening."""
    senescence: float
    """Day of fastest browning."""
    pace: float
    """Days over which a logistic curve turns."""
    rms_height: float
    """Median roughness of the soil [cm]."""


COVERS = (
    Cover("winter crop", 0.42, 0.17, 0.80, 75.0, 168.0, 11.0, 0.80),
    Cover("summer crop", 0.20, 0.16, 0.76, 150.0, 255.0, 10.0, 1.05),
    Cover("pasture", 0.28, 0.28, 0.68, 50.0, 190.0, 22.0, 0.65),
    Cover("woodland", 0.10, 0.56, 0.72, 90.0, 310.0, 25.0, 1.20),
)


@dataclass(frozen=True)
class Parcels:
    """Irregular parcels: the pixels nearest to one of many scattered centres."""

    origin: tuple[float, float]
    """Upper-left corner of the lattice that the centres scatter about [m]."""
    x: NDArray[np.float64]
    """Centres (rows, columns) [m]."""
    y: NDArray[np.float64]
    kind: NDArray[np.uint8]
    """Position in `COVERS` (n,), as all below; n counts the centres row by row."""
    delay: Array
    """Days by which a parcel is late."""
    floor: Array
    """NDVI outside of the growing season [1]."""
    span: Array
    """NDVI that a full canopy adds [1]."""
    rms_height: Array
    """Roughness of the soil [cm]."""

    def locate(self, grid: GeoBox) -> NDArray[np.int32]:
        """Parcel of every pixel of a grid in the parcels' CRS (y, x)."""
        y, x = (axis.values for axis in grid.coordinates.values())
        rows, columns = self.x.shape
        row = np.clip(((self.origin[1] - y) // PARCEL_SIZE).astype(np.intp), 0, rows - 1)
        column = np.clip(((x - self.origin[0]) // PARCEL_SIZE).astype(np.intp), 0, columns - 1)
        best = np.full((len(y), len(x)), np.inf)
        found = np.zeros((len(y), len(x)), dtype=np.int32)
        for dy in (-1, 0, 1):
            near_row = np.clip(row + dy, 0, rows - 1)
            for dx in (-1, 0, 1):
                near = np.ix_(near_row, np.clip(column + dx, 0, columns - 1))
                distance = (self.x[near] - x) ** 2 + (self.y[near] - y[:, None]) ** 2
                closer = distance < best
                best[closer] = distance[closer]
                index = (near[0] * columns + near[1]).astype(np.int32)
                found[closer] = index[closer]
        return found

    def greenness(self, season: float) -> Array:
        """Share of the seasonal green-up of each parcel (n,).

        Parameters
        ----------
        season
            Day of the year of the northern hemisphere, 1 to 366.
        """
        day = (season - self.delay - 1.0) % 365.25 + 1.0
        curves = np.stack([_phenology(cover, day) for cover in COVERS])
        return np.asarray(
            np.take_along_axis(curves, self.kind[None, :].astype(np.intp), axis=0)[0],
            dtype=np.float32,
        )


def make_parcels(frame: Frame, seed: int) -> Parcels:
    """Draw the parcels of a world's domain."""
    rng = stream(seed, "parcels")
    box = frame.domain.boundingbox
    columns = int(np.ceil((box.right - box.left) / PARCEL_SIZE)) + 2
    rows = int(np.ceil((box.top - box.bottom) / PARCEL_SIZE)) + 2
    origin = box.left - PARCEL_SIZE, box.top + PARCEL_SIZE
    count = rows * columns
    jitter = rng.uniform(0.15, 0.85, (2, rows, columns))
    kind = rng.choice(len(COVERS), count, p=[cover.share for cover in COVERS]).astype(np.uint8)
    table = np.array([(c.floor, c.peak, c.rms_height) for c in COVERS])[kind]
    vigour = np.clip(rng.normal(1.0, 0.1, count), 0.7, 1.15)
    return Parcels(
        origin=origin,
        x=origin[0] + (np.arange(columns) + jitter[0]) * PARCEL_SIZE,
        y=origin[1] - (np.arange(rows)[:, None] + jitter[1]) * PARCEL_SIZE,
        kind=kind,
        delay=rng.normal(0.0, 7.0, count).astype(np.float32),
        floor=(table[:, 0] + rng.normal(0.0, 0.02, count)).astype(np.float32),
        span=((table[:, 1] - table[:, 0]) * vigour).astype(np.float32),
        rms_height=(table[:, 2] * np.exp(rng.normal(0.0, 0.2, count))).astype(np.float32),
    )


def follow_water(vigour: Array, wetness: Array) -> Array:
    """Vigour of the day after: plants follow the root zone's water with a delay of 20 days.

    Parameters
    ----------
    vigour
        0 to 1.
    wetness
        Plant-available water relative to its most, 0 to 1; half of it is enough.
    """
    target = np.minimum(2.0 * wetness, 1.0)
    return np.asarray(vigour + (target - vigour) / np.float32(_MEMORY_DAYS), dtype=np.float32)


def ndvi_of(floor: Array, growth: Array, vigour: Array) -> Array:
    """NDVI [1] of `floor`, seasonal `growth` (span times greenness) and `vigour`, elementwise."""
    return np.asarray(floor + growth * (_DRY_SHARE + (1 - _DRY_SHARE) * vigour), dtype=np.float32)


def _phenology(cover: Cover, day: Array) -> NDArray[np.floating]:
    """Greening and browning, repeated every year."""
    total = np.zeros(day.shape)
    for year in (-365.25, 0.0, 365.25):
        up = 1.0 / (1.0 + np.exp(-(day - cover.green_up - year) / cover.pace))
        down = 1.0 / (1.0 + np.exp(-(day - cover.senescence - year) / cover.pace))
        total += up - down
    return np.clip(total, 0.0, 1.0)
