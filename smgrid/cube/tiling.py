"""How arrays are cut: inner chunks and shards of an array, and the units of work they make.

A unit is one shard index of all variables of a group that share dims and shards. A shard that is
present is done, so the units that are left are known from the keys of a store alone.
"""

import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from smgrid.errors import ConfigError

DEFAULT_SHARD = 512
"""Edge of a scene or map shard in pixels: 26 million fine pixels when made of 10 m scenes."""

_TILE_CHUNK = 256
_SERIES_TILE = 256
_SERIES_CHUNK = 64
_SERIES_STEPS = 46  # 8-day composites of a calendar year; also divides 368, a year of days
_SHARD_KEY = re.compile(r"(?:(?P<array>.+)/)c/(?P<index>\d+(?:/\d+)*)")

Index = tuple[int, ...]
Shape = tuple[int, ...]


def check_shard(shard: int) -> int:
    """Return `shard` if inner chunks fit into it, otherwise raise ConfigError."""
    if shard < 1 or (shard > _TILE_CHUNK and shard % _TILE_CHUNK):
        msg = f"shard is {shard}, expected at most {_TILE_CHUNK} pixels or a multiple of it"
        raise ConfigError(msg)
    return shard


def cut_array(
    dims: Sequence[Hashable], shape: Sequence[int], *, shard: int, year_steps: int
) -> tuple[Shape, Shape]:
    """Return the inner chunks and the shards of an array.

    Parameters
    ----------
    dims, shape
        Of the array.
    shard
        Edge of a shard of scenes, maps and static variables in pixels.
    year_steps
        Shard of a series along ``date``, see `steps_of_a_year`.

    Notes
    -----
    Scenes are one acquisition of a tile, series one year of a tile with inner chunks that are
    contiguous in time. Arrays smaller than that get shards of their own size, which always is a
    multiple of the inner chunk.
    """
    gridded = {"y", "x"} <= set(dims)
    wanted: dict[Hashable, tuple[int, int]] = {}
    if gridded and "date" in dims:
        tile = (_SERIES_CHUNK, _SERIES_TILE)
        wanted = {"date": (_SERIES_STEPS, year_steps), "y": tile, "x": tile}
    elif gridded:
        tile = (min(_TILE_CHUNK, shard), shard)
        wanted = {"y": tile, "x": tile}
        wanted |= {dim: (1, 1) for dim in dims if dim == "time"}
    cut = [_fit(n, *wanted.get(dim, (n, n))) for dim, n in zip(dims, shape, strict=True)]
    return tuple(chunk for chunk, _ in cut), tuple(edge for _, edge in cut)


def _fit(size: int, chunk: int, shard: int) -> tuple[int, int]:
    chunk = max(1, min(chunk, size))
    return chunk, max(chunk, min(shard, math.ceil(size / chunk) * chunk))


def steps_of_a_year(dates: npt.NDArray[Any] | None) -> int:
    """Return the steps of a calendar year on a ``date`` axis, as a multiple of the inner chunk."""
    if dates is None or dates.size < 2:
        return _SERIES_STEPS
    days = float(np.median(np.diff(dates)) / np.timedelta64(1, "D"))
    return max(1, math.ceil(366 / days / _SERIES_STEPS)) * _SERIES_STEPS


@dataclass(frozen=True)
class UnitSet:
    """Units of one group: its variables with the same dims, shape and shards."""

    group: str
    """Path of the group, "" for the root."""
    names: tuple[str, ...]
    """Variables that one unit writes."""
    dims: tuple[str, ...]
    shape: Shape
    shards: Shape

    @property
    def counts(self) -> Shape:
        """Shards along each dim."""
        return tuple(math.ceil(n / s) for n, s in zip(self.shape, self.shards, strict=True))

    @property
    def total(self) -> int:
        """Number of units."""
        return math.prod(self.counts)

    def indices(self) -> Iterable[Index]:
        """Every shard index, in the order of the store."""
        return np.ndindex(*self.counts)

    def array_path(self, name: str) -> str:
        """Path of the array of a variable."""
        return f"{self.group}/{name}" if self.group else name

    def done(self, present: Mapping[str, set[Index]]) -> set[Index]:
        """Shard indices that every variable has, given those present by array path."""
        found = [present.get(self.array_path(name), set()) for name in self.names]
        return set.intersection(*found)

    def label(self, index: Index, steps: Mapping[str, Sequence[str]]) -> str:
        """Say which unit this is: group, variables, date and tile; `steps` are dates by dim."""
        parts = [f"/{self.group} ({', '.join(self.names)})"]
        for dim, i, edge in zip(self.dims, index, self.shards, strict=True):
            if dim in steps:
                parts.append(f"{dim} {steps[dim][i * edge]}")
        tile = [i for dim, i in zip(self.dims, index, strict=True) if dim in {"y", "x"}]
        parts += [f"tile ({', '.join(map(str, tile))})"] if tile else []
        return ", ".join(parts)


PendingUnits = Sequence[tuple[UnitSet, Index]]
"""Units that are not done yet."""


def dates_of(values: npt.ArrayLike) -> list[str]:
    """Return dates as text, without a time of day if none has one."""
    seconds = np.asarray(values, "datetime64[s]")
    days = seconds.astype("datetime64[D]")
    texts = np.datetime_as_string(days if (days == seconds).all() else seconds)
    return [str(text) for text in texts]


def unit_sets(groups: Mapping[str, Any]) -> tuple[UnitSet, ...]:
    """Return the unit sets of a store, from the ``groups`` of its template record."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for group, content in groups.items():
        for name, array in content["arrays"].items():
            key = (group, tuple(array["dims"]), tuple(array["shape"]), tuple(array["shards"]))
            found.setdefault(key, []).append(name)
    return tuple(
        UnitSet(group=group, names=tuple(names), dims=dims, shape=shape, shards=shards)
        for (group, dims, shape, shards), names in found.items()
    )


def present_shards(keys: Iterable[str]) -> dict[str, set[Index]]:
    """Return the shard indices by array path among the keys of a store."""
    present: dict[str, set[Index]] = {}
    for key in keys:
        if match := _SHARD_KEY.fullmatch(key):
            index = tuple(int(part) for part in match["index"].split("/"))
            present.setdefault(match["array"], set()).add(index)
    return present
