"""Samples as a value: rows of scaled inputs with their labels, and where and when they were taken.

Many pixels share the one-year series of a coarser cell, so a table holds every series once and each
row points to it. Tensors feed networks; the facts beside them decide on splits and weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smgrid.errors import LayoutError, NoDataError

FloatArray = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64] | npt.NDArray[np.bool_] | Sequence[int] | Sequence[bool]
"""Positions of rows, or a mask."""

JOINED = " + "
"""Between the names of the stations, or of their networks, that one pixel holds."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Pixels on dates, in the columns of a layout.

    Attributes
    ----------
    snapshot
        (n, snapshot columns) scaled, float32.
    series
        (m, series, steps) scaled windows, float32; each distinct one once or more. A layout without
        series has one row of nothing, (1, 0, steps), to which all samples point.
    series_index
        (n,) row of ``series`` that belongs to each sample, int64.
    label
        (n,) soil moisture in m3 m-3, float32; NaN where it is unknown, as for the samples that
        domain adaptation looks at without a label.
    weight
        (n,) weight in the loss, float32.
    time
        (n,) start of the acquisition, UTC, datetime64[ns].
    longitude, latitude
        (n,) pixel centre, degrees (WGS 84), float64.
    lag
        (n,) time of the label minus that of the acquisition, hours, float32; NaN where the label
        is a mean of the acquisition's own UTC day, or unknown.
    station, network
        (n,) names; empty where there are none. Those of several stations in one pixel are joined by
        `JOINED`, each network in the place of its station, or named once if all are the same.
    """

    snapshot: Tensor
    series: Tensor
    series_index: Tensor
    label: Tensor
    weight: Tensor
    time: npt.NDArray[np.datetime64]
    longitude: FloatArray
    latitude: FloatArray
    lag: npt.NDArray[np.float32]
    station: npt.NDArray[np.str_]
    network: npt.NDArray[np.str_]

    def __post_init__(self) -> None:
        n = len(self.snapshot)
        wrong = [name for name in _ALONG_ROWS if len(getattr(self, name)) != n]
        if wrong or self.snapshot.ndim != 2 or self.series.ndim != 3:
            raise LayoutError(
                f"a table of samples needs snapshot (n, columns), series (m, series, steps) and n "
                f"values of everything else; got {tuple(self.snapshot.shape)}, "
                f"{tuple(self.series.shape)} and other lengths of {', '.join(wrong) or 'none'}"
            )

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.snapshot)

    @property
    def features(self) -> Tensor:
        """(n, columns) whole vectors in the layout's order, made anew at every call."""
        runs = self.series.flatten(1)[self.series_index]
        return torch.cat([self.snapshot, runs], dim=1)

    def take(self, which: Rows) -> "Samples":
        """Return the samples at these positions, or where true; the series are shared."""
        given = np.ascontiguousarray(which, dtype=None if len(which) else np.int64)
        rows = np.flatnonzero(given) if given.dtype == bool else given
        index = torch.from_numpy(rows)
        values: dict[str, Any] = {name: getattr(self, name) for name in _ALONG_ROWS}
        taken = {n: v[index if isinstance(v, Tensor) else rows] for n, v in values.items()}
        return replace(self, **taken)

    def split(self, size: int) -> Iterator["Samples"]:
        """Cut the table into parts of so many rows, in order; the last one may be smaller."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))

    def to(self, device: torch.device | str) -> "Samples":
        """Return the samples with their tensors on a device."""
        values: dict[str, Any] = {name: getattr(self, name).to(device) for name in _TENSORS}
        return replace(self, **values)

    def compact(self) -> "Samples":
        """Return the same samples without series that none of them uses."""
        used, index = torch.unique(self.series_index, return_inverse=True)
        if len(used) == len(self.series):
            return self
        return replace(self, series=self.series[used], series_index=index)


_STEPS = 46  # of a layout that does not say otherwise
_TENSORS = ("snapshot", "series", "series_index", "label", "weight")
_ALONG_ROWS = tuple(field.name for field in fields(Samples) if field.name != "series")


def make_samples(
    snapshot: Tensor,
    series: Tensor | None = None,
    series_index: Tensor | None = None,
    *,
    label: Any = None,
    weight: Any = None,
    time: Any = "NaT",
    longitude: Any = np.nan,
    latitude: Any = np.nan,
    lag: Any = np.nan,
    station: Any = "",
    network: Any = "",
) -> Samples:
    """Make a table; what is left out is unknown, and every sample weighs 1.

    Labels, weights and facts may be given as one value for all rows or as one per row, in arrays or
    lists. Series are left out where the layout has none.

    Raises
    ------
    LayoutError
        Something has another length, or an index points to no series.
    """
    n = len(snapshot)
    if series is None or not series.shape[1]:
        steps = _STEPS if series is None else series.shape[2]
        series, series_index = snapshot.new_zeros(1, 0, steps), snapshot.new_zeros(n)
    elif series_index is None:
        raise LayoutError("there are series, but no series_index that says which sample has which")
    facts = {
        "time": np.asarray(time, "M8[ns]"),
        "longitude": np.asarray(longitude, np.float64),
        "latitude": np.asarray(latitude, np.float64),
        "lag": np.asarray(lag, np.float32),
        "station": np.asarray(station, np.str_),
        "network": np.asarray(network, np.str_),
    }
    return Samples(
        snapshot=snapshot.to(torch.float32),
        series=series.to(torch.float32),
        series_index=_check_index(series_index.to(torch.int64), len(series)),
        label=_to_tensor("label", torch.nan if label is None else label, n),
        weight=_to_tensor("weight", 1.0 if weight is None else weight, n),
        **{name: _spread(name, value, n) for name, value in facts.items()},
    )


def _check_index(index: Tensor, count: int) -> Tensor:
    if len(index):
        low, high = (int(bound) for bound in torch.aminmax(index))
        if low < 0 or high >= count:
            raise LayoutError(
                f"series_index runs from {low} to {high}, expected rows of series, 0 to {count - 1}"
            )
    return index


def _to_tensor(name: str, values: Any, n: int) -> Tensor:
    if isinstance(values, Tensor) and values.ndim:
        return values.to(torch.float32)
    # A copy, because tensors cannot be of read-only memory.
    return torch.from_numpy(np.array(_spread(name, np.asarray(values, np.float32), n)))


def _spread(name: str, values: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    """Return one value per row."""
    if values.shape not in ((), (n,)):
        raise LayoutError(
            f"{name} has the shape {values.shape}, expected one value or one for each of {n} rows"
        )
    return np.broadcast_to(values, (n,))


def join_samples(parts: Sequence[Samples]) -> Samples:
    """Return the rows of several tables of one layout, one table after the other.

    Raises
    ------
    NoDataError
        There is no table.
    LayoutError
        They have different columns.
    """
    if not parts:
        raise NoDataError("there is no table of samples to join; give at least one")
    if len(parts) == 1:
        return parts[0]
    shapes = {(part.snapshot.shape[1], *part.series.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise LayoutError(
            "tables of samples have different numbers of snapshot columns, series and steps: "
            f"{', '.join(map(str, sorted(shapes)))}; join samples of one layout only"
        )
    before = np.cumsum([0, *(len(part.series) for part in parts[:-1])])
    joined: dict[str, Any] = {
        name: _concatenate([getattr(part, name) for part in parts])
        for name in ("series", *_ALONG_ROWS)
        if name != "series_index"
    }
    moved = [part.series_index + int(k) for part, k in zip(parts, before, strict=True)]
    return Samples(**joined, series_index=torch.cat(moved))


def _concatenate(values: list[Any]) -> Any:
    return torch.cat(values) if isinstance(values[0], Tensor) else np.concatenate(values)
