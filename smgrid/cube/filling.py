"""Fill a store: write every unit that is missing, in rounds, and keep account of it.

A unit that fails goes to the end of the queue. What still fails after the last round is in the
ledger; everything else has been written by then.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

import xarray as xr
from zarr.abc.store import Store

from smgrid.cube.checksums import next_part, part_keys, read_sums, replace_sums, write_part
from smgrid.cube.coords import TIME_DIMS
from smgrid.cube.dispatch import LostSchedulerError
from smgrid.cube.failures import (
    Failure,
    describe_failure,
    judge,
    read_ledger,
    reason_of,
    still_missing,
    write_ledger,
)
from smgrid.cube.guarding import Failed
from smgrid.cube.lock import Lease
from smgrid.cube.progress import UnitCounter
from smgrid.cube.record import StoreRecord, pending_units
from smgrid.cube.shards import read_states, shard_key
from smgrid.cube.storage import delete_keys, list_sizes, make_durable
from smgrid.cube.tiling import Index, PendingUnits, UnitSet, dates_of, present_shards
from smgrid.cube.writing import Outcome, Written, build_flags, compute_flags
from smgrid.errors import SchemaError, StoreError, StoreInUseError
from smgrid.sources.retry import retry_pauses

ATTEMPTS = 3

_PAUSES_S = (2.0, 8.0)  # before the second and later rounds, varied by `retry_pauses`
_FLUSH_UNITS = 512
_FLUSH_S = 30.0
_HOPELESS = 24  # units with wrong values, when none of their kind was ever written
_HOPELESS_STEPS = 8  # in time that these are of, or all there are: one bad scene has many tiles
_LOST = "KilledWorker"  # what a cluster says of a task whose workers have died
_STORE_FAILURES = 3  # in a row: then the store is out of reach, not a unit


class Plan:
    """What a store lacks, found before anything is written."""

    def __init__(self, store: Store, record: StoreRecord) -> None:
        self.record = record
        sizes = list_sizes(store)
        self.keys = set(sizes)
        recorded = read_sums(store, self.keys)
        # Not of what is gone, or of the empty file that a power cut leaves of one that was not
        # durable: it is written anew, and must not count as done before that is.
        self.sums = {key: recorded[key] for key in recorded if sizes.get(key)}
        self._drop_damaged(store)
        if recorded.keys() - self.sums.keys():
            replace_sums(store, self.sums, self.keys)
            self.keys.difference_update(part_keys(self.keys))
        self.missing = pending_units(record.sets, self.keys)
        self.redone = _redone_units(record, self.missing)

    @property
    def pending(self) -> PendingUnits:
        """Units to compute."""
        return [*self.missing, *self.redone]

    def _drop_damaged(self, store: Store) -> None:
        """Read the shards whose sums are not known, and remove those that a crash left damaged."""
        expected = {units.array_path(n) for units in self.record.sets for n in units.names}
        shards = [
            (array, index)
            for array, indices in present_shards(self.keys).items()
            if array in expected
            for index in indices
            if shard_key(array, index) not in self.sums
        ]
        states = read_states(self.record.path, self.record.digest, shards)
        damaged = [key for key, state in states.items() if state.state != "readable"]
        self.sums |= {key: states[key].sha256 for key in states.keys() - set(damaged)}
        delete_keys(store, damaged)
        self.keys.difference_update(damaged)


def _redone_units(record: StoreRecord, missing: PendingUnits) -> PendingUnits:
    journal = record.journal
    if journal is None:
        return []
    lacking = set(missing)
    return [
        (units, index)
        for units in record.sets
        for index in units.indices()
        if journal.is_redone(units, index) and (units, index) not in lacking
    ]


def fill(
    groups: Mapping[str, xr.Dataset],
    store: Store,
    plan: Plan,
    *,
    lease: Lease,
    attempts: int,
    counter: UnitCounter,
) -> tuple[int, tuple[Failure, ...], int]:
    """Write the pending units of a plan.

    Returns
    -------
    int
        Units that were written, without those that were there and stayed the same.
    tuple of Failure
        Units that failed in the end.
    int
        Units that were not tried: if many of several dates have values that the schema excludes,
        and none of their group and variables was ever written, the rest is not read, as a catalog
        that names a wrong unit would make all of it fail.

    Raises
    ------
    StoreError
        If nothing more can be written: the disk is full, the store is out of reach or another
        process has taken over. What is there is kept.
    """
    account = _Account(groups, store, plan, lease, counter)
    waiting = list(range(len(plan.pending)))
    try:
        for attempt in range(1, attempts + 1):
            waiting = account.run(waiting, attempt)
            if not waiting or attempt == attempts:
                break
            account.flush()
            time.sleep(_pause(attempt))
    except _HopelessError:
        pass
    except BaseException:
        with suppress(OSError, StoreError):  # the first error says more
            account.flush()
        raise
    account.flush()
    return account.changed, account.failures, account.not_tried


class _HopelessError(Exception):
    """The values are wrong everywhere, so reading the rest is in vain."""


def _pause(attempt: int) -> float:
    pauses = retry_pauses(_PAUSES_S)
    return pauses[min(attempt, len(pauses)) - 1] if pauses else 0.0


class _Account:
    """Counts units, judges failures, and keeps sums and ledger in the store."""

    def __init__(
        self,
        groups: Mapping[str, xr.Dataset],
        store: Store,
        plan: Plan,
        lease: Lease,
        counter: UnitCounter,
    ) -> None:
        self._groups = groups
        self._store = store
        self._plan = plan
        self._pending = plan.pending
        self._replace = frozenset(plan.redone)
        missing = Counter(units for units, _ in plan.missing)
        # Steps of the units that have wrong values, of the sets of which nothing was ever written.
        self._wrong: dict[UnitSet, list[int]] = {
            units: [] for units, count in missing.items() if count == units.total
        }
        self._lease = lease
        self._counter = counter
        self._failed: dict[int, Failure] = {}
        self._earlier = read_ledger(store)
        self._ledger = self._earlier
        self._dates: dict[str, dict[str, list[str]]] = {}
        self._sums: dict[str, str] = {}
        self._part = next_part(plan.keys)
        self._flushed = time.monotonic()
        self._store_failures = 0
        self.changed = 0

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Of units that were tried and are missing, in the order of the store."""
        return tuple(self._failed[place] for place in sorted(self._failed))

    @property
    def not_tried(self) -> int:
        """Units that were neither written nor failed."""
        return len(self._pending) - self._counter.written - len(self._failed)

    def run(self, waiting: Sequence[int], attempt: int) -> list[int]:
        """Try the pending units at these places; return those to be tried again."""
        again: list[int] = []

        def on_done(position: int, outcome: Outcome) -> None:
            self._lease.check()
            place = waiting[position]
            if isinstance(outcome, Failed):
                if self._note_failure(place, outcome, attempt) == "retry":
                    again.append(place)
            else:
                self._note_written(place, outcome)
            if len(self._sums) >= _FLUSH_UNITS or time.monotonic() - self._flushed > _FLUSH_S:
                self.flush()

        record = self._plan.record
        # One that has taken its worker along may do so again: then it shall take no other unit.
        lost = any(f.kind == _LOST for f in self._failed.values())
        flags = build_flags(
            self._groups,
            [self._pending[place] for place in waiting],
            path=record.path,
            digest=record.digest,
            claim=self._lease.claim,
            replace=self._replace,
        )
        try:
            compute_flags(flags, on_done, pace="careful" if lost else "full")
        except LostSchedulerError as cause:
            raise StoreError(
                f"{record.path}: {cause}, {self._counter.written} of {len(self._pending)} pending "
                "units were written; run again to resume"
            ) from cause
        return sorted(again)

    def _note_written(self, place: int, outcome: Written) -> None:
        units, index = self._pending[place]
        self.changed += outcome.changed
        for name, digest in zip(units.names, outcome.sha256, strict=True):
            self._sums[shard_key(units.array_path(name), index)] = digest
        self._failed.pop(place, None)
        self._store_failures = 0
        self._wrong.pop(units, None)
        self._counter.count(place)

    def _note_failure(self, place: int, outcome: Failed, attempt: int) -> str:
        if isinstance(outcome.error, StoreInUseError):
            self._lease.confirm()  # look here as well: the next sign of life may not be due yet
        units, index = self._pending[place]
        path = self._plan.record.path
        label = self._label(place)
        verdict = judge(outcome)
        before = self._failed.get(place)
        if outcome.kind == _LOST and before is not None and before.kind == _LOST:
            verdict = "record"  # it had its workers to itself this time
        self._failed[place] = describe_failure(
            units, index, outcome, label=label, attempts=attempt, path=path
        )
        self._store_failures += outcome.in_store
        if verdict == "stop" or self._store_failures >= _STORE_FAILURES:
            written = self._counter.written
            reason = reason_of(outcome, path).rstrip(".")
            msg = (
                f"{label}: {reason}. {written} of {len(self._pending)} pending units were "
                "written; write again to resume"
            )
            kind = type(outcome.error) if isinstance(outcome.error, StoreError) else StoreError
            raise kind(msg) from outcome.error
        if isinstance(outcome.error, SchemaError) and units in self._wrong:
            self._give_up_if_all_are_wrong(units, index)
        return verdict

    def _give_up_if_all_are_wrong(self, units: UnitSet, index: Index) -> None:
        in_time = units.dims[:1] in {(dim,) for dim in TIME_DIMS}
        wrong = self._wrong[units]
        wrong.append(index[0] if in_time else 0)
        steps = min(_HOPELESS_STEPS, units.counts[0] if in_time else 1)
        if len(wrong) >= _HOPELESS and len(set(wrong)) >= steps:
            raise _HopelessError

    def _label(self, place: int) -> str:
        units, index = self._pending[place]
        if units.group not in self._dates:
            coords = self._groups[units.group].coords
            dates = {dim: dates_of(coords[dim].values) for dim in TIME_DIMS if dim in coords}
            self._dates[units.group] = dates
        return units.label(index, self._dates[units.group])

    def flush(self) -> None:
        """Write what is known so far, so that it survives this process."""
        self._flushed = time.monotonic()
        # Taken first: if they cannot be made durable, a second try might wrongly say that they are.
        sums, self._sums = self._sums, {}
        if sums:
            make_durable(self._store, sums)
            self._plan.keys.add(write_part(self._store, self._part, sums))
            self._plan.keys.update(sums)
            self._plan.sums |= sums
            self._part += 1
        tried = {(f.group, f.variables, f.index) for f in self.failures}
        others = [f for f in self._earlier if (f.group, f.variables, f.index) not in tried]
        ledger = (*still_missing(others, self._is_missing), *self.failures)
        if ledger != self._ledger:
            write_ledger(self._store, ledger)
            self._ledger = ledger

    def _is_missing(self, array: str, index: Index) -> bool:
        return shard_key(array, index) not in self._plan.keys
