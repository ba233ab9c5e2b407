"""A stored cube and a longer one of the same sources become the cube that the store will be.

What is stored stays: steps that are there keep their place, new ones come after the last. Values
come from the longer cube where they are new, missing or provisional, and from the store elsewhere.
So do the coordinates along time of the same steps, as they tell where the values come from.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from smgrid.cube.coords import TIME_DIMS
from smgrid.cube.journal import Steps
from smgrid.cube.template import differences
from smgrid.cube.tiling import PendingUnits, UnitSet, dates_of
from smgrid.errors import StoreError, TemplateMismatchError

_OF_ITS_SOURCES = frozenset(
    {"approximate", "approximate_note", "assumed", "assumed_note", "composite_days"}
)
_EXTENTS = frozenset({"smgrid_period", "smgrid_scenes"})
"""Attributes of the tree that an update changes."""

Times = npt.NDArray[np.datetime64]


@dataclass(frozen=True)
class Extended:
    """One group of the longer cube."""

    ds: xr.Dataset
    redo: Mapping[str, Steps]
    """Steps along a dim whose shards are computed again, though they are there."""
    added: tuple[str, ...]
    """Steps after the last one of the store."""
    late: tuple[str, ...]
    """Acquisitions that are offered now, but lie before the last one of the store."""
    withdrawn: tuple[str, ...]
    """Acquisitions of the store that are not offered any more."""


def extend_group(
    path: str,
    stored: xr.Dataset,
    fresh: xr.Dataset,
    *,
    missing: PendingUnits,
    provisional: Mapping[str, int],
    begun: Mapping[str, Steps],
) -> Extended:
    """Return a group with the steps of the store and those that came after them.

    Parameters
    ----------
    path
        Of the group.
    stored, fresh
        The group as it is, and as the sources describe it for the longer period.
    missing
        Units of the store that are not there.
    provisional
        Days before the last stored step whose values may have changed, by dim.
    begun
        Steps along a dim that an interrupted update computes again.

    Raises
    ------
    StoreError
        The axes do not fit together, or a unit is missing whose acquisition is not offered any
        more.
    """
    lacking = [(units, index) for units, index in missing if units.group == path]
    dim = next((dim for dim in TIME_DIMS if dim in stored.dims), None)
    if dim is None:
        ds = fresh if lacking else stored
        return Extended(ds.assign_attrs(fresh.attrs), {}, (), (), ())
    days = provisional.get(dim, 0)
    axis = _Axis.of(dim, stored, fresh, days=days)
    absent = lacking_steps(lacking, dim, axis.old.size)
    _check_axis(path, dim, axis, absent)
    again = axis.provisional | steps_inside(begun.get(dim, ()), axis.old.size)
    # Other tiles of a missing step stay, unless it is described in another way now, as a date is
    # that another source gives: then they would not be what the coordinates say.
    again |= absent & _described_anew(stored, fresh, dim, axis)
    pieces = _pieces(stored, fresh, dim, (absent | again) & axis.offered, axis.places)
    if axis.later.any():
        pieces.append(fresh.isel({dim: np.flatnonzero(axis.later)}))
    static = fresh if any(dim not in units.dims for units, _ in lacking) else stored
    ds = _join(pieces, dim, static=static, like=fresh)
    grows = dim == "date"  # its last shard gets more steps
    redo = ranges_of(np.append(again, np.full(ds.sizes[dim] - again.size, grows)))
    return Extended(
        ds=ds,
        redo={dim: redo} if redo else {},
        added=tuple(dates_of(axis.new[axis.later])),
        late=tuple(dates_of(axis.late)),
        withdrawn=tuple(dates_of(axis.old[~axis.offered])),
    )


@dataclass(frozen=True)
class _Axis:
    """The steps of the store and those of the longer cube."""

    old: Times
    new: Times
    places: npt.NDArray[np.intp]
    """Where the old steps are among the new ones, if they are."""
    offered: npt.NDArray[np.bool_]
    """Which old steps are among the new ones."""
    later: npt.NDArray[np.bool_]
    """Which new steps come after the old ones."""
    late: Times
    """New steps that would have to stand between old ones."""
    provisional: npt.NDArray[np.bool_]
    """Which old steps have values that may have changed."""

    @classmethod
    def of(cls, dim: str, stored: xr.Dataset, fresh: xr.Dataset, *, days: int) -> "_Axis":
        old, new = stored[dim].values, fresh[dim].values
        later, provisional = np.ones(new.size, bool), np.zeros(old.size, bool)
        if old.size:
            later = new > old[-1]
            provisional = old > old[-1] - np.timedelta64(days, "D")
        return cls(
            old=old,
            new=new,
            places=np.searchsorted(new, old),
            offered=np.isin(old, new),
            later=later,
            late=new[~later & ~np.isin(new, old)],
            provisional=provisional,
        )


def _check_axis(path: str, dim: str, axis: _Axis, absent: npt.NDArray[np.bool_]) -> None:
    if dim == "date" and not (axis.offered.all() and axis.late.size == 0):
        msg = (
            f"/{path}: the dates of the store and those of the catalog differ before "
            f"{dates_of(axis.old[-1:])[0]}; a series cannot go on with another calendar, build a "
            "new store"
        )
        raise StoreError(msg)
    if (absent & ~axis.offered).any():
        lost = dates_of(axis.old[absent & ~axis.offered])
        msg = (
            f"/{path}: units of {', '.join(lost[:4])} are missing, and the catalog does not offer "
            "these acquisitions any more; build a new store"
        )
        raise StoreError(msg)


def lacking_steps(
    lacking: Iterable[tuple[UnitSet, tuple[int, ...]]], dim: str, size: int
) -> npt.NDArray[np.bool_]:
    """Return which steps along a dim lie in a shard that is missing."""
    steps = np.zeros(size, bool)
    for units, index in lacking:
        if dim in units.dims:
            axis = units.dims.index(dim)
            edge = units.shards[axis]
            steps[index[axis] * edge : (index[axis] + 1) * edge] = True
    return steps


def _described_anew(
    stored: xr.Dataset, fresh: xr.Dataset, dim: str, axis: _Axis
) -> npt.NDArray[np.bool_]:
    """Return which old steps have other coordinates in the longer cube."""
    anew = np.zeros(axis.old.size, bool)
    for name, coord in stored.coords.items():
        if coord.dims == (dim,):
            new = fresh[name].values[axis.places[axis.offered]]
            anew[axis.offered] |= coord.values[axis.offered] != new
    return anew


def steps_inside(steps: Steps, size: int) -> npt.NDArray[np.bool_]:
    """Return which of so many steps lie in the ranges."""
    inside = np.zeros(size, bool)
    for start, stop in steps:
        inside[start:stop] = True
    return inside


def ranges_of(chosen: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the ranges of places of chosen steps."""
    edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _pieces(
    stored: xr.Dataset,
    fresh: xr.Dataset,
    dim: str,
    taken: npt.NDArray[np.bool_],
    places: npt.NDArray[np.intp],
) -> list[xr.Dataset]:
    """Return runs of stored steps, each from the store or from the sources."""
    pieces = []
    for from_fresh, run in groupby(range(taken.size), key=lambda at: bool(taken[at])):
        steps = list(run)
        if from_fresh:
            pieces.append(fresh.isel({dim: places[steps]}))
        else:
            pieces.append(stored.isel({dim: slice(steps[0], steps[-1] + 1)}))
    return pieces


