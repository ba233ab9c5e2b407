"""Whether a map will hold anything: found out before hours are spent on writing missing values."""

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from smgrid.cube.dispatch import connected, current_client
from smgrid.errors import NoDataError
from smgrid.features.assemble import required_variables
from smgrid.features.inputs import Cube, find_variables
from smgrid.features.layout import FeatureLayout
from smgrid.inference.quality import FLAGS


def require_values(sm: xr.Dataset, cube: Cube, *, layout: FeatureLayout) -> None:
    """Raise NoDataError if no pixel of any acquisition has all inputs, and say what is missing.

    Parameters
    ----------
    sm
        From `predict`.
    cube
        What it was predicted from.
    layout
        Layout of the ensemble.

    Raises
    ------
    NoDataError
        The map would hold nothing but missing values.
    LostSchedulerError
        The cluster's scheduler has gone.

    Notes
    -----
    Unit by unit is computed until one holds a value: usually the first.
    """
    if _holds(sm["flags"], lambda block: (block & FLAGS["input_missing"]) == 0):
        return
    found = find_variables(cube, required_variables(layout))
    empty = [name for name, array in found.items() if not _holds(array, np.isfinite)]
    what = (
        f"{', '.join(empty)} {'has' if len(empty) == 1 else 'have'} no value at all"
        if empty
        else "each input has values, but nowhere all of them together"
    )
    times = sm.indexes["time"]
    raise NoDataError(
        f"no pixel of the {len(times)} acquisitions from {times[0]:%Y-%m-%d} to "
        f"{times[-1]:%Y-%m-%d} can be mapped: {what}. Check nodata and scale of the sources in "
        "the catalog and whether their files cover the region, then build the cube again"
    )


def _holds(array: xr.DataArray, test: Callable[[npt.NDArray[Any]], npt.NDArray[np.bool_]]) -> bool:
    """Whether any value passes a test; reads block by block and stops at the first that does."""
    blocks = da.asarray(array.data).to_delayed().ravel()
    with connected(current_client()):
        return any(bool(test(block.compute()).any()) for block in blocks)
