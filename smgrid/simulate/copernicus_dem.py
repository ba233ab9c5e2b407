"""Terrain as the Copernicus DEM GLO-30: one-degree tiles of 1 arc-second, cut to the region.

Pixels lie where those of the real tiles do: centred on whole arc-seconds, wider north of 50 degrees
(Copernicus DEM Product Handbook, Airbus 2022). Each tile is clipped to what the region needs.
"""

import math
from pathlib import Path

from odc.geo.geobox import GeoBox

from smgrid.simulate.evolution import Land
from smgrid.simulate.frame import bilinear, bounds_in, lattice_window
from smgrid.simulate.rasters import write_cog
from smgrid.simulate.stac import COG_TYPE, PROJECTION_EXTENSION, Collection, Item, make_item

COLLECTION = Collection(
    "cop-dem-glo-30",
    "Simulated surface model in the form of Copernicus DEM GLO-30",
    "A fractal terrain; one-degree tiles of 1 arc-second, clipped around the region.",
)
_ARC_SECOND = 1.0 / 3600.0
_MARGIN = 1000.0  # m beyond the region, for slopes at its edge
_NODATA = -32767.0
# Longitudinal spacing in arc-seconds from each absolute latitude on (Product Handbook, table 1).
_SPACINGS = ((85, 10.0), (80, 5.0), (70, 3.0), (60, 2.0), (50, 1.5), (0, 1.0))


def write_dem(folder: Path, land: Land) -> list[Item]:
    """Write the tiles under the region into `folder`; return their STAC items."""
    west, south, east, north = bounds_in(land.frame.base, "EPSG:4326", margin=_MARGIN)
    return [
        _write_tile(folder, land, lon, lat, (west, south, east, north))
        for lat in range(math.floor(south), math.floor(north) + 1)
        for lon in range(math.floor(west), math.floor(east) + 1)
    ]


def tile_name(longitude: int, latitude: int) -> str:
    """Name of the tile whose south-western corner is at these whole degrees."""
    northing = f"{'S' if latitude < 0 else 'N'}{abs(latitude):02d}_00"
    easting = f"{'W' if longitude < 0 else 'E'}{abs(longitude):03d}_00"
    return f"Copernicus_DSM_COG_10_{northing}_{easting}_DEM"


def tile_window(longitude: int, latitude: int, bounds: tuple[float, ...]) -> GeoBox:
    """Pixels of a tile that cover `bounds` (west, south, east, north) [degree]."""
    # The spacing is that of the tile's edge nearer to the equator.
    level = latitude if latitude >= 0 else -latitude - 1
    width = next(step for start, step in _SPACINGS if level >= start) * _ARC_SECOND
    west, south = max(bounds[0], longitude), max(bounds[1], latitude)
    east, north = min(bounds[2], longitude + 1), min(bounds[3], latitude + 1)
    # A tile's first pixel is centred on its western and northern whole degree.
    origin = (longitude - width / 2, latitude + 1 + _ARC_SECOND / 2)
    window = (
        max(west, origin[0]),
        max(south, origin[1] - 1),
        min(east, origin[0] + 1),
        min(north, origin[1]),
    )
    return lattice_window(window, "EPSG:4326", origin=origin, step=(width, _ARC_SECOND))


def _write_tile(
    folder: Path, land: Land, longitude: int, latitude: int, bounds: tuple[float, ...]
) -> Item:
    name = tile_name(longitude, latitude)
    grid = tile_window(longitude, latitude, bounds)
    elevation = bilinear(land.terrain.fine_grid, grid)(land.terrain.fine)
    write_cog(
        folder / name / f"{name}.tif",
        elevation,
        grid,
        nodata=_NODATA,
        tags={"AREA_OR_POINT": "Point"},
    )
    title = "_".join(name.split("_")[4:8])
    return make_item(
        name,
        collection=COLLECTION.id,
        grid=grid,
        properties={
            "gsd": 30,
            "datetime": "2021-04-22T00:00:00Z",
            "platform": "TanDEM-X",
            "proj:epsg": 4326,
            "proj:shape": list(grid.shape.yx),
            "proj:transform": list(grid.affine)[:6],
        },
        assets={
            "data": {
                "href": f"./{name}.tif",
                "title": title,
                "type": COG_TYPE,
                "roles": ["data"],
            }
        },
        extensions=[PROJECTION_EXTENSION],
    )
