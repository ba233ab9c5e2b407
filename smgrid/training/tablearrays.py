"""The arrays of a table of samples on disk: dimensions, types, CF attributes, bytes to sum."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr

from smgrid.cube.template import CODEC
from smgrid.features.layout import FeatureLayout
from smgrid.training.table import Samples

CHUNKS = {"sample": 65_536, "series_row": 8_192}  # about 4 MB of the widest arrays
_TEXT = "string"


class _Array(NamedTuple):
    dims: tuple[str, ...]
    dtype: str
    fill: Any
    attrs: Mapping[str, str]


def create_array(root: zarr.Group, name: str, layout: FeatureLayout) -> zarr.Array[Any]:
    """Create an array of `ARRAYS` without rows."""
    array = ARRAYS[name]
    sizes = {"column": len(layout.snapshot), "variable": len(layout.series), "step": layout.steps}
    inner = tuple(sizes[dim] for dim in array.dims[1:])
    return root.create_array(
        name,
        shape=(0, *inner),
        chunks=(CHUNKS[array.dims[0]], *inner),
        dtype=array.dtype,
        compressors="auto" if array.dtype == _TEXT else CODEC,
        fill_value=array.fill,
        dimension_names=array.dims,
        attributes=dict(array.attrs),
    )


def create_names(root: zarr.Group, layout: FeatureLayout) -> None:
    """Create the coordinates that name the columns and the series."""
    names = {
        "column": ("feature of the snapshot", layout.column_names[: len(layout.snapshot)]),
        "variable": ("feature of the series", [column.feature for column in layout.series]),
    }
    for dim, (long_name, texts) in names.items():
        values = np.array(texts, np.dtypes.StringDType())
        root.create_array(
            dim, data=values, dimension_names=(dim,), attributes={"long_name": long_name}
        )


def to_arrays(samples: Samples, *, n_series: int) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays as they are stored behind `n_series` series."""
    values = {name: np.ascontiguousarray(getattr(samples, name)) for name in ARRAYS}
    values["series_index"] = values["series_index"] + n_series
    values["time"] = values["time"].astype("M8[ns]").view(np.int64)
    return values


def to_bytes(values: npt.NDArray[Any]) -> Any:
    """Return what a sum is taken of; groups of rows give what the whole gives."""
    if values.dtype.kind in "UT":
        return "".join(f"{text}\n" for text in values.tolist()).encode()
    return values


_SAMPLE = ("sample",)
_DEGREES = {"longitude": "degrees_east", "latitude": "degrees_north"}
ARRAYS = {
    "snapshot": _Array(
        ("sample", "column"),
        "float32",
        np.nan,
        {"long_name": "snapshot columns, scaled by the layout", "units": "1"},
    ),
    "series": _Array(
        ("series_row", "variable", "step"),
        "float32",
        np.nan,
        {"long_name": "one-year series, oldest step first, scaled by the layout", "units": "1"},
    ),
    "series_index": _Array(
        _SAMPLE, "int64", -1, {"long_name": "series_row of the sample", "units": "1"}
    ),
    "label": _Array(
        _SAMPLE,
        "float32",
        np.nan,
        {
            "long_name": "soil moisture; missing where it is unknown",
            "standard_name": "volume_fraction_of_condensed_water_in_soil",
            "units": "m3 m-3",
        },
    ),
    "weight": _Array(_SAMPLE, "float32", np.nan, {"long_name": "weight in the loss", "units": "1"}),
    "time": _Array(
        _SAMPLE,
        "int64",
        int(np.datetime64("NaT").view(np.int64)),
        {
            "long_name": "start of the acquisition, UTC",
            "standard_name": "time",
            "units": "nanoseconds since 1970-01-01",
            "calendar": "proleptic_gregorian",
        },
    ),
    **{
        name: _Array(
            _SAMPLE,
            "float64",
            np.nan,
            {"long_name": f"{name} of the pixel centre", "standard_name": name, "units": units},
        )
        for name, units in _DEGREES.items()
    },
    # "h" because xarray reads the word as a duration.
    "lag": _Array(
        _SAMPLE, "float32", np.nan, {"long_name": "label minus acquisition time", "units": "h"}
    ),
    "station": _Array(_SAMPLE, _TEXT, "", {"long_name": "station of the label"}),
    "network": _Array(_SAMPLE, _TEXT, "", {"long_name": "network of the station"}),
}
