"""What a stream of samples takes from labels: held against the cube once, then read by block."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from smgrid.errors import ConfigError, SchemaError
from smgrid.features.inputs import ModelInputs
from smgrid.training.labels import check_units

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# Labels outside are left out, as the authors of DenseSM do for training (0 < sm <= 0.7 m3 m-3).
LABEL_RANGE = (0.0, 0.7)

_KNOWN = ("label", "lag", "weight", "station")
_NAMES = ("stations", "networks")
_ALIGNED = 1e-3  # fraction of a pixel that files and other software leave of a coordinate's value
_TURNED = {
    "y": "they run south to north: labels.sortby('y', ascending=False)",
    "x": "they run east to west: labels.sortby('x')",
}


def align_labels(labels: xr.DataArray | xr.Dataset, inputs: ModelInputs) -> xr.Dataset:
    """Return labels on the very coordinates of a cube.

    Parameters
    ----------
    labels
        ``label`` (time, y, x) [m3 m-3], alone or in a Dataset with ``lag``, ``weight`` and
        ``station``, each along any of these dims. Coordinates may be left out.
    inputs
        Of the cube.

    Raises
    ------
    ConfigError
        They have other variables, dims, units, times or pixels, or names of stations are missing.
    """
    ds = labels.to_dataset(name="label") if isinstance(labels, xr.DataArray) else labels
    label, reference = _find_label(ds), inputs.pixels["vv"]
    if label.dims != reference.dims or label.shape != reference.shape:
        raise ConfigError(
            f"labels have dims {label.dims} and shape {label.shape}, expected {reference.dims} "
            f"and {reference.shape}: one value per acquisition and base pixel, NaN where unknown"
        )
    check_units(label, "labels")
    for name in ds.data_vars:
        if name in _KNOWN and not set(ds[name].dims) <= set(reference.dims):
            raise ConfigError(
                f"labels: {name} has dims {ds[name].dims}, expected {reference.dims} or some of "
                "them; select or average along the others"
            )
    _check_times(label, reference)
    _check_pixels(label, reference, inputs)
    known = ds[[name for name in _KNOWN if name in ds.data_vars]]
    known = known.drop_vars(list(known.coords))
    if "station" in known:
        known["station"] = known["station"].assign_attrs(_names(ds["station"].attrs))
    return known.assign_coords({d: reference.coords[d].variable for d in reference.dims})


def find_wanted(label: FloatArray) -> BoolArray:
    """Return where labels may be trained on.

    Raises
    ------
    SchemaError
        One is above 1 m3 m-3.
    """
    if (label > 1).any():
        raise SchemaError(
            f"labels: found {label[label > 1][0]:g}, expected 0 to 1 m3 m-3; if they are per cent "
            "divide them by 100"
        )
    return np.asarray((label > LABEL_RANGE[0]) & (label <= LABEL_RANGE[1]))


def row_facts(target: xr.Dataset, rows: IntArray, labels: xr.Dataset) -> dict[str, Any]:
    """Return the arguments of `make_samples` that labels give, for some pixels of a block.

    Parameters
    ----------
    target
        Labels of a block, in memory.
    rows
        Positions of the pixels in C order.
    labels
        As made by `align_labels`; names the stations.

    Raises
    ------
    SchemaError
        A weight is negative or not finite, or a station has no name.
    """
    wide = target.broadcast_like(target["label"])
    facts = {str(name): da.values.ravel()[rows] for name, da in wide.data_vars.items()}
    if "weight" in facts:
        _check_weights(facts["weight"])
    if "station" in facts:
        code = facts.pop("station").astype(np.int64)
        facts |= _station_facts(code, labels["station"].attrs)
    return facts


def _check_weights(weight: FloatArray) -> None:
    fits = np.isfinite(weight) & (weight >= 0)
    if not fits.all():
        raise SchemaError(
            f"labels: found a weight of {weight[~fits][0]:g}, expected 0 or more wherever there is "
            "a label; where it should not count set the label to NaN"
        )


def _station_facts(code: IntArray, names: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the names of the stations in pixels, by number."""
    last = code.max(initial=-1)
    if last >= len(names["stations"]):
        raise SchemaError(
            f"labels: found station {last}, but its attribute stations has "
            f"{len(names['stations'])} names, for 0 and so on; name every station there"
        )
    if last < 0:
        return {}
    # The last name, "", is that of the code -1.
    return {fact: np.array([*names[f"{fact}s"], ""])[code] for fact in ("station", "network")}


def _find_label(ds: xr.Dataset) -> xr.DataArray:
    known = ", ".join(_KNOWN)
    if "label" not in ds.data_vars:
        raise ConfigError(
            f"labels have the variables {', '.join(map(str, ds.data_vars)) or 'none'}, expected "
            "label (time, y, x); make them with station_labels or collocate_labels"
        )
    # A file that was not opened with decode_coords="all" has its CRS among the variables.
    unknown = [n for n in ds.data_vars if n not in _KNOWN and "crs_wkt" not in ds[n].attrs]
    if unknown:
        raise ConfigError(
            f"labels have the variables {', '.join(map(str, unknown))}, which nothing is known of; "
            f"known are {known}. Rename or drop them"
        )
    return ds["label"]


def _check_times(label: xr.DataArray, reference: xr.DataArray) -> None:
    if "time" not in label.coords:
        return
    found, wanted = label["time"].values, reference["time"].values
    if found.dtype.kind != "M":
        raise ConfigError(
            f"labels: time has the type {found.dtype}, expected datetime64 in UTC; convert it"
        )
    differs = np.flatnonzero(found != wanted)
    if not differs.size:
        return
    cure = "bring labels of other dates to the acquisitions with collocate_labels or station_labels"
    if np.array_equal(np.sort(found), wanted):
        cure = "they have another order: labels.sortby('time')"
    at = differs[0]
    raise ConfigError(
        f"labels: time differs from the acquisitions of the cube at {differs.size} of {found.size} "
        f"steps, first at step {at}: found {pd.Timestamp(found[at])}, expected "
        f"{pd.Timestamp(wanted[at])}; {cure}"
    )


def _check_pixels(label: xr.DataArray, reference: xr.DataArray, inputs: ModelInputs) -> None:
    for dim, size in (("y", inputs.grid.resolution.y), ("x", inputs.grid.resolution.x)):
        if dim not in label.coords:
            continue
        found, wanted = label[dim].values.astype(np.float64), reference[dim].values
        off = np.abs(found - wanted).max() / abs(size)
        if off <= _ALIGNED:
            continue
        turned = np.abs(found[::-1] - wanted).max() / abs(size) <= _ALIGNED
        cure = "bring labels of another grid to the pixels of the cube with collocate_labels"
        raise ConfigError(
            f"labels: {dim} runs from {found[0]:.10g} to {found[-1]:.10g}, expected "
            f"{wanted[0]:.10g} to {wanted[-1]:.10g} as in the cube; it is off by up to {off:.3g} "
            f"pixels; {_TURNED[dim] if turned else cure}"
        )


def _names(attrs: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return both lists of names; a file keeps a list of one as text."""
    if missing := [key for key in _NAMES if key not in attrs]:
        raise ConfigError(
            f"labels: station has no attribute {' and '.join(missing)}, expected the name of every "
            "number there, empty where there is none"
        )
    names = {key: np.atleast_1d(attrs[key]).astype(str).tolist() for key in _NAMES}
    if len(names["stations"]) != len(names["networks"]):
        raise ConfigError(
            f"labels: station has {len(names['stations'])} stations and {len(names['networks'])} "
            "networks in its attributes, expected one of each per number"
        )
    return names
