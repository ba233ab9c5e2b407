"""The smgrid catalog of a world: which loader reads what, and which formulas made it."""

from pathlib import Path
from typing import Any

import yaml

from smgrid.simulate import copernicus_dem, modis, sentinel1, soilgrids

_LICENCE = "CC0-1.0"
_NOTE = "Simulated by smgrid; no instrument measured it."
_RADAR = (
    "Oh (2004) doi:10.1109/TGRS.2003.821065; Attema and Ulaby (1978) doi:10.1029/RS013i002p00357; "
    "El Hajj et al. (2017) doi:10.3390/rs9121292; gamma-distributed speckle, Ulaby et al. (1986) "
    "Microwave Remote Sensing"
)
_WATER = (
    "Saxton and Rawls (2006) doi:10.2136/sssaj2005.0117; Beven and Kirkby (1979) "
    "doi:10.1080/02626667909491834; Hamon (1961); Allen et al. (1998) FAO-56"
)
_WEATHER = "Richardson (1981) doi:10.1029/WR017i001p00182"
_TERRAIN = "Saupe (1988) in Peitgen and Saupe, The Science of Fractal Images"
_PHENOLOGY = "Zhang et al. (2003) doi:10.1016/S0034-4257(02)00135-9"


def write_catalog_file(path: Path, *, spacing: float) -> None:
    """Write the catalog beside the data; all its paths are relative.

    Parameters
    ----------
    path
        File.
    spacing
        Pixel size of the radar scenes [m].
    """
    sources = _satellites(spacing) | _others()
    document = {
        "smgrid_catalog": 1,
        "name": "simulated",
        "title": "A simulated world with known soil moisture, in the providers' own formats",
        "sources": {name: _complete(source) for name, source in sources.items()},
    }
    text = yaml.safe_dump(document, sort_keys=False, width=100, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def _complete(source: dict[str, Any]) -> dict[str, Any]:
    return source | {"licence": _LICENCE, "note": _NOTE}


def _satellites(spacing: float) -> dict[str, dict[str, Any]]:
    return {
        "sentinel-1": {
            "loader": "smgrid.sources.sentinel1:load_stac",
            "provides": ["vv", "vh"],
            "stac": _stac(sentinel1.RTC.id),
            "assets": {"vv": "vv", "vh": "vh"},
            "units": {"vv": "1", "vh": "1"},
            "convention": "gamma0",
            "nodata": sentinel1.NODATA,
            "native_resolution": spacing,
            "citation": _RADAR,
        },
        "sentinel-1-angle": {
            "loader": "smgrid.sources.sentinel1:load_angle",
            "provides": ["angle"],
            "stac": _stac(sentinel1.ANGLE.id),
            "assets": {"angle": "angle"},
            "units": {"angle": "degree"},
            "nodata": sentinel1.NODATA,
            "native_resolution": spacing,
            "citation": _RADAR,
        },
        "modis": {
            "loader": "smgrid.sources.ndvi:load_modis",
            "provides": ["ndvi", "ndvi_filled"],
            "stac": _stac(modis.COLLECTION.id),
            "assets": {
                "ndvi": "250m_16_days_NDVI",
                "quality": "250m_16_days_VI_Quality",
                "reliability": "250m_16_days_pixel_reliability",
            },
            "scale": {"ndvi": modis.SCALE},
            "nodata": modis.NDVI_FILL,
            "native_resolution": 231.65635826,
            "citation": _PHENOLOGY,
        },
        "smap": {
            "loader": "smgrid.sources.smap:load_l3",
            "provides": ["smap_soil_moisture"],
            "paths": ["smap/SMAP_L3_SM_P_E_*.h5"],
            "citation": _WATER,
            "options": {"overpass": "both", "quality": "recommended"},
        },
    }


def _others() -> dict[str, dict[str, Any]]:
    return {
        "era5-land": {
            "loader": "smgrid.sources.era5:load",
            "provides": ["t2m", "tp"],
            "paths": ["era5_land.zarr"],
            "assets": {"t2m": "t2m", "tp": "tp", "time": "time"},
            "units": {"t2m": "K", "tp": "m"},
            "native_resolution": 9000.0,
            "citation": _WEATHER,
            "options": {"step": "daily", "accumulation": "daily-total"},
        },
        "soilgrids": {
            "loader": "smgrid.sources.soilgrids:load",
            "provides": ["sand", "clay", "bdod"],
            "assets": {v: f"soilgrids/{soilgrids.file_name(v)}" for v in ("sand", "clay", "bdod")},
            "units": {"sand": "g kg-1", "clay": "g kg-1", "bdod": "cg cm-3"},
            "nodata": soilgrids.NODATA,
            "crs": soilgrids.CRS_NAME,
            "native_resolution": soilgrids.PIXEL,
            "citation": _WATER,
        },
        "copernicus-dem": {
            "loader": "smgrid.sources.dem:load",
            "provides": ["elevation", "slope", "aspect_sin", "aspect_cos"],
            "stac": _stac(copernicus_dem.COLLECTION.id),
            "assets": {"elevation": "data"},
            "native_resolution": 30.0,
            "citation": _TERRAIN,
        },
    }


def _stac(collection: str) -> dict[str, str]:
    return {"href": "stac/catalog.json", "collection": collection}
