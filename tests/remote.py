"""A Sentinel-1 scene behind a server, for tests of signing and reading."""

import numpy as np

from smgrid.sources.sentinel1 import load_stac
from smgrid.windows import Period
from tests.builders import make_item, stac_spec, utm_grid, write_catalog, write_cog

GRID = utm_grid((2, 2), 100)
PERIOD = Period.parse(("2024-03-01", "2024-03-31"))


def open_remote(files, folder, name, *, url="", **changes):
    """Open a scene of 0.1 (-10 dB) that the server holds under `name`."""
    geobox = GRID.zoom_to((20, 20))
    write_cog(files.folder / name, np.full(geobox.shape, 0.1, "float32"), geobox)
    item = make_item(
        "a",
        geobox,
        {"vv": f"{url or files.url}/{name}"},
        start="2024-03-05",
        **{"sat:relative_orbit": 88},
    )
    href = write_catalog(folder / "stac", "s1", [item])
    spec = stac_spec(href, provides=("vv",), **changes)
    return load_stac(spec, GRID, PERIOD)["vv"]


def assert_read(vv):
    np.testing.assert_allclose(vv, -10, atol=1e-5)
