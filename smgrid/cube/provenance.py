"""What the data of a store are computed from: said before any unit is written, kept by dates.

A manifest may have an entry ``made_from``, such as `map_manifest` gives: two digests and, for
people, what they are of. ``inputs_sha256`` is of the inputs exactly as they are, ``lineage_sha256``
of what stays the same when they grow with time. From then on a store holds nothing that was
computed from anything else without saying so:

- `write_cube` goes on from the same inputs alone;
- `extend_map` goes on from a later state of the same inputs. The manifest's own ``made_from`` is
  that of the newest dates, those of the dates before are in ``smgrid_history``, one entry for each
  state with its ``periods``. Where units of older dates were lost and computed again from another
  state, that is an entry with these dates in ``mended``.

Stores without the entry are gone on with by whoever has the same template.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from zarr.abc.store import Store

from smgrid.cube.extending import Times, lacking_steps, ranges_of
from smgrid.cube.finishing import HISTORY, OWN, TEMPLATE, seal, write_manifest
from smgrid.cube.record import StoreRecord, pending_units, read_manifest
from smgrid.cube.storage import list_keys
from smgrid.cube.template import differences
from smgrid.errors import TemplateMismatchError

MADE_FROM = "made_from"
INPUTS = "inputs_sha256"
LINEAGE = "lineage_sha256"
VERSIONS = "versions"
"""Of packages, in ``made_from``: told, but not compared."""
MENDED = "mended"
PERIODS = "periods"

Manifest = Mapping[str, Any]
Steps = npt.NDArray[np.bool_]
"""Which steps of a map."""
_SHOWN = 20


@dataclass(frozen=True)
class Span:
    """Dates of a map that were computed from the same."""

    steps: Steps
    made_from: Mapping[str, Any] | None
    """``None`` where it is not known."""


def made_from(manifest: Manifest | None) -> Mapping[str, Any] | None:
    """Return what a manifest, or an entry of a history, says; ``None`` if it does not."""
    found = (manifest or {}).get(MADE_FROM)
    return found if isinstance(found, Mapping) and INPUTS in found else None


def spans_of(manifest: Manifest, times: Times) -> list[Span]:
    """Return the spans of a map, oldest first; the last one is of the manifest's own entry."""
    index = pd.DatetimeIndex(times)
    rest = np.ones(index.size, bool)
    spans = []
    for entry in manifest.get(HISTORY, []):
        if MENDED in entry:
            continue
        steps = np.zeros(index.size, bool)
        # Earlier versions kept one period, that of all days so far.
        for period in entry.get(PERIODS) or [entry["period"]]:
            steps[index.slice_indexer(*period.split(" to "))] = True
        spans.append(Span(steps & rest, made_from(entry)))
        rest &= ~steps
    return [*spans, Span(rest, made_from(manifest))]


def periods_of(steps: Steps, times: Times) -> list[str]:
    """Return first and last time of every run of steps."""
    texts = text_of(times)
    return [f"{texts[start]} to {texts[stop - 1]}" for start, stop in ranges_of(steps)]


def mended_in(manifest: Manifest, times: Times) -> Steps:
    """Return of which steps some units were computed from another state than the others."""
    told = {time for entry in manifest.get(HISTORY, []) for time in entry.get(MENDED, ())}
    return np.array([time in told for time in text_of(times)], bool)


def text_of(times: Times) -> list[str]:
    """Return times as they stand in a history."""
    return [str(text) for text in np.datetime_as_string(times.astype("datetime64[s]"))]


def check_inputs(path: str, before: Manifest, provenance: Manifest | None) -> None:
    """Raise TemplateMismatchError if a store was made, or begun, from other inputs."""
    old, new = made_from(before), made_from(provenance)
    if old is not None and new is not None and old[INPUTS] != new[INPUTS]:
        raise TemplateMismatchError(
            f"{path} was made, or begun, from other inputs:\n{_shown(old, new)}\n"
            "write to a new path, or restore those inputs to resume it; dates that a later state "
            "of the same cube has more are added with extend_map"
        )


def check_lineage(path: str, before: Manifest, provenance: Manifest | None) -> None:
    """Raise TemplateMismatchError unless inputs are a later state of those of a map.

    What is known of a map is to be known of what is added, so one that says what it was made from
    is not gone on with from something unknown.
    """
    old, new = made_from(before), made_from(provenance)
    if old is None:
        return
    if new is None:
        raise TemplateMismatchError(
            f"{path} says what it was made from, but what is to be added does not; give "
            "manifest=map_manifest(...) of the same cube and ensemble, or write to a new path"
        )
    if old.get(LINEAGE) != new.get(LINEAGE):
        raise TemplateMismatchError(
            f"{path} was made from something else, and not from an earlier state of the same:\n"
            f"{_shown(old, new)}\n"
            "give the cube that it was made from, extended with update_cube, and the same "
            "ensemble and call; or map this cube to a new path"
        )


