"""Cloud-Optimised GeoTIFFs: one file per acquisition and variable, as STAC items expect them."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
import rasterio.shutil
from rasterio.windows import Window as RasterWindow

import smgrid
from smgrid.cube.progress import Progress, ProgressFunction
from smgrid.cube.storage import StorePath
from smgrid.export.attributes import json_text
from smgrid.export.placing import IDENTITY, ExportReport, is_there, local_target, placing
from smgrid.export.stored import StoredMap, StoredVariable, open_stored
from smgrid.grid import require_north_up

PREFIX = "sm"
BLOCK = 512  # edge of a tile in pixels: what GDAL's COG driver and titiler read at once
_CACHE_MB = 64  # of GDAL for blocks; its default is a share of all memory


def write_cogs(
    store: StorePath,
    out: str | PathLike[str],
    *,
    group: str | None = None,
    variables: Sequence[str] | None = None,
    dates: Any = None,
    prefix: str = PREFIX,
    progress: ProgressFunction | None = None,
) -> ExportReport:
    """Write every acquisition and variable as a Cloud-Optimised GeoTIFF.

    Parameters
    ----------
    store
        Folder or URL of a complete map, or of a cube with `group`.
    out
        Folder; files of other exports may be in it.
    group, variables, dates
        What to export, see `smgrid.export.stored.open_stored`.
    prefix
        Files are ``<prefix>_<acquisition start, UTC>_<variable>.tif``, for instance
        ``sm_20240105T172312Z_soil_moisture.tif``; static variables have no time in their name.
    progress
        Called with a `Progress` at the start and after every file.

    Returns
    -------
    ExportReport
        Files that were written, and those that were there already with the same content.

    Raises
    ------
    ConfigError, StoreError
        As `open_stored` and `smgrid.export.placing.is_there`, or a shard of the store is damaged.

    Notes
    -----
    Values are the stored counts; scale, offset, unit and nodata are in the band's metadata.
    Overviews average quantities and take the most frequent value of flags and classes, which have
    no nodata value. Memory depends on the shard of the store alone.
    """
    stored = open_stored(store, group=group, variables=variables, dates=dates)
    folder = local_target(out, store=stored.path)
    targets = {
        folder / cog_name(stored, variable, position, prefix=prefix): (variable, position)
        for variable, position in stored.layers
    }
    identities = {target: stored.digest([layer]) for target, layer in targets.items()}
    # All of them before the first is written.
    kept = [t for t, identity in identities.items() if is_there(t, identity, cog_identity)]
    report = progress or _tell_nobody
    report(Progress(len(kept), len(targets), group or ""))
    written = [target for target in targets if target not in kept]
    for done, target in enumerate(written, start=len(kept) + 1):
        _write_cog(stored, *targets[target], target, identities[target])
        report(Progress(done, len(targets), group or ""))
    return ExportReport(folder, tuple(written), tuple(kept))


def cog_name(
    stored: StoredMap, variable: StoredVariable, position: int | None, *, prefix: str = PREFIX
) -> str:
    """Return the name of the file of a layer."""
    stamp = "" if position is None else f"_{stored.times[position]:%Y%m%dT%H%M%SZ}"
    return f"{prefix}{stamp}_{variable.name}.tif"


def _tell_nobody(_: Progress) -> None: ...


def cog_identity(path: Path) -> str | None:
    """Return what a file was made from, `None` if it is no export."""
    with rasterio.open(path) as src:
        found: str | None = src.tags().get(IDENTITY.upper())
    return found


def _write_cog(
    stored: StoredMap,
    variable: StoredVariable,
    position: int | None,
    target: Path,
    identity: str,
) -> None:
    with placing(target) as path, rasterio.Env(GDAL_CACHEMAX=_CACHE_MB):
        # GDAL's COG driver only copies, and rasterio would hold the whole raster in memory to let
        # it; a file of tiles beside it can be filled window by window.
        tiled = path.with_name("tiled.tif")
        _write_tiled(stored, variable, position, tiled, identity)
        rasterio.shutil.copy(
            tiled,
            path,
            driver="COG",
            blocksize=BLOCK,
            compress="DEFLATE",
            predictor="YES",
            overview_resampling="AVERAGE" if variable.is_quantity else "MODE",
            overviews="IGNORE_EXISTING",
            bigtiff="IF_SAFER",
        )


def _write_tiled(
    stored: StoredMap,
    variable: StoredVariable,
    position: int | None,
    path: Path,
    identity: str,
) -> None:
    rows, columns = stored.grid.shape
    profile = {
        "driver": "GTiff",
        "dtype": variable.dtype.name,
        "count": 1,
        "height": rows,
        "width": columns,
        "crs": rasterio.crs.CRS.from_wkt(require_north_up(stored.grid).to_wkt()),
        "transform": stored.grid.affine,
        "nodata": variable.missing,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "deflate",
        "zlevel": 1,
        "bigtiff": "IF_SAFER",
    }
    with rasterio.open(path, "w", **profile) as dst:
        _describe(dst, stored, variable, position, identity)
        for y, x in variable.windows:
            where = RasterWindow(x.start, y.start, x.stop - x.start, y.stop - y.start)
            dst.write(stored.read(variable, position, (y, x)), 1, window=where)


def _describe(
    dst: Any, stored: StoredMap, variable: StoredVariable, position: int | None, identity: str
) -> None:
    attrs = variable.attrs
    dst.scales = (variable.packing.scale or 1.0,)
    dst.offsets = (variable.packing.offset or 0.0,)
    dst.descriptions = (variable.name,)
    dst.units = (str(attrs.get("units", "")),)
    dst.update_tags(1, **{key: _text(value) for key, value in attrs.items() if key != "units"})
    tags = {str(key): _text(value) for key, value in stored.coords.attrs.items()}
    tags |= {str(key): _text(value) for key, value in stored.at(position).items()}
    tags |= {IDENTITY.upper(): identity, "TIFFTAG_SOFTWARE": f"smgrid {smgrid.__version__}"}
    if position is not None:
        time = stored.times[position]
        tags |= {"TIFFTAG_DATETIME": f"{time:%Y:%m:%d %H:%M:%S}", "datetime": _stamp(time)}
        if stored.ends is not None:
            tags["end_datetime"] = _stamp(stored.ends[position])
    dst.update_tags(**tags)


def _stamp(time: pd.Timestamp) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def _text(value: Any) -> str:
    if isinstance(value, list | tuple | np.ndarray):
        return " ".join(map(str, value))
    return str(json_text(value))
