"""Quality flags of a map: where radar, soil or model say little about soil moisture.

Each flag is one bit of ``flags``. Those of the ground need variables that a cube may lack; they are
then not determined, which the map says, rather than quietly clear. What the other variables
tell is flagged all the same: snow that fell, say, without a map of permanent snow.

Limits are those of product guides and papers, named beside them, but for three that are choices of
this package because none was found for pixels of tens of metres: a slope of 10 degrees, trees on
half of the pixel, and half of the NDVI filled.
"""

from collections.abc import Collection, Mapping
from typing import cast

import numpy as np
import numpy.typing as npt
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from smgrid.features.assemble import FloatArray, IntArray, SeriesBlock

FlagArray = npt.NDArray[np.uint16]
DoubleArray = npt.NDArray[np.float64]

FLAGS: dict[str, int] = {
    "input_missing": 1,
    "feature_clipped": 2,
    "assumed_input": 4,
    "outside_valid_range": 8,
    "approximate_convention": 16,
    "ndvi_filled": 32,
    "outside_training_range": 64,
    "outside_applicability": 128,
    "frozen_soil": 256,
    "snow": 512,
    "open_water": 1024,
    "urban": 2048,
    "dense_vegetation": 4096,
    "steep_slope": 8192,
    "layover_or_shadow": 16384,
}

VALID_RANGE = (0.0, 0.6)
"""The authors of DenseSM count estimates in m3 m-3 outside it as invalid (Zhu et al. 2024)."""

# Shares above which SMAP's soil moisture is not of recommended quality (O'Neill et al. 2021,
# algorithm basis of L2 and L3 SM_P, table of surface flags).
WATER_SHARE, URBAN_SHARE = 0.05, 0.25
SNOW_SHARE = 0.05
# C band hardly reaches the soil below more (El Hajj et al. 2019, Remote Sens. 11, 31).
DENSE_NDVI = 0.7
# Choices without a published source. Where trees stand on more than half of a pixel, most of its
# backscatter is theirs; on steeper slopes (degrees) it follows the local angle of incidence more
# than the soil.
TREE_SHARE, STEEP_SLOPE = 0.5, 10.0
FILLED_SHARE = 0.5
FREEZING = 273.15
# A degree-day model of snow: melt in m of water per kelvin and day, the mean of the factors that
# Hock (2003, J. Hydrol. 282, 104-115) lists for snow; the temperature in kelvin at which half of
# the precipitation is snow (Jennings et al. 2018, Nat. Commun. 9, 1148); 5 mm of water are about
# 5 cm of new snow.
DEGREE_DAY, SNOWFALL_BELOW, SNOW_WATER = 0.004, 274.15, 0.005
# Degrees between the plane of the orbit of Sentinel-1 and that of the equator.
INCLINATION = 98.18

NEEDS: dict[str, tuple[str, ...]] = {
    "ndvi_filled": ("ndvi_filled",),
    "open_water": ("fraction_water",),
    "urban": ("fraction_urban",),
    "dense_vegetation": ("ndvi", "fraction_tree"),
    "snow": ("t2m", "tp", "fraction_snow"),
    "frozen_soil": ("t2m",),
    "steep_slope": ("slope",),
    "layover_or_shadow": ("slope", "aspect_sin", "aspect_cos", "angle", "orbit_state"),
}
"""Variables without any of which a flag that is clear says nothing; `orbit_state` stands for
acquisitions of known orbit."""

_TERRAIN = ("slope", "angle", "aspect_sin", "aspect_cos")

HELPFUL = ("fraction_water", "fraction_urban", "fraction_tree", "fraction_snow")
"""Static variables that layouts do not read, but flags do."""


def undetermined(variables: Collection[str]) -> list[str]:
    """Return the flags that need a variable which is not among these.

    Where they are set they hold, as one of several reasons is enough; where they are clear, another
    reason may hold that nothing is known of.
    """
    return [flag for flag, needed in NEEDS.items() if not {*needed} <= {*variables}]


def ground_flags(values: Mapping[str, FloatArray], *, orbit: str, grid: GeoBox) -> FlagArray:
    """Flag open water, buildings, trees, permanent snow, steep slopes, layover and radar shadow.

    Parameters
    ----------
    values
        (y, x) static variables and ``angle`` of the acquisition in canonical units; those that are
        missing are not looked at (see `undetermined`). A share of land cover that is NaN counts as
        above its limit.
    orbit
        ``ascending`` or ``descending``; anything else leaves layover unflagged.
    grid
        Where the pixels are, for the direction in which the radar looks.
    """
    shape = next(iter(values.values())).shape
    flags = np.zeros(shape, np.uint16)
    above = {
        "open_water": ("fraction_water", WATER_SHARE),
        "urban": ("fraction_urban", URBAN_SHARE),
        "dense_vegetation": ("fraction_tree", TREE_SHARE),
        "snow": ("fraction_snow", SNOW_SHARE),
        "steep_slope": ("slope", STEEP_SLOPE),
    }
    for flag, (name, limit) in above.items():
        if name in values:
            within = values[name] <= limit
            flags |= _mask(~within if name in HELPFUL else values[name] > limit, flag)
    if orbit in ("ascending", "descending") and {*_TERRAIN} <= {*values}:
        flags |= _mask(_hidden(values, orbit, grid), "layover_or_shadow")
    return flags