def _shown(old: Manifest, new: Manifest) -> str:
    untold = {INPUTS, LINEAGE, VERSIONS}
    both = [{key: value for key, value in one.items() if key not in untold} for one in (old, new)]
    return "\n".join(f"  {line}" for line in differences(*both)[:_SHOWN])


def claim_inputs(
    store: Store, record: StoreRecord, provenance: Manifest | None, groups: Mapping[str, xr.Dataset]
) -> Manifest | None:
    """Write down what a store is computed from, before any unit is.

    Parameters
    ----------
    store, record
        The store.
    provenance
        Manifest of the data.
    groups
        The data.

    Returns
    -------
    Mapping or None
        What is left to be written when the store is complete.

    Raises
    ------
    TemplateMismatchError
        See `check_inputs`.
    """
    new = made_from(provenance)
    if new is None or provenance is None:
        return provenance
    before = read_manifest(store)
    check_inputs(record.path, before, provenance)  # again: another process may have begun it
    if made_from(before) is None:
        after: Manifest = replaced(before, provenance)
    elif HISTORY in before and "time" in groups.get("", {}):
        times = groups[""]["time"].values
        missing = pending_units(record.sets, list_keys(store))
        after = with_mended(before, new, times, lacking_steps(missing, "time", times.size))
    else:
        return None
    if after != before:
        write_manifest(store, seal(after))
    return None


def replaced(before: Manifest, provenance: Manifest) -> dict[str, Any]:
    """Return a manifest with other provenance."""
    return dict(provenance) | {key: v for key, v in before.items() if key.startswith(OWN)}


def with_mended(
    manifest: Manifest, new: Mapping[str, Any], times: Times, lacking: Steps
) -> Manifest:
    """Return the manifest of a map some steps of which lack units that now come from `new`."""
    others = [span for span in spans_of(manifest, times) if not _same(span.made_from, new)]
    steps = lacking & np.any([span.steps for span in others], axis=0)
    if not steps.any():
        return manifest
    history: list[Mapping[str, Any]] = list(manifest.get(HISTORY, []))
    known = [one for one in history if MENDED in one and _same(made_from(one), new)]
    rest = [one for one in history if one not in known]
    named = {*text_of(times[steps]), *(time for one in known for time in one[MENDED])}
    return {**manifest, HISTORY: [*rest, {MENDED: sorted(named), MADE_FROM: new}]}


def _same(one: Manifest | None, other: Manifest | None) -> bool:
    """Whether two are of the same inputs, or nothing is known of both."""
    return (one or {}).get(INPUTS) == (other or {}).get(INPUTS)


def is_finished(manifest: Manifest, record: StoreRecord) -> bool:
    """Whether all of a store was complete once; while it grows, the manifest is of what it was."""
    return manifest.get(TEMPLATE) == record.digest


def steps_to_redo(
    manifest: Manifest,
    record: StoreRecord,
    provenance: Manifest | None,
    times: Times,
    lacking: Steps,
) -> Steps:
    """Return which steps of a map are computed again, though they may be there in part.

    Of a span that was interrupted and goes on from a later state of the inputs, steps that are
    whole are kept, so that each step comes from one state.
    """
    if is_finished(manifest, record) or _same(made_from(manifest), made_from(provenance)):
        return np.zeros(times.size, bool)
    return lacking & spans_of(manifest, times)[-1].steps


def continued(
    manifest: Manifest,
    record: StoreRecord,
    provenance: Manifest | None,
    *,
    times: Times,
    again: Steps,
    grows: bool,
) -> dict[str, Any]:
    """Return the manifest of a map that goes on.

    Parameters
    ----------
    manifest, record
        Of the map as it is.
    provenance
        Of what is added to it.
    times
        Steps of the map as it is.
    again
        Which of them are computed again, see `steps_to_redo`.
    grows
        Whether there are more steps.
    """
    old, new = made_from(manifest), made_from(provenance)
    finished = is_finished(manifest, record)
    result = dict(manifest)
    goes_on = grows or bool(again.any())
    kept = spans_of(manifest, times)[-1].steps & ~again
    ends = (goes_on and not _same(old, new)) or (grows and finished and old is None)
    if ends and kept.any():
        entry: dict[str, Any] = {"template": record.digest, PERIODS: periods_of(kept, times)}
        entry |= {} if old is None else {MADE_FROM: old}
        result[HISTORY] = [*manifest.get(HISTORY, []), entry]
    if provenance is not None and (goes_on or (TEMPLATE not in manifest and _same(old, new))):
        result = replaced(result, provenance)
    return result
