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
Rows = npt.NDArray[np.int64] | npt.NDArray[np.bool_]
"""Positions of rows, or a mask."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Pixels on dates, in the columns of a layout.

    Attributes
    ----------
    snapshot
        (n, snapshot columns) scaled, float32.
    series
        (m, series, steps) scaled windows, float32; each distinct one once or more.
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
        (n,) names; empty where there are none.
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
        rows = np.flatnonzero(which) if which.dtype == bool else which
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
        used = torch.zeros(len(self.series), dtype=torch.bool, device=self.series.device)
        used[self.series_index] = True
        if bool(used.all()):
            return self
        position = torch.cumsum(used, 0) - 1
        return replace(self, series=self.series[used], series_index=position[self.series_index])


_TENSORS = ("snapshot", "series", "series_index", "label", "weight")
_ALONG_ROWS = tuple(field.name for field in fields(Samples) if field.name != "series")


def make_samples(
    snapshot: Tensor,
    series: Tensor,
    series_index: Tensor,
    *,
    label: Tensor | None = None,
    weight: Tensor | None = None,
    time: Any = "NaT",
    longitude: Any = np.nan,
    latitude: Any = np.nan,
    lag: Any = np.nan,
    station: Any = "",
    network: Any = "",
) -> Samples:
    """Make a table; what is left out is unknown, and every sample weighs 1.

    Facts may be given as one value for all rows or as one per row.
    """
    n = len(snapshot)
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
        series_index=series_index.to(torch.int64),
        label=torch.full((n,), torch.nan) if label is None else label.to(torch.float32),
        weight=torch.ones(n) if weight is None else weight.to(torch.float32),
        **{name: np.broadcast_to(value, (n,)) for name, value in facts.items()},
    )


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
