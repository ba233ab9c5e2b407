"""Sentinel-1 backscatter as the Planetary Computer's RTC collection: scenes, angles, STAC items.

Values are terrain-flattened gamma0 in linear power. Flattening removes the slopes' effect, so the
scene is simulated with the incidence angle on the ellipsoid.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from smgrid.grid import require_north_up
from smgrid.schema import Packing
from smgrid.simulate.evolution import Day, Land
from smgrid.simulate.fields import Array, stream
from smgrid.simulate.frame import bounds_in, lattice_window, nearest_pixels
from smgrid.simulate.orbits import PLATFORM, TRACKS, Pass, Track, passes_of, swath_angle
from smgrid.simulate.radar import (
    VH_CLOUD,
    VV_CLOUD,
    WAVENUMBER,
    Cloud,
    soil_backscatter,
    speckle,
    vegetated_backscatter,
)
from smgrid.simulate.rasters import file_facts, write_cog
from smgrid.simulate.stac import COG_TYPE, PROJECTION_EXTENSION, Collection, Item, make_item
from smgrid.simulate.vegetation import ndvi_of
from smgrid.windows import Period

RTC = Collection(
    "sentinel-1-rtc",
    "Simulated Sentinel-1 backscatter in the form of the RTC collection",
    "Terrain-flattened gamma0, linear power, with speckle; Oh (2004) soil under the water cloud of "
    "Attema and Ulaby (1978).",
)
ANGLE = Collection(
    "sentinel-1-angle",
    "Simulated incidence angles of Sentinel-1",
    "Incidence angle on the ellipsoid [degree], one raster per relative orbit.",
)
NODATA = -32768.0
_MARGIN = 400.0  # m beyond the region
_STORED = Packing(dtype="float32", mantissa_bits=12)  # 1.2e-4 of the value, 0.0005 dB
_EXTENSIONS = (
    "https://stac-extensions.github.io/sar/v1.0.0/schema.json",
    "https://stac-extensions.github.io/sat/v1.0.0/schema.json",
    PROJECTION_EXTENSION,
    "https://stac-extensions.github.io/file/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
)
_TITLES = {
    "vv": "VV: vertical transmit, vertical receive",
    "vh": "VH: vertical transmit, horizontal receive",
}
# What is the same in every item: fields of the recorded items of the Planetary Computer.
_CONSTANT_PROPERTIES: dict[str, Any] = {
    "platform": PLATFORM,
    "constellation": "Sentinel-1",
    "s1:resolution": "high",
    "s1:orbit_source": "RESORB",
    "s1:slice_number": "1",
    "s1:total_slices": "1",
    "s1:processing_level": "1",
    "s1:product_timeliness": "Fast-24h",
    "s1:instrument_configuration_ID": "7",
    "sar:looks_range": 5,
    "sar:looks_azimuth": 1,
    "sar:product_type": "GRD",
    "sar:polarizations": ["VV", "VH"],
    "sar:frequency_band": "C",
    "sar:instrument_mode": "IW",
    "sar:center_frequency": 5.405,
    "sar:resolution_range": 20,
    "sar:resolution_azimuth": 22,
    "sar:observation_direction": "right",
    "sat:platform_international_designator": "2014-016A",
}


@dataclass(frozen=True)
class _View:
    """What every pass of a track has in common, on the grid of the scenes."""

    angle: Array
    cosine: Array
    soil_vv: Array
    """Backscatter of the bare soil at a water content of 1, sigma0 [1]."""
    soil_vh: Array


class Sentinel1Writer:
    """Writes a scene on every day with a pass.

    Parameters
    ----------
    root
        Folder of the STAC catalog.
    land
        What is seen.
    scenes
        First and last day with passes.
    spacing
        Pixel size [m].
    looks
        Equivalent number of looks of the speckle.
    seed
        Of the world.
    """

    def __init__(
        self, root: Path, land: Land, *, scenes: Period, spacing: float, looks: float, seed: int
    ) -> None:
        self.items: list[Item] = []
        self._root, self._looks, self._seed = root, looks, seed
        self._grid = scene_grid(land.frame.base, spacing)
        self._pixels = np.ix_(*nearest_pixels(land.frame.domain, self._grid))
        parcel = land.parcels.locate(self._grid)
        self._parcel, self._floor = parcel, land.parcels.floor[parcel]
        roughness = WAVENUMBER * land.parcels.rms_height[parcel]
        base = land.frame.base
        west, _, east, _ = bounds_in(base, "EPSG:4326")
        self._views = {
            track: _view(swath_angle(track, self._grid, base), roughness) for track in TRACKS
        }
        every = [p for t in TRACKS for p in passes_of(t, scenes, longitude=(west + east) / 2)]
        self._passes: dict[pd.Timestamp, list[Pass]] = {}
        for one in sorted(every, key=lambda p: p.start):
            self._passes.setdefault(one.start.normalize(), []).append(one)

    def observe(self, day: Day) -> None:
        """Write the scenes of this day."""
        for one in self._passes.get(day.date, ()):
            moisture = np.asarray(day.moisture**0.7, dtype=np.float32)[self._pixels]
            ndvi = ndvi_of(self._floor, day.growth[self._parcel], day.vigour[self._pixels])
            self.items.append(self._write_scene(one, moisture, ndvi))

    def write_angles(self) -> list[Item]:
        """Write the incidence angle of every relative orbit that was seen; return its items."""
        seen = {p.track: p.relative_orbit for day in self._passes.values() for p in day}
        return [
            _write_angle(self._root, self._grid, track, orbit, self._views[track].angle)
            for track, orbit in seen.items()
        ]

    def _write_scene(self, one: Pass, moisture: Array, ndvi: Array) -> Item:
        view, name = self._views[one.track], scene_name(one)
        folder = self._root / RTC.id / name
        rng = stream(self._seed, "speckle", name)
        assets = {}
        for key, soil, cloud in (
            ("vh", view.soil_vh, VH_CLOUD),
            ("vv", view.soil_vv, VV_CLOUD),
        ):
            gamma0 = _gamma0(view, moisture * soil, ndvi, cloud)
            seen = gamma0 * speckle(rng, gamma0.shape, looks=self._looks)
            values = np.where(np.isnan(seen), np.float32(NODATA), _STORED.encode(seen))
            path = folder / f"iw-{key}.rtc.tiff"
            write_cog(path, values, self._grid, nodata=NODATA)
            assets[key] = _asset(path, key, self._grid)
        return make_item(
            name,
            collection=RTC.id,
            grid=self._grid,
            properties=_properties(one, self._grid, self._looks),
            assets=assets,
            extensions=_EXTENSIONS,
        )


def scene_grid(base: GeoBox, spacing: float) -> GeoBox:
    """Grid of the scenes: the region and a margin, edges on multiples of the spacing."""
    bounds = bounds_in(base, base.crs, margin=_MARGIN)
    return lattice_window(bounds, base.crs, origin=(0.0, 0.0), step=(spacing, spacing))


def scene_name(one: Pass) -> str:
    """Name of an item, as the Planetary Computer makes it from the GRD product's."""
    times = f"{one.start:%Y%m%dT%H%M%S}_{one.end:%Y%m%dT%H%M%S}"
    return f"S1A_IW_GRDH_1SDV_{times}_{one.absolute_orbit:06d}_{_datatake(one):06X}_rtc"


