"""Tables of samples on disk: Zarr stores that any tool can read, written whole or not at all.

A store has the dimensions ``sample``, ``column``, ``series_row``, ``variable`` and ``step``; the
arrays are those of `Samples`. Its attributes hold the layout, without which the columns mean
nothing, and the SHA-256 of every array: a chunk that was lost would otherwise be read as missing
values.
"""

import hashlib
import shutil
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore

from smgrid import __version__
from smgrid.cube.encoding import CONVENTIONS
from smgrid.cube.storage import (
    StorePath,
    delete_keys,
    list_keys,
    list_top,
    make_durable,
    normalise_path,
    open_store,
)
from smgrid.errors import IncompleteStoreError, LayoutError, NoDataError, StoreError
from smgrid.features.layout import FeatureLayout
from smgrid.training.table import Samples, join_samples, make_samples
from smgrid.training.tablearrays import (
    ARRAYS,
    CHUNKS,
    create_array,
    create_names,
    to_arrays,
    to_bytes,
)

SAMPLES_FORMAT = 1

_FORMAT, _STATUS, _SUMS = "smgrid_samples", "smgrid_status", "smgrid_sha256"
_LAYOUT, _DIGEST = "smgrid_layout", "smgrid_layout_digest"
_NO_TABLE = "is no table of samples; expected a store that write_samples has written"
_DAMAGED = "Copy the store again, or write it anew"


def write_samples(
    samples: Samples | Iterable[Samples], path: StorePath, *, layout: FeatureLayout
) -> int:
    """Write a table of samples, or a stream of them that need not fit in memory.

    Parameters
    ----------
    samples
        One table, stored as it is; or batches, of which about 65 536 rows are held in memory at a
        time. Series that are equal among these are stored once, and those that no row uses are
        left out.
    path
        Folder, or URL of an object store, that is empty or does not exist. A folder appears
        complete or not at all. An object store counts as incomplete until the last object, and
        is emptied if writing fails; only one process may write there.
    layout
        The layout of the columns.

    Returns
    -------
    int
        Number of samples written.

    Raises
    ------
    NoDataError
        There is no sample.
    LayoutError
        A batch does not have the layout's columns, or names a series that it does not hold.
    StoreError
        The path is taken or cannot be written.
    """
    place = normalise_path(path)
    groups: Iterable[Samples]
    if isinstance(samples, Samples):
        groups = [check_fit(samples, layout)]
    else:
        groups = _grouped(samples, layout)
    with _new_store(place) as store:
        return _write(store, groups, layout, place)


def open_samples(path: StorePath, *, layout: FeatureLayout | None = None) -> Samples:
    """Read a table that `write_samples` wrote into memory, bit by bit what was written.

    Parameters
    ----------
    path
        Folder or URL of the store. A table that does not fit in memory can be read in parts with
        ``xarray.open_zarr``.
    layout
        The layout that the caller needs; see `stored_layout` for what the table has.

    Raises
    ------
    StoreError
        There is no table of samples, it is incomplete (`IncompleteStoreError`), of a newer format,
        or damaged: a chunk is lost or was changed.
    LayoutError
        The table has another layout.
    """
    place = normalise_path(path)
    root = _open_table(place)
    stored = _read_layout(root, place)
    if layout is not None and layout.digest != stored.digest:
        raise LayoutError(
            f"{place} holds samples of the layout {stored.name!r} ({stored.digest[:12]}), not of "
            f"{layout.name!r} ({layout.digest[:12]}). Use the layout of the table, or make the "
            "samples anew"
        )
    values = {name: _read_array(root, name, place) for name in ARRAYS}
    facts = {name: values[name] for name in ("longitude", "latitude", "lag", "station", "network")}
    table = make_samples(
        torch.from_numpy(values["snapshot"]),
        torch.from_numpy(values["series"]),
        torch.from_numpy(values["series_index"]),
        label=torch.from_numpy(values["label"]),
        weight=torch.from_numpy(values["weight"]),
        time=values["time"].view("M8[ns]"),
        **facts,
    )
    return check_fit(table, stored)


def stored_layout(path: StorePath) -> FeatureLayout:
    """Return the layout of a table of samples without reading the samples.

    Raises
    ------
    StoreError
        As `open_samples`, if the metadata tell.
    """
    place = normalise_path(path)
    return _read_layout(_open_table(place), place)


def share_series(samples: Samples) -> Samples:
    """Return the same samples with every distinct series held once, compared bit by bit."""
    if not samples.series.shape[1]:
        return samples
    rows = samples.series.flatten(1).contiguous().numpy()
    keys = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
    _, first, position = np.unique(keys, return_index=True, return_inverse=True)
    return replace(
        samples,
        series=samples.series[torch.from_numpy(first)],
        series_index=torch.from_numpy(position)[samples.series_index],
    )


def check_fit(samples: Samples, layout: FeatureLayout) -> Samples:
    """Return the samples if they have the columns of the layout, else raise a LayoutError."""
    found = (samples.snapshot.shape[1], *samples.series.shape[1:])
    expected = (len(layout.snapshot), len(layout.series), layout.steps)
    if found != expected:
        raise LayoutError(
            f"the layout {layout.name!r} has {expected[0]} snapshot columns and {expected[1]} "
            f"series of {expected[2]} steps, the samples have {found[0]}, {found[1]} and "
            f"{found[2]}. Give the layout that the samples were made with"
        )
    outside = (samples.series_index < 0) | (samples.series_index >= len(samples.series))
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise LayoutError(
            f"sample {row} points to series {int(samples.series_index[row])}, but there are "
            f"{len(samples.series)}, counted from 0. Make the samples anew"
        )
    return samples


