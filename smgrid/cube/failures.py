"""Units that could not be written: what failed, whether it may pass, and the ledger of the store.

``_smgrid/failures.jsonl`` has one line per unit that is missing because it failed; a store that is
complete has no such file. No credential and no signed URL gets into it.
"""

import errno
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from zarr.abc.store import Store

from smgrid.cube.guarding import Failed
from smgrid.cube.storage import (
    StorePath,
    delete_keys,
    explain_os_error,
    read_bytes,
    write_bytes,
)
from smgrid.cube.tiling import Index, UnitSet
from smgrid.errors import (
    ConfigError,
    MissingDependencyError,
    NoDataError,
    SchemaError,
    SmgridError,
)
from smgrid.sources.retry import redact

LEDGER_KEY = "_smgrid/failures.jsonl"

Verdict = Literal["retry", "record", "stop"]
"""Try the unit again later, give it up, or give up the whole run."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# The same input fails in the same way again.
_LASTING = (
    *(SchemaError, NoDataError, ConfigError, MissingDependencyError, PermissionError),
    *(TypeError, AttributeError, NameError, ImportError, NotImplementedError, AssertionError),
)
_SHOWN = 3
_LONGEST = 600


@dataclass(frozen=True)
class Failure:
    """One unit that is missing, and why."""

    unit: str
    """Group, variables, date and tile, for people."""
    group: str
    variables: tuple[str, ...]
    index: Index
    """Of the shard."""
    attempts: int
    """How often the unit was tried."""
    kind: str
    """Class of the exception."""
    reason: str
    asset: str
    """The file that could not be read, if it is known."""
    asset_attempts: int
    """How often the asset was tried the last time; 0 if unknown."""
    at: str
    """Module and line of an unexpected error."""
    time: str
    """Of the last attempt, UTC."""


def judge(outcome: Failed) -> Verdict:
    """Return what follows from a failure."""
    error = outcome.error
    code = error.errno if isinstance(error, OSError) else None
    if code in _FULL:
        return "stop"
    if outcome.in_store:
        vanished = isinstance(error, FileNotFoundError | NotADirectoryError)
        return "stop" if code in _FORBIDDEN or vanished else "retry"
    return "record" if isinstance(error, _LASTING) else "retry"


def reason_of(outcome: Failed, path: StorePath) -> str:
    """Return what to say about a failure, without signatures, in one line."""
    error = outcome.error
    if isinstance(error, OSError) and outcome.in_store:
        text = explain_os_error(error, path)
    else:
        named = isinstance(error, SmgridError)
        text = str(error) if named else f"{outcome.kind}: {error}"
    text = redact(" ".join(text.split()))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def describe_failure(
    units: UnitSet, index: Index, outcome: Failed, *, label: str, attempts: int, path: StorePath
) -> Failure:
    """Return the line of the ledger for a unit."""
    error = outcome.error
    return Failure(
        unit=label,
        group=units.group,
        variables=units.names,
        index=tuple(int(i) for i in index),
        attempts=attempts,
        kind=outcome.kind,
        reason=reason_of(outcome, path),
        asset=redact(str(getattr(error, "asset", ""))),
        asset_attempts=int(getattr(error, "attempts", 0)),
        at=outcome.at,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def read_ledger(store: Store) -> tuple[Failure, ...]:
    """Return the failures of a store; lines that cannot be read are left out."""
    content = read_bytes(store, LEDGER_KEY) or b""
    failures = []
    for line in content.splitlines():
        try:
            entry = json.loads(line)
            entry |= {name: tuple(entry[name]) for name in ("variables", "index")}
            failures.append(Failure(**entry))
        except (ValueError, TypeError, KeyError):
            continue  # it only tells what the missing shards tell as well
    return tuple(failures)


def write_ledger(store: Store, failures: Iterable[Failure]) -> None:
    """Replace the ledger of a store; without failures there is none."""
    lines = [f"{json.dumps(asdict(failure))}\n" for failure in failures]
    if lines:
        write_bytes(store, LEDGER_KEY, "".join(lines).encode())
    else:
        delete_keys(store, [LEDGER_KEY])


def still_missing(
    failures: Iterable[Failure], is_missing: Callable[[str, Index], bool]
) -> tuple[Failure, ...]:
    """Return the failures whose unit is not there yet, given by array path and shard index."""
    return tuple(
        f
        for f in failures
        if any(is_missing(f"{f.group}/{name}".lstrip("/"), f.index) for name in f.variables)
    )


def summarise(
    path: StorePath, failures: Sequence[Failure], *, written: int, total: int, not_tried: int = 0
) -> str:
    """Return in words how a run ended in which units failed."""
    shown = "; ".join(_in_short(failure) for failure in failures[:_SHOWN])
    more = f"; and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
    left = f", {not_tried} were not tried as all of these have wrong values" if not_tried else ""
    return (
        f"{path}: {len(failures)} of {total} units failed, {written} were written now{left}: "
        f"{shown}{more}. All of them are listed in {LEDGER_KEY} of the store; {_cure(failures)}"
    )


def _in_short(failure: Failure) -> str:
    tried = f" ({failure.attempts} attempts)" if failure.attempts > 1 else ""
    return f"{failure.unit}{tried}: {failure.reason.rstrip('.')}"


def _cure(failures: Iterable[Failure]) -> str:
    if any(failure.kind == "SchemaError" for failure in failures):
        return (
            "values that are wrong here may be wrong in other units as well, so write to a new "
            "path when the input is corrected"
        )
    return "write again to resume, which tries only what is missing"
