"""Events of a long write: counted here, shown by whoever passes a function."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smgrid.cube.tiling import PendingUnits, UnitSet


@dataclass(frozen=True)
class Progress:
    """Units of one group that are done."""

    done: int
    total: int
    group: str
    """Path of the group, "" for the root."""


ProgressFunction = Callable[[Progress], None]


class UnitCounter:
    """Count units as they are written and tell a function about it."""

    def __init__(
        self, sets: Sequence[UnitSet], pending: PendingUnits, tell: ProgressFunction | None
    ) -> None:
        self.pending = pending
        self.tell = tell
        self.written = 0
        self.total: Counter[str] = Counter()
        for units in sets:
            self.total[units.group] += units.total
        self.done = self.total.copy()
        self.done.subtract(units.group for units, _ in pending)

    def start(self) -> None:
        """Send an event for every group, with the units that were there already."""
        for group in self.total:
            self._send(group)

    def count(self, place: int) -> None:
        """Note that the pending unit at `place` was written."""
        group = self.pending[place][0].group
        self.written += 1
        self.done[group] += 1
        self._send(group)

    def _send(self, group: str) -> None:
        if self.tell is not None:
            self.tell(Progress(self.done[group], self.total[group], group))