def _grouped(batches: Iterable[Samples], layout: FeatureLayout) -> Iterator[Samples]:
    """Join batches until they fill a chunk."""
    held: list[Samples] = []
    rows = 0
    for batch in batches:
        held.append(check_fit(batch, layout).compact())
        rows += len(batch)
        if rows >= CHUNKS["sample"]:
            yield share_series(join_samples(held))
            held, rows = [], 0
    if rows:
        yield share_series(join_samples(held))


@contextmanager
def _new_store(place: str) -> Iterator[Store]:
    """Yield an empty store that is in its place when the block ends, and gone if it fails."""
    if "://" in place:
        store = open_store(place, "write")
        if list_top(store):
            raise StoreError(f"{place} is not empty; choose another place")
        try:
            yield store
        except BaseException:
            delete_keys(store, list_keys(store))
            raise
        return
    path = Path(place)
    if path.exists() and not (path.is_dir() and next(path.iterdir(), None) is None):
        raise StoreError(f"{path} exists already and is not empty; choose another folder")
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex}.partial"
    with _explaining(place):
        partial.mkdir(parents=True)
    try:
        local = LocalStore(partial)
        yield local
        with _explaining(place):
            make_durable(local, list_keys(local))
            if path.exists():
                path.rmdir()
            partial.rename(path)
    except BaseException:
        shutil.rmtree(partial)
        raise


@contextmanager
def _explaining(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{place} could not be written ({error.strerror or error}); nothing of it is kept. "
            "Free space or check the permissions, then write it again"
        ) from error


def _write(store: Store, groups: Iterable[Samples], layout: FeatureLayout, place: str) -> int:
    with _explaining(place):
        root = zarr.create_group(store, attributes={_FORMAT: SAMPLES_FORMAT, _STATUS: "incomplete"})
        arrays = {name: create_array(root, name, layout) for name in ARRAYS}
    sums = {name: hashlib.sha256() for name in ARRAYS}
    for group in groups:
        with _explaining(place):
            values = to_arrays(group, n_series=arrays["series"].shape[0])
            for name, array in arrays.items():
                array.append(values[name])
                sums[name].update(to_bytes(values[name]))
    rows: int = arrays["label"].shape[0]
    if not rows:
        raise NoDataError(f"there is no sample to write to {place}; check what selects them")
    with _explaining(place):
        _finish(root, layout, {name: each.hexdigest() for name, each in sums.items()})
    return rows


def _finish(root: zarr.Group, layout: FeatureLayout, sums: Mapping[str, str]) -> None:
    create_names(root, layout)
    root.attrs.update(
        {
            "Conventions": CONVENTIONS,
            "title": f"Samples in the columns of the layout {layout.name}",
            "coordinates": "time longitude latitude station network",
            "smgrid_version": __version__,
            _LAYOUT: layout.to_dict(),
            _DIGEST: layout.digest,
            _SUMS: dict(sums),
            _STATUS: "complete",
        }
    )
    with warnings.catch_warnings():
        # zarr says that other libraries need not read consolidated metadata; they may skip it.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(root.store)


def _open_table(place: str) -> zarr.Group:
    store = open_store(place)
    try:
        root = zarr.open_group(store, mode="r", zarr_format=3)
    except FileNotFoundError as error:
        raise StoreError(f"{place} {_NO_TABLE}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{place}: zarr.json is damaged ({error}). {_DAMAGED}") from error
    version = root.attrs.get(_FORMAT)
    if not isinstance(version, int):
        raise StoreError(f"{place} {_NO_TABLE}")
    if version > SAMPLES_FORMAT:
        raise StoreError(
            f"{place} has format {version} of tables of samples, this smgrid reads up to "
            f"{SAMPLES_FORMAT}. Update smgrid"
        )
    if root.attrs.get(_STATUS) != "complete":
        raise IncompleteStoreError(
            f"{place} is incomplete: writing it was interrupted or is still at work. If no process "
            "writes to it, delete it and write it again"
        )
    return root


def _read_layout(root: zarr.Group, place: str) -> FeatureLayout:
    plain: Any = root.attrs.get(_LAYOUT)
    if not isinstance(plain, Mapping):
        raise StoreError(f"{place} states no layout in {_LAYOUT}. {_DAMAGED}")
    try:
        layout = FeatureLayout.from_dict(plain)
    except LayoutError as error:
        raise LayoutError(f"{place}: {error}") from error
    if layout.digest != root.attrs.get(_DIGEST):
        raise StoreError(
            f"{place}: the layout has the digest {layout.digest[:12]}, but {_DIGEST} is "
            f"{str(root.attrs.get(_DIGEST))[:12]}, so that one of them was changed. {_DAMAGED}"
        )
    return layout


def _read_array(root: zarr.Group, name: str, place: str) -> npt.NDArray[Any]:
    sums: Any = root.attrs.get(_SUMS)
    try:
        array: Any = root[name]
        values: npt.NDArray[Any] = array[...]
        expected = sums[name]
    except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise StoreError(f"{place}: {name} cannot be read ({error!r}). {_DAMAGED}") from error
    found = hashlib.sha256(to_bytes(values)).hexdigest()
    if found != expected:
        raise StoreError(
            f"{place}: {name} is not what was written: a chunk is lost or was changed (sha256 "
            f"{found}, expected {expected}). {_DAMAGED}"
        )
    return np.array(values.tolist(), np.str_) if values.dtype.kind == "T" else values
