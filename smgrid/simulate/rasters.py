"""Cloud-optimised GeoTIFFs, as every raster of the world is written."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from smgrid.grid import require_north_up

BLOCK = 256  # pixels along the edge of a tile


def write_cog(
    path: Path,
    values: NDArray[Any],
    grid: GeoBox,
    *,
    nodata: float,
    tags: dict[str, str] | None = None,
) -> None:
    """Write one band as a cloud-optimised GeoTIFF with averaged overviews.

    Parameters
    ----------
    path
        File; its folder is made.
    values
        (y, x)
    grid
        Of the values.
    nodata
        Value that means missing.
    tags
        Metadata of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    profile: dict[str, Any] = {
        "driver": "COG",
        "height": values.shape[0],
        "width": values.shape[1],
        "count": 1,
        "dtype": values.dtype.name,
        "crs": require_north_up(grid).to_wkt(),
        "transform": grid.affine,
        "nodata": nodata,
        "blocksize": BLOCK,
        "compress": "deflate",
        "level": 1,
        "predictor": "yes",
        "overview_resampling": "average" if np.issubdtype(values.dtype, np.floating) else "mode",
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(values, 1)
        file.update_tags(**(tags or {}))


def file_facts(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, under the keys of the STAC file extension."""
    content = path.read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return {"file:size": len(content), "file:checksum": digest}
