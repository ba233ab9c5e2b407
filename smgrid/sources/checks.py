"""Checks of values that are only known when they are read."""

import numpy as np
import numpy.typing as npt
import xarray as xr

from smgrid.schema import check_range


def checked(da: xr.DataArray, name: str, *, where: str) -> xr.DataArray:
    """Return `da`, whose values raise SchemaError when computed out of the range of `name`."""
    same: xr.DataArray = xr.apply_ufunc(
        _check,
        da,
        kwargs={"name": name, "where": where},
        dask="parallelized",
        output_dtypes=[da.dtype],
        keep_attrs=True,
    )
    return same


def _check(values: npt.NDArray[np.float32], *, name: str, where: str) -> npt.NDArray[np.float32]:
    check_range(values, name, where=where)
    return values
