"""Look into a store without reading its data: what it holds, how far it is, where it came from."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from smgrid.cube.coords import TIME_DIMS
from smgrid.cube.failures import Failure, read_ledger
from smgrid.cube.geozarr import FOLDER
from smgrid.cube.lock import Writer, is_alive, read_writers
from smgrid.cube.opening import open_groups
from smgrid.cube.record import MANIFEST_KEY, Status, read_record
from smgrid.cube.storage import (
    StorePath,
    explaining,
    list_sizes,
    normalise_path,
    open_store,
    read_json,
)
from smgrid.cube.tiling import Index, UnitSet, dates_of, present_shards

_SHOWN = 20
_SUMS = ("_sha256", "_sha256sums")  # of interest to `verify` alone


@dataclass(frozen=True)
class GridReport:
    """The grid of a group."""

    crs: str
    shape: tuple[int, int]
    """Rows and columns."""
    resolution: tuple[float, float]
    """Pixel size along x and y, in the units of the CRS."""
    bounds: tuple[float, float, float, float]
    """West, south, east and north edge in the CRS."""


@dataclass(frozen=True)
class VariableReport:
    """One variable of a group."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    """Type on disk."""
    units: str
    shards: tuple[int, ...]


@dataclass(frozen=True)
class Units:
    """Units of work that are done."""

    done: int
    total: int


@dataclass(frozen=True)
class GroupReport:
    """One group of a store."""

    path: str
    """Path of the group, "" for the root."""
    grid: GridReport | None
    period: tuple[str, str] | None
    """First and last date (UTC)."""
    variables: tuple[VariableReport, ...]
    units: Units
    units_by_date: Mapping[str, Units]
    """By the first date of the unit; units without a date are not among them."""
    nbytes: int
    """Bytes on disk."""


@dataclass(frozen=True)
class StoreReport:
    """A store on disk; ``print(report)`` shows it as a table."""

    path: str
    status: Status
    """``created`` or ``incomplete`` until every unit is there."""
    smgrid_format: int
    digest: str
    """Digest of the template."""
    groups: tuple[GroupReport, ...]
    provenance: Mapping[str, Any]
    """The manifest; of a store that is not complete, what it is made from, if that is known."""
    nbytes: int
    """Bytes on disk."""
    failures: tuple[Failure, ...] = ()
    """Units that are missing because they failed in the last write."""
    writers: tuple[Writer, ...] = ()
    """Processes that write to the store at this moment."""
    is_updated: bool = False
    """Whether an update is at work, or was interrupted and is to be run again."""
    overviews: tuple[int, ...] = ()
    """Factors of the overviews of a map; empty until they are complete."""

    @property
    def units(self) -> Units:
        """Units of all groups."""
        return _sum(group.units for group in self.groups)

    def __str__(self) -> str:
        units = self.units
        lines = [
            f"{self.path}: {self.status}, {units.done} of {units.total} units, "
            f"{_size(self.nbytes)}, format {self.smgrid_format}"
        ]
        lines += [
            f"  written by process {writer.pid} on {writer.host} since {writer.since}"
            for writer in self.writers
        ]
        if self.is_updated:
            lines.append("  an update is at work or was interrupted: run it again to finish it")
        if self.overviews:
            lines.append(f"  overviews of factor {', '.join(map(str, self.overviews))}")
        for group in self.groups:
            lines += ["", *_group_lines(group)]
        if self.failures:
            lines += ["", f"{len(self.failures)} units failed", *_failure_lines(self.failures)]
        told = {k: v for k, v in self.provenance.items() if not k.endswith(_SUMS)}
        if told:
            lines += ["", "provenance", *_table(sorted(told.items()))]
        return "\n".join(lines)


def inspect(path: StorePath) -> StoreReport:
    """Report what a store holds and how far it is; complete or not, without reading its data.

    Raises
    ------
    StoreError
        There is no store of smgrid at `path`.
    """
    path = normalise_path(path)
    with explaining(path):
        store = open_store(path)
        record = read_record(store, path)
        sizes = list_sizes(store)
        present = present_shards(sizes)
        opened = open_groups(store, record) if record.is_readable else {}
        groups = tuple(
            _report_group(
                group,
                content,
                ds=opened.get(group, xr.Dataset()),
                sets=[units for units in record.sets if units.group == group],
                present=present,
                nbytes=sum(size for key, size in sizes.items() if _is_below(key, group)),
            )
            for group, content in record.template["groups"].items()
            if content["arrays"]
        )
        whole = all(group.units.done == group.units.total for group in groups)
        return StoreReport(
            path=path,
            status=record.status if whole or record.status == "created" else "incomplete",
            smgrid_format=record.template["smgrid_format"],
            digest=record.digest,
            groups=groups,
            provenance=read_json(store, MANIFEST_KEY) or {},
            nbytes=sum(sizes.values()),
            failures=read_ledger(store),
            writers=tuple(w for w in read_writers(store).values() if w and is_alive(w)),
            is_updated=record.journal is not None,
            overviews=record.overviews,
        )


def _is_below(key: str, group: str) -> bool:
    if group:
        return key.startswith(f"{group}/")
    return not key.startswith(f"{FOLDER}/")


def _report_group(
    path: str,
    content: Mapping[str, Any],
    *,
    ds: xr.Dataset,
    sets: Sequence[UnitSet],
    present: Mapping[str, set[Index]],
    nbytes: int,
) -> GroupReport:
    dates = {dim: dates_of(ds[dim].values) for dim in TIME_DIMS if dim in ds.coords}
    ends = sorted(end for steps in dates.values() if steps for end in (steps[0], steps[-1]))
    return GroupReport(
        path=path,
        grid=_report_grid(ds),
        period=(ends[0], ends[-1]) if ends else None,
        variables=tuple(_report_variable(name, a) for name, a in content["arrays"].items()),
        units=_sum(Units(len(units.done(present)), units.total) for units in sets),
        units_by_date=_by_date(sets, present, dates),
        nbytes=nbytes,
    )


def _report_grid(ds: xr.Dataset) -> GridReport | None:
    if not {"y", "x"} <= set(ds.dims):
        return None
    grid = ds.odc.geobox
    authority = grid.crs.proj.to_authority(min_confidence=100)
    bounds = grid.boundingbox
    return GridReport(
        crs=":".join(authority) if authority else grid.crs.proj.name,
        shape=(int(grid.shape.y), int(grid.shape.x)),
        resolution=(float(grid.resolution.x), -float(grid.resolution.y)),
        bounds=(bounds.left, bounds.bottom, bounds.right, bounds.top),
    )


def _report_variable(name: str, array: Mapping[str, Any]) -> VariableReport:
    return VariableReport(
        name=name,
        dims=tuple(array["dims"]),
        shape=tuple(array["shape"]),
        dtype=array["packing"]["dtype"],
        units=str(array["attrs"].get("units", "")),
        shards=tuple(array["shards"]),
    )


def _by_date(
    sets: Iterable[UnitSet],
    present: Mapping[str, set[Index]],
    dates: Mapping[str, Sequence[str]],
) -> dict[str, Units]:
    by_date: dict[str, Units] = {}
    for units in sets:
        done = units.done(present)
        for axis, dim in enumerate(units.dims):
            if dim not in dates or not units.total:
                continue
            finished = Counter(index[axis] for index in done)
            per_step = units.total // units.counts[axis]
            for i in range(units.counts[axis]):
                date = dates[dim][i * units.shards[axis]]
                both = (by_date.get(date, Units(0, 0)), Units(finished[i], per_step))
                by_date[date] = _sum(both)
    return dict(sorted(by_date.items()))


def _sum(counts: Iterable[Units]) -> Units:
    counts = list(counts)
    return Units(sum(c.done for c in counts), sum(c.total for c in counts))


def _group_lines(group: GroupReport) -> list[str]:
    heading = [f"/{group.path}"]
    if group.grid is not None:
        (rows, columns), (dx, dy) = group.grid.shape, group.grid.resolution
        heading.append(f"{group.grid.crs}, {rows} x {columns} pixels of {dx:g} x {dy:g}")
    if group.period is not None:
        heading.append(" to ".join(group.period))
    heading.append(f"{group.units.done} of {group.units.total} units, {_size(group.nbytes)}")
    rows_of_text = [
        (v.name, f"({', '.join(v.dims)})", " x ".join(map(str, v.shape)), v.dtype, v.units)
        for v in group.variables
    ]
    late = [
        f"  {date}: {units.done} of {units.total} units"
        for date, units in group.units_by_date.items()
        if units.done < units.total
    ]
    return ["; ".join(heading), *_table(rows_of_text), *late]


def _failure_lines(failures: Sequence[Failure]) -> list[str]:
    lines = [f"  {failure.unit}: {failure.reason}" for failure in failures[:_SHOWN]]
    more = len(failures) - _SHOWN
    return [*lines, f"  and {more} more"] if more > 0 else lines


def _table(rows: Iterable[Sequence[Any]]) -> list[str]:
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in texts
    ]


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} GB"