def _look_azimuth(orbit: str, latitude: DoubleArray) -> DoubleArray:
    """Direction in which the radar looks in degrees from north, without the turning of the Earth.

    Sentinel-1 looks to the right of its track, which crosses a latitude at the azimuth of which
    the sine is cos(inclination) / cos(latitude).
    """
    ratio = np.cos(np.radians(INCLINATION)) / np.cos(np.radians(latitude))
    track: DoubleArray = np.degrees(np.arcsin(np.clip(ratio, -1, 1)))
    return 90 + track if orbit == "ascending" else 270 - track


def _hidden(values: Mapping[str, FloatArray], orbit: str, grid: GeoBox) -> npt.NDArray[np.bool_]:
    """Whether slopes lean over the radar's line of sight, or lie in its shadow.

    Both follow from the slope in the direction of the radar alone (Kropatsch and Strobl 1990, IEEE
    Trans. Geosci. Remote Sens. 28, 98-107), as the mean of a pixel tells it.
    """
    slope, angle = values["slope"], values["angle"]
    hidden = np.zeros(grid.shape, np.bool_)
    rows, columns = np.nonzero(slope > np.minimum(angle, 90 - angle))  # the others cannot be
    if not len(rows):
        return hidden
    latitude, north = latitude_and_north(grid, rows, columns)
    # The aspect counts from the north of the grid.
    look = np.radians(_look_azimuth(orbit, latitude) + north)
    slope, angle, sine, cosine = (values[name][rows, columns] for name in _TERRAIN)
    towards = -np.cos(np.arctan2(sine, cosine) - look)
    steepness = np.degrees(np.arctan(np.tan(np.radians(slope)) * towards))
    hidden[rows, columns] = (steepness > angle) | (steepness < angle - 90)
    return hidden


def latitude_and_north(
    grid: GeoBox, rows: IntArray, columns: IntArray
) -> tuple[DoubleArray, DoubleArray]:
    """Return latitudes of pixels, and true north in degrees from the north of the grid."""
    a, b, c, d, e, f = grid.affine[:6]
    x = a * (columns + 0.5) + b * (rows + 0.5) + c
    y = d * (columns + 0.5) + e * (rows + 0.5) + f
    crs = cast("CRS", grid.crs)
    longitude, latitude = crs.transformer_to_crs("EPSG:4326", always_xy=True)(x, y)
    back = CRS("EPSG:4326").transformer_to_crs(crs, always_xy=True)
    x_north, y_north = back(longitude, latitude + 1e-4)
    return latitude, np.degrees(np.arctan2(x_north - x, y_north - y))


def season_flags(series: Mapping[str, SeriesBlock], *, day: int) -> FlagArray:
    """Flag frost, snow, dense vegetation and filled NDVI, of (y, x) pixels.

    Parameters
    ----------
    series
        Windows of ``ndvi``, ``t2m``, ``tp`` and, where there is one, ``ndvi_filled``.
    day
        Position of the acquisition's day in the windows of the weather.
    """
    t2m, ndvi = series["t2m"].values, series["ndvi"].values
    frozen = _mask(t2m[day] <= FREEZING, "frozen_soil")
    green = _mask(ndvi[-1] > DENSE_NDVI, "dense_vegetation")
    if "ndvi_filled" in series:
        filled = np.nan_to_num(series["ndvi_filled"].values, nan=1.0).mean(axis=0)
        green |= _mask(filled > FILLED_SHARE, "ndvi_filled")
    flags = _on_pixels(frozen, series["t2m"]) | _on_pixels(green, series["ndvi"])
    return flags | _snow_flags(series["t2m"], series["tp"], day)


def _snow_flags(t2m: SeriesBlock, tp: SeriesBlock, day: int) -> FlagArray:
    """Flag snow on pixels; temperature and rain may lie on grids of their own."""
    # Rows and columns of both grids that occur together, and which of them each pixel uses.
    rows, row = np.unique(np.stack([t2m.row, tp.row]), axis=1, return_inverse=True)
    columns, column = np.unique(np.stack([t2m.column, tp.column]), axis=1, return_inverse=True)
    days = slice(0, day + 1)
    temperature = t2m.values[days][:, rows[0][:, None], columns[0]]
    rain = tp.values[days][:, rows[1][:, None], columns[1]]
    snow = _mask(snow_water(temperature, rain) >= SNOW_WATER, "snow")
    return snow[np.ix_(row.ravel(), column.ravel())]


def snow_water(t2m: FloatArray, tp: FloatArray) -> FloatArray:
    """Water in the snow [m] after the last of some days, by a degree-day model without start.

    Parameters
    ----------
    t2m, tp
        (days, ...) mean temperature [K] and precipitation [m]; missing days change nothing.
    """
    water = np.zeros(t2m.shape[1:], np.float32)
    for temperature, rain in zip(np.nan_to_num(t2m, nan=FREEZING), np.nan_to_num(tp), strict=True):
        water += np.where(temperature < SNOWFALL_BELOW, rain, np.float32(0))
        water -= np.float32(DEGREE_DAY) * np.maximum(temperature - np.float32(FREEZING), 0)
        np.maximum(water, 0, out=water)
    return water


def _mask(where: npt.NDArray[np.bool_], flag: str) -> FlagArray:
    return np.where(where, np.uint16(FLAGS[flag]), np.uint16(0))


def _on_pixels(flags: FlagArray, cells: SeriesBlock) -> FlagArray:
    return flags[np.ix_(cells.row, cells.column)]
