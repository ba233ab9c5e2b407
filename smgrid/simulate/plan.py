"""What a world is made from, checked, recorded beside it and compared before it is used again."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from odc.geo.geobox import GeoBox

from smgrid.errors import ConfigError, TemplateMismatchError
from smgrid.grid import make_grid, transform_points
from smgrid.simulate.weather import Climate
from smgrid.windows import Period

VERSION = 1  # of the simulation: another one makes another world of the same parameters
RECORD = "world.json"
# A model looks back over a year: composites and weather begin this much earlier than the scenes...
_LEAD = pd.DateOffset(months=13)
# ... and end later, since the windows of published layouts reach 10 days beyond an acquisition.
_TRAIL = pd.Timedelta(days=16)
_SPIN_UP = pd.Timedelta(days=240)  # simulated and thrown away


@dataclass(frozen=True, kw_only=True)
class WorldPlan:
    """The parameters of a world; see `smgrid.simulate.simulate_world`."""

    resolution: float
    spacing: float
    start: str
    months: int
    seed: int
    stations: int
    looks: float
    climate: Climate | None = None
    centre: tuple[float, float] | None = None
    size_km: float | None = None
    bbox: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.months != int(self.months) or self.months < 1:
            raise ConfigError(f"months: expected a whole number, 1 or more, found {self.months!r}")
        if self.stations != int(self.stations) or self.stations < 0:
            raise ConfigError(
                f"stations: expected a whole number, 0 or more, found {self.stations!r}"
            )
        for name in ("spacing", "looks", "size_km", "resolution"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: expected a positive number, found {value!r}")
        if self.spacing > self.resolution:
            raise ConfigError(
                f"spacing {self.spacing} m: expected at most the resolution of the truth "
                f"({self.resolution} m), the radar sees finer than the grid"
            )

    @property
    def scenes(self) -> Period:
        """Days of Sentinel-1, SMAP, stations and truth."""
        first = Period.parse(self.start).start
        return Period(first, first + pd.DateOffset(months=self.months) - pd.Timedelta(days=1))

    @property
    def period(self) -> Period:
        """Days of weather, and starts of composites."""
        return Period(self.scenes.start - _LEAD, self.scenes.end + _TRAIL)

    @property
    def simulated(self) -> Period:
        """Days that are lived through: spin-up, and the last composite to its end."""
        return Period(self.period.start - _SPIN_UP, self.period.end + pd.Timedelta(days=15))

    def grid(self) -> GeoBox:
        """Return the region in UTM."""
        if self.bbox is not None:
            return make_grid(self.bbox, resolution=self.resolution)
        if self.centre is None or self.size_km is None:
            raise ConfigError("region: give bbox, or centre and size_km")
        lon, lat = self.centre
        dot = 1e-4  # degrees; only the zone is taken from it
        crs = make_grid((lon - dot, lat - dot, lon + dot, lat + dot), resolution=1.0).crs
        (x,), (y,) = transform_points(np.array([lon]), np.array([lat]), "EPSG:4326", crs)
        pixels = max(1, round(self.size_km * 1000.0 / self.resolution))
        left = round(float(x) / self.resolution - pixels / 2) * self.resolution
        bottom = round(float(y) / self.resolution - pixels / 2) * self.resolution
        edge = pixels * self.resolution
        return GeoBox.from_bbox(
            (left, bottom, left + edge, bottom + edge),
            crs,
            resolution=self.resolution,
            anchor="edge",
        )

    def record(self) -> dict[str, Any]:
        """Return what is written beside the world."""
        return {"simulation": VERSION, **json.loads(json.dumps(asdict(self)))}


def read_plan(folder: Path) -> WorldPlan | None:
    """Return the plan of the world in a folder, or None if there is no world of this version."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if found.pop("simulation") != VERSION:
            return None
        for name in ("centre", "bbox"):
            found[name] = None if found[name] is None else tuple(found[name])
        climate = found.pop("climate")
        return WorldPlan(**found, climate=None if climate is None else Climate(**climate))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_same(folder: Path, plan: WorldPlan) -> None:
    """Raise TemplateMismatchError unless a non-empty folder holds the world of this very plan."""
    found = read_plan(folder)
    if found is None:
        raise TemplateMismatchError(
            f"{folder} is not empty and holds no simulated world of this version; give another "
            "folder or remove it"
        )
    here, wanted = found.record(), plan.record()
    changes = [f"{k} {here[k]!r} -> {wanted[k]!r}" for k in wanted if here[k] != wanted[k]]
    if changes:
        raise TemplateMismatchError(
            f"{folder} holds a world of other parameters ({'; '.join(changes)}); give another "
            "folder or remove it"
        )