def _join(
    pieces: Sequence[xr.Dataset], dim: str, *, static: xr.Dataset, like: xr.Dataset
) -> xr.Dataset:
    """Put the pieces one after the other, with what does not depend on time and attributes."""
    along = [name for name, variable in like.data_vars.items() if dim in variable.dims]
    parts = [piece[along] for piece in pieces]
    ds = xr.concat(
        parts,
        dim=dim,
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="override",
    )
    ds = ds.assign({name: static[name] for name in like.data_vars if name not in along})
    for name in like.data_vars:
        ds[name].attrs = dict(like[name].attrs)
    return ds[list(like.data_vars)].assign_attrs(like.attrs)


def check_same(path: str, stored: Mapping[str, Any], fresh: Mapping[str, Any]) -> None:
    """Raise TemplateMismatchError unless two template records differ in their extents alone."""
    found = differences(without_extents(stored), without_extents(fresh))
    if found:
        shown = "\n".join(f"  {line}" for line in found[:20])
        raise TemplateMismatchError(
            f"{path} cannot be updated, the catalog now describes something else:\n{shown}\n"
            "give the catalog that the store was built with, or build a new store"
        )


def without_extents(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a template record what stays the same when the store grows with time."""
    groups = {}
    for path, group in record["groups"].items():
        coords = {
            name: {"dims": c["dims"], "dtype": c["dtype"]} if {*c["dims"]} & {*TIME_DIMS} else c
            for name, c in group["coords"].items()
        }
        arrays = {
            name: array
            | {"shape": _spatial(array), "attrs": _lasting_attrs(name, array["attrs"], coords)}
            for name, array in group["arrays"].items()
        }
        attrs = {key: value for key, value in group["attrs"].items() if key not in _EXTENTS}
        groups[path] = group | {"coords": coords, "arrays": arrays, "attrs": attrs}
    return {**record, "groups": groups}


def _lasting_attrs(
    name: str, attrs: Mapping[str, Any], coords: Mapping[str, Any]
) -> dict[str, Any]:
    """Leave out what another source may change that fills the dates which the first one lacks.

    Which one gave which date is in a coordinate; the attributes are those of all that were used.
    """
    stands_in = f"{name}_source" in coords or "source" in coords
    return {key: v for key, v in attrs.items() if not (stands_in and key in _OF_ITS_SOURCES)}


def _spatial(array: Mapping[str, Any]) -> list[int]:
    both = zip(array["dims"], array["shape"], strict=True)
    return [size for dim, size in both if dim not in TIME_DIMS]
