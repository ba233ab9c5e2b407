"""Go on with a cube: new acquisitions and days are added, provisional ones computed again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import xarray as xr
from zarr.abc.store import Store

from smgrid.catalog import Catalog
from smgrid.cube.build import load_cube
from smgrid.cube.extending import Extended, check_same, extend_group
from smgrid.cube.filling import ATTEMPTS, Plan
from smgrid.cube.journal import Journal, write_journal
from smgrid.cube.lock import writing
from smgrid.cube.opening import open_groups
from smgrid.cube.progress import ProgressFunction
from smgrid.cube.record import ROOT_KEY, TEMPLATE_KEY, StoreRecord, read_record
from smgrid.cube.storage import (
    StorePath,
    explaining,
    normalise_path,
    open_store,
    read_bytes,
)
from smgrid.cube.store import WriteReport, check_attempts, fill_store, resume_update
from smgrid.cube.template import StoreTemplate, make_template
from smgrid.cube.tiling import DEFAULT_SHARD
from smgrid.errors import ConfigError, StoreError
from smgrid.windows import Period

PROVISIONAL_DAYS = 92
"""ERA5T is replaced by ERA5 two to three months later (Hersbach et al. 2020, doi:10.1002/qj.3803);
gaps of NDVI are filled from composites that follow within 48 days."""

AnyCatalog = str | PathLike[str] | Sequence[str | PathLike[str]] | Catalog

_PATH, _PERIOD, _SCENES = "smgrid_catalog_path", "smgrid_period", "smgrid_scenes"
_CONVENTION = "smgrid_convention"


@dataclass(frozen=True)
class UpdateReport:
    """What one call of `update_cube` did."""

    path: str
    total: int
    """Units of the store now."""
    written: int
    """Units that are new or have changed; all others have the bytes that they had."""
    added: Mapping[str, tuple[str, ...]]
    """New acquisitions and dates by group."""
    late: Mapping[str, tuple[str, ...]]
    """Acquisitions that came too late, by group: they lie before the last one of the store, and
    are in no unit. Build a new store to have them."""
    withdrawn: Mapping[str, tuple[str, ...]]
    """Acquisitions of the store that the catalog does not offer any more, by group; they are kept.
    The provider may offer them under another time, which is then among the late ones."""


def update_cube(
    path: StorePath,
    *,
    until: Any,
    catalog: AnyCatalog | None = None,
    provisional_days: int = PROVISIONAL_DAYS,
    provisional_scene_days: int = 0,
    progress: ProgressFunction | None = None,
    attempts: int = ATTEMPTS,
) -> UpdateReport:
    """Extend a cube on disk to a later day, from the catalog that it was built with.

    Only new units are written, and the last shard of each series, which holds a year of dates.
    Values that are provisional are computed again and written where they differ. What is older has
    the bytes that it had; the first day never moves. Running it twice changes nothing.

    While it runs, and after it was interrupted, the store says that it is incomplete; running it
    again finishes it. Acquisitions are only ever added after the last one of the store, because
    anything else would renumber shards; those that come late are reported.

    Parameters
    ----------
    path
        Folder or URL of a cube that `write_cube` made from `load_cube`.
    until
        The last day (UTC, inclusive) of all inputs, not before that of the store.
    catalog
        As in `load_cube`; default: the one that the store names.
    provisional_days
        Values of series (weather, NDVI) on the last so many days of the store are computed again:
        providers replace them, and gaps are filled from what follows. At most all of the series.
    provisional_scene_days
        The same for acquisitions, whose slices may be published one after the other. Every day
        costs reading its scenes again.
    progress, attempts
        As in `write_cube`.

    Returns
    -------
    UpdateReport
        What was added, what changed and what came too late.

    Raises
    ------
    ConfigError
        ``until`` lies before the end of the store, or the store does not name its catalog.
    TemplateMismatchError
        The catalog now describes something else; the message says what differs.
    UnitsFailedError, StoreInUseError, StoreError
        As `write_cube`.
    """
    check_attempts(attempts)
    path = normalise_path(path)
    provisional = {"date": provisional_days, "time": provisional_scene_days}
    with explaining(path):
        store = open_store(path, "write")
        _require_cube(read_record(store, path))
        with writing(store, path) as lease:
            resume_update(store)
            extended = _begin(store, path, until, catalog=catalog, provisional=provisional)
            resume_update(store)
            done = fill_store(
                {name: group.ds for name, group in extended.items()},
                store,
                read_record(store, path),
                lease=lease,
                attempts=attempts,
                progress=progress,
            )
    return _report(done, extended)


def _report(done: WriteReport, extended: Mapping[str, Extended]) -> UpdateReport:
    return UpdateReport(
        path=done.path,
        total=done.total,
        written=done.written,
        added={name: group.added for name, group in extended.items() if group.added},
        late={name: group.late for name, group in extended.items() if group.late},
        withdrawn={name: group.withdrawn for name, group in extended.items() if group.withdrawn},
    )


def _begin(
    store: Store, path: str, until: Any, *, catalog: Any, provisional: Mapping[str, int]
) -> dict[str, Extended]:
    """Find out what the store becomes, and write it down."""
    record = read_record(store, path)
    stored = open_groups(store, record)
    fresh = _load_longer(stored, until=until, catalog=catalog, record=record)
    extended = _extend(stored, fresh, store=store, record=record, provisional=provisional)
    groups = {name: group.ds for name, group in extended.items()}
    template = make_template(groups, shard=DEFAULT_SHARD, like=record.template)
    _write_down(store, record, template, extended)
    return extended


def _require_cube(record: StoreRecord) -> None:
    if record.status == "created":
        msg = f"{record.path} was begun, but holds nothing yet; write the cube before updating it"
        raise StoreError(msg)
    if _PERIOD not in record.template["groups"].get("", {}).get("attrs", {}):
        msg = (
            f"{record.path} does not say which period it covers ({_PERIOD}), expected a cube of "
            "load_cube; a map is made anew from the updated cube"
        )
        raise StoreError(msg)


def _load_longer(
    stored: Mapping[str, xr.Dataset], *, until: Any, catalog: Any, record: StoreRecord
) -> dict[str, xr.Dataset]:
    """Return the groups of the same cube over a longer period."""
    attrs = stored[""].attrs
    period = Period.parse(attrs[_PERIOD])
    end = Period.parse(until).end
    if end < period.end:
        msg = (
            f"until is {end:%Y-%m-%d}, but {record.path} reaches to {period.end:%Y-%m-%d}; give "
            "this day or a later one"
        )
        raise ConfigError(msg)
    catalog = attrs.get(_PATH) if catalog is None else catalog
    if catalog is None:
        msg = (
            f"{record.path} does not say where its catalog is ({_PATH}); give it as catalog=, the "
            f"one called {attrs.get('smgrid_catalog', '?')!r}"
        )
        raise ConfigError(msg)
    if "base" not in stored or not {"y", "x"} <= set(stored["base"].dims):
        msg = f"{record.path} has no base grid, expected a cube of load_cube"
        raise StoreError(msg)
    scenes = attrs.get(_SCENES)
    longer = {} if scenes is None else {"scenes": (Period.parse(scenes).start, end)}
    cube = load_cube(
        stored["base"].odc.geobox,
        (period.start, end),
        catalog=catalog,
        convention=attrs.get(_CONVENTION),
        chunks=_tile(record),
        **longer,
    )
    return {node.path.strip("/"): node.to_dataset() for node in cube.subtree}


def _tile(record: StoreRecord) -> int:
    """Return the edge of a tile of the base grid."""
    shards = [units.shards[-1] for units in record.sets if units.group == "base"]
    return max(shards, default=DEFAULT_SHARD)


def _extend(
    stored: Mapping[str, xr.Dataset],
    fresh: Mapping[str, xr.Dataset],
    *,
    store: Store,
    record: StoreRecord,
    provisional: Mapping[str, int],
) -> dict[str, Extended]:
    wanted = make_template(fresh, shard=DEFAULT_SHARD, like=record.template).record()
    check_same(record.path, record.template, wanted)
    # Without damaged shards: they are not to be taken for what is stored.
    missing = Plan(store, record).missing
    return {
        name: extend_group(
            name,
            stored[name],
            fresh[name],
            missing=missing,
            provisional=provisional,
            begun={} if record.journal is None else record.journal.redo.get(name, {}),
        )
        for name in fresh
    }


def _write_down(
    store: Store,
    record: StoreRecord,
    template: StoreTemplate,
    extended: Mapping[str, Extended],
) -> None:
    """Write down what the store becomes, unless it stays as it is."""
    content = template.record()
    files: dict[str, bytes] = {}
    if content != record.template:
        made = template.files()
        root = made.pop(ROOT_KEY)
        made[TEMPLATE_KEY] = json.dumps(content, indent=2, allow_nan=False).encode()
        files = {key: new for key, new in made.items() if read_bytes(store, key) != new}
        files[ROOT_KEY] = root
    redo = {name: group.redo for name, group in extended.items() if group.redo}
    if files or redo:
        before = {"template": record.digest, "period": _period(record)}
        earlier = record.journal
        write_journal(
            store,
            Journal(redo=redo, before=before if earlier is None else earlier.before, files=files),
        )


def _period(record: StoreRecord) -> str:
    return str(record.template["groups"][""]["attrs"][_PERIOD])
