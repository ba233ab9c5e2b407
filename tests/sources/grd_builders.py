"""Sources of ground range products for tests: regions, elevation models, entries and items."""

import numpy as np
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, StacQuery
from smgrid.grid import make_grid
from smgrid.windows import Period
from tests.builders import make_item, write_catalog, write_cog
from tests.safe_scene import Scene, ramps

PERIOD = Period.parse(("2024-03-01", "2024-03-31"))
LONGITUDE, LATITUDE = (float(v) for v in Scene(ramps()).place(180.0, 200.0))


def region(resolution=10, half=(0.012, 0.008), crs="utm"):
    west, north = half
    box = (LONGITUDE - west, LATITUDE - north, LONGITUDE + west, LATITUDE + north)
    return make_grid(box, resolution=resolution, crs=crs)


def write_dem(folder, height=0.0, grid=None, name="dem.tif"):
    """Write heights (a number or a function of x and y) on a lattice of 30 m in UTM."""
    box = (grid or region(10)).boundingbox.buffered(3000)
    lattice = GeoBox.from_bbox(box, "EPSG:32631", resolution=30.0)
    y, x = (axis.values for axis in lattice.coordinates.values())
    xx, yy = np.meshgrid(x, y)
    values = height(xx, yy) if callable(height) else np.full(lattice.shape, height)
    return write_cog(folder / name, values.astype("float32"), lattice, nodata=-9999.0)


def write_geoid(folder, value, box=(-10, 40, 20, 60)):
    """Write a geoid as PROJ has them: in the three-dimensional CRS of the ellipsoid."""
    grid = GeoBox.from_bbox(box, "EPSG:4326", resolution=1.0)
    values = np.full(grid.shape, value, "float32")
    return str(write_cog(folder / "geoid.tif", values, grid, crs="EPSG:4979"))


def grd_spec(folder, *scenes, dem=None, **changes):
    options = {"dem": str(dem or write_dem(folder)), "heights": "ellipsoid"}
    defaults = {
        "name": "grd",
        "loader": "smgrid.sources.grd:load_safe",
        "provides": ("vv", "vh"),
        "paths": tuple(str(scene.write(folder)) for scene in scenes),
        "convention": "sigma0",
        "native_resolution": 10.0,
        "origin": "test.yml, line 1",
        "options": options | changes.pop("options", {}),
    }
    return SourceSpec(**{**defaults, **changes})


def grd_item(scene, root, *, start=None):
    """Return an item as the Planetary Computer makes them, with its wrong schema-product."""
    folder = f"{root}/{scene.name}.SAFE"
    stems = {
        name: f"s1a-iw-grd-{name}-{scene.time(0):%Y%m%dt%H%M%S}-{number:03d}"
        for number, name in enumerate(scene.numbers, 1)
    }
    assets = {}
    for name, stem in stems.items():
        assets |= {
            name: f"{folder}/measurement/{stem}.tiff",
            f"schema-product-{name}": f"{folder}/annotation/rfi/rfi-{stem}.xml",
            f"schema-calibration-{name}": f"{folder}/annotation/calibration/calibration-{stem}.xml",
            f"schema-noise-{name}": f"{folder}/annotation/calibration/noise-{stem}.xml",
        }
    outline = region(100, half=(0.04, 0.03))
    return make_item(
        scene.name,
        outline,
        assets,
        start=start or scene.time(0),
        projection="none",
        platform="SENTINEL-1A",
        **{"sat:orbit_state": "ascending", "sat:relative_orbit": 88},
    )


def stac(folder, items):
    href = write_catalog(folder / "stac", "sentinel-1-grd", items)
    return StacQuery(str(href), "sentinel-1-grd")
