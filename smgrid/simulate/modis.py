"""NDVI as MODIS 13Q1, Terra and Aqua: 16-day composites on the sinusoidal grid, with quality.

Files hold the part of each global tile (h, v) that covers the region, on the tile's own lattice.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from smgrid.simulate.evolution import Day, Land
from smgrid.simulate.fields import Array, smooth_fields, stream
from smgrid.simulate.frame import CellMean, bounds_in, cell_mean, lattice_window
from smgrid.simulate.rasters import write_cog
from smgrid.simulate.stac import COG_TYPE, PROJECTION_EXTENSION, Collection, Item, make_item
from smgrid.simulate.weather import Weather
from smgrid.windows import Period, composite_calendar

COLLECTION = Collection(
    "modis-13Q1-061",
    "Simulated vegetation index in the form of MODIS 13Q1",
    "16-day NDVI of Terra (day 1, 17, ...) and Aqua (day 9, 25, ...), clipped to the region.",
)
COMPOSITE_DAYS = 16
# Sphere, tile and pixel of the MODIS land grid (Wolfe et al. 1998, doi:10.1109/36.701082).
TILE = 1111950.5196666666  # m
PIXEL = TILE / 4800
_ORIGIN = (-18 * TILE, 9 * TILE)
WKT = (
    'PROJCS["unnamed",GEOGCS["Unknown datum based upon the custom spheroid",'
    'DATUM["Not specified (based on custom spheroid)",SPHEROID["Custom spheroid",6371007.181,0]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433,AUTHORITY["EPSG","9122"]]],'
    'PROJECTION["Sinusoidal"],PARAMETER["longitude_of_center",0],PARAMETER["false_easting",0],'
    'PARAMETER["false_northing",0],UNIT["Meter",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
)
SCALE = 1e-4
NDVI_FILL, QUALITY_FILL, RELIABILITY_FILL = -3000, 65535, -1
_VALID = (-2000, 10000)
# VI_Quality: bits 0-1 MODLAND QA, 2-5 usefulness, 6-7 aerosol, 10 mixed clouds, 11-13 land/water
# (MOD13 User's Guide, Didan et al. 2015, table 5). All of it is land.
_LAND, _CLOUDS = 1 << 11, 1 << 10
_GOOD_QUALITY = 0b00 | 1 << 2 | 1 << 6 | _LAND
_MARGINAL_QUALITY = 0b01 | 4 << 2 | 2 << 6 | _LAND
_CLOUDY_QUALITY = 0b10 | 10 << 2 | 3 << 6 | _CLOUDS | _LAND
_MARGIN = 1000.0  # m beyond the region
_PARTS = 5
_NOISE = 0.012  # NDVI, one standard deviation
_CLOUD_LOSS = 0.5  # share of NDVI that a cloudy composite hides
_CLOUD_SCALE = 6.0  # pixels


class ModisWriter:
    """Collects the days of each composite and writes it when its last day is over.

    Parameters
    ----------
    root
        Folder of the STAC catalog.
    land
        What is seen.
    weather
        Rain hides the ground.
    period
        Composites that start in it are written.
    seed
        Of the world.
    """

    def __init__(
        self, root: Path, land: Land, *, weather: Weather, period: Period, seed: int
    ) -> None:
        self.items: list[Item] = []
        self._root, self._weather, self._seed = root, weather, seed
        self._starts = frozenset(composite_calendar(period))
        self._tiles: list[tuple[int, int, CellMean, GeoBox]] = [
            (h, v, cell_mean(land.frame.domain, grid, parts=_PARTS), grid)
            for h, v, grid in tile_windows(land.frame.base)
        ]
        self._open: dict[pd.Timestamp, Array] = {}

    def observe(self, day: Day) -> None:
        """Take the day into its composites; a composite keeps the highest NDVI of its days."""
        if day.date in self._starts:
            self._open[day.date] = np.full(day.ndvi.shape, -1.0, dtype=np.float32)
        for best in self._open.values():
            np.maximum(best, day.ndvi, out=best)
        for start in [s for s in self._open if composite_end(s) <= day.date]:
            best = self._open.pop(start)
            for h, v, mean, grid in self._tiles:
                self.items.append(self._write(start, h, v, mean(best), grid))

    def _write(self, start: pd.Timestamp, h: int, v: int, ndvi: Array, grid: GeoBox) -> Item:
        name = granule_name(start, h, v)
        rng = stream(self._seed, "modis", name)
        days = self._weather.days
        inside = (days >= start) & (days <= composite_end(start))
        wet = float((self._weather.rain[inside].mean(axis=(1, 2)) > 0.5).mean())
        folder = self._root / COLLECTION.id / name
        layers = composite_layers(rng, ndvi, wet_share=wet)
        assets = {}
        for (key, values), fill in zip(
            layers.items(), (NDVI_FILL, QUALITY_FILL, RELIABILITY_FILL), strict=True
        ):
            path = folder / f"{name}_{key}.tif"
            write_cog(path, values, grid, nodata=fill)
            assets[key] = _asset(path, key, values.dtype.name)
        return make_item(
            name,
            collection=COLLECTION.id,
            grid=grid,
            properties=_properties(start, h, v, grid),
            assets=assets,
            extensions=[
                PROJECTION_EXTENSION,
                "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
                "https://stac-extensions.github.io/classification/v1.0.0/schema.json",
            ],
        )


def tile_windows(base: GeoBox) -> list[tuple[int, int, GeoBox]]:
    """Horizontal and vertical number of each tile under a region, and its pixels there."""
    left, bottom, right, top = bounds_in(base, WKT, margin=_MARGIN)
    found = []
    for h in range(int((left - _ORIGIN[0]) // TILE), int((right - _ORIGIN[0]) // TILE) + 1):
        for v in range(int((_ORIGIN[1] - top) // TILE), int((_ORIGIN[1] - bottom) // TILE) + 1):
            x0, y1 = _ORIGIN[0] + h * TILE, _ORIGIN[1] - v * TILE
            part = (max(left, x0), max(bottom, y1 - TILE), min(right, x0 + TILE), min(top, y1))
            found.append((h, v, lattice_window(part, WKT, origin=_ORIGIN, step=(PIXEL, PIXEL))))
    return found


def composite_end(start: pd.Timestamp) -> pd.Timestamp:
    """Last day of the composite that starts at `start`; it may lie in the next year."""
    return start + pd.Timedelta(days=COMPOSITE_DAYS - 1)


def granule_name(start: pd.Timestamp, h: int, v: int) -> str:
    """Name of a granule: Terra's start on day 1, 17, ..., Aqua's on day 9, 25, ..."""
    product = "MOD13Q1" if start.day_of_year % COMPOSITE_DAYS == 1 else "MYD13Q1"
    made = composite_end(start) + pd.Timedelta(days=5)
    return f"{product}.A{start:%Y%j}.h{h:02d}v{v:02d}.061.{made:%Y%j}000000"


def composite_layers(
    rng: np.random.Generator, ndvi: Array, *, wet_share: float
) -> dict[str, NDArray[Any]]:
    """NDVI, VI_Quality and pixel_reliability of a composite, by asset key.

    Parameters
    ----------
    rng
        Of this granule.
    ndvi
        Clear-sky values [1].
    wet_share
        Of the days: the more, the more pixels are cloudy throughout.
    """
    cover = smooth_fields(rng, 1, ndvi.shape, scale=_CLOUD_SCALE)[0]
    # The level that a standard normal field exceeds in 0 to about a fifth of the pixels.
    level = 2.6 - 2.4 * wet_share
    cloudy, marginal, lost = cover > level, cover > level - 0.5, cover > level + 1.0
    noisy = ndvi + rng.normal(0.0, _NOISE, ndvi.shape)
    noisy = np.where(marginal, 0.96 * noisy, noisy)
    noisy = np.where(cloudy, (1.0 - _CLOUD_LOSS * rng.random(ndvi.shape)) * noisy, noisy)
    counts = np.clip(np.rint(noisy / SCALE), *_VALID).astype(np.int16)
    counts[lost] = NDVI_FILL
    quality = np.select(
        [lost, cloudy, marginal],
        [QUALITY_FILL, _CLOUDY_QUALITY, _MARGINAL_QUALITY],
        default=_GOOD_QUALITY,
    ).astype(np.uint16)
    reliability = np.select([lost, cloudy, marginal], [RELIABILITY_FILL, 3, 1], default=0)
    return {
        "250m_16_days_NDVI": counts,
        "250m_16_days_VI_Quality": quality,
        "250m_16_days_pixel_reliability": reliability.astype(np.int8),
    }


def _asset(path: Path, key: str, dtype: str) -> dict[str, Any]:
    band: dict[str, Any] = {"data_type": dtype, "spatial_resolution": 250}
    title = {
        "250m_16_days_NDVI": "16 day NDVI",
        "250m_16_days_VI_Quality": "VI quality indicators",
        "250m_16_days_pixel_reliability": "Quality reliability of VI pixel",
    }[key]
    if key == "250m_16_days_NDVI":
        band = {"unit": "NDVI", "scale": SCALE, **band}
    return {
        "href": f"./{path.name}",
        "type": COG_TYPE,
        "roles": ["data"],
        "title": title,
        "raster:bands": [band],
    }


def _properties(start: pd.Timestamp, h: int, v: int, grid: GeoBox) -> dict[str, Any]:
    box = grid.boundingbox
    ring = [
        [box.right, box.bottom],
        [box.right, box.top],
        [box.left, box.top],
        [box.left, box.bottom],
        [box.right, box.bottom],
    ]
    end = composite_end(start)
    return {
        "created": f"{end + pd.Timedelta(days=5):%Y-%m-%dT%H:%M:%SZ}",
        "updated": f"{end + pd.Timedelta(days=5):%Y-%m-%dT%H:%M:%SZ}",
        "datetime": None,
        "platform": "",
        "instruments": [],
        "start_datetime": f"{start:%Y-%m-%d}T00:00:00Z",
        "end_datetime": f"{end:%Y-%m-%d}T23:59:59Z",
        "proj:epsg": None,
        "proj:wkt2": WKT,
        "proj:shape": list(grid.shape.yx),
        "proj:transform": [float(value) for value in list(grid.affine)[:6]],
        "proj:geometry": {"type": "Polygon", "coordinates": [ring]},
        "modis:tile-id": f"51{h:03d}{v:03d}",
        "modis:vertical-tile": v,
        "modis:horizontal-tile": h,
    }