def _view(angle: Array, roughness: Array) -> _View:
    soil_vv, soil_vh = soil_backscatter(1.0, roughness, angle)
    cosine = np.cos(np.radians(angle)).astype(np.float32)
    return _View(angle, cosine, soil_vv, soil_vh)


def _gamma0(view: _View, soil: Array, ndvi: Array, cloud: Cloud) -> Array:
    sigma0 = vegetated_backscatter(soil, ndvi, view.cosine, cloud)
    return np.asarray(sigma0 / view.cosine, dtype=np.float32)


def _datatake(one: Pass) -> int:
    # Any number that is the same in both slices of a pass and in no other pass will do.
    return one.absolute_orbit * 8 + 3


def _asset(path: Path, key: str, grid: GeoBox) -> dict[str, Any]:
    sent, received = ("vertical", "vertical" if key == "vv" else "horizontal")
    band = {
        "nodata": int(NODATA),
        "data_type": "float32",
        "spatial_resolution": grid.resolution.x,
    }
    return {
        "href": f"./{path.name}",
        **file_facts(path),
        "type": COG_TYPE,
        "roles": ["data"],
        "title": _TITLES[key],
        "description": "Simulated terrain-flattened gamma naught of signal transmitted with "
        f"{sent} and received with {received} polarization.",
        "raster:bands": [band],
    }


def _properties(one: Pass, grid: GeoBox, looks: float) -> dict[str, Any]:
    rows, columns = grid.shape
    box = grid.boundingbox
    middle = one.start + (one.end - one.start) / 2
    return _CONSTANT_PROPERTIES | {
        "datetime": f"{middle:%Y-%m-%dT%H:%M:%S.%f}Z",
        "start_datetime": f"{one.start:%Y-%m-%d %H:%M:%S.%f}+00:00",
        "end_datetime": f"{one.end:%Y-%m-%d %H:%M:%S.%f}+00:00",
        "s1:shape": [columns, rows],
        "s1:datatake_id": str(_datatake(one)),
        "proj:bbox": [box.left, box.bottom, box.right, box.top],
        "proj:epsg": require_north_up(grid).epsg,
        "proj:shape": [rows, columns],
        "proj:transform": [float(value) for value in grid.affine],
        "sat:orbit_state": one.track.orbit_state,
        "sat:absolute_orbit": one.absolute_orbit,
        "sat:relative_orbit": one.relative_orbit,
        "sar:pixel_spacing_range": round(grid.resolution.x),
        "sar:pixel_spacing_azimuth": round(grid.resolution.x),
        "sar:looks_equivalent_number": looks,
    }


def _write_angle(root: Path, grid: GeoBox, track: Track, orbit: int, angle: Array) -> Item:
    name = f"S1A_IW_angle_{track.orbit_state}_{orbit:03d}"
    path = root / ANGLE.id / name / "angle.tif"
    values: NDArray[np.float32] = np.where(np.isnan(angle), np.float32(NODATA), angle)
    write_cog(path, values, grid, nodata=NODATA)
    band = {"nodata": int(NODATA), "data_type": "float32", "unit": "degree"}
    return make_item(
        name,
        collection=ANGLE.id,
        grid=grid,
        properties={
            # The geometry of a relative orbit is as old as the satellite.
            "datetime": "2014-04-03T00:00:00Z",
            "platform": PLATFORM,
            "proj:epsg": require_north_up(grid).epsg,
            "proj:shape": list(grid.shape.yx),
            "proj:transform": [float(value) for value in grid.affine],
            "sat:orbit_state": track.orbit_state,
            "sat:relative_orbit": orbit,
        },
        assets={
            "angle": {
                "href": "./angle.tif",
                "type": COG_TYPE,
                "roles": ["data"],
                "raster:bands": [band],
            }
        },
        extensions=[_EXTENSIONS[1], PROJECTION_EXTENSION, _EXTENSIONS[4]],
    )
