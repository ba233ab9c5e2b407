"""Sample tables of the published DenseSM scripts: CSV files with scaled columns, in and out.

Zhu et al. (2024, Remote Sens. Environ. 301:113944) and the scripts derived from theirs pass
samples on as one row per acquisition: the scaled inputs in columns named by their numbers, the
label, names, a date, and the row and column of the EASE-Grid 2.0 cell of 9 km.
"""

import logging
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from smgrid.ease import EASE_CRS, ease_lattice, ease_position
from smgrid.errors import ConfigError, LayoutError, NoDataError, SourceError, StoreError
from smgrid.features.layout import FeatureLayout
from smgrid.grid import transform_points
from smgrid.training.table import Samples, join_samples, make_samples
from smgrid.training.tablestore import check_fit, share_series

_log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
PublishedLabel = Literal["gt", "sm", "SMAP"]

_ROWS = 16_384  # of text in memory at a time, 20 MB of numbers
_NUMBERS = ("edate", "lat", "latitude", "lon", "longitude", "r", "c")
# Names such as "NA" are names, so that only numbers can be missing.
_MISSING = ["", "NA", "N/A", "NaN", "nan", "-nan", "NULL", "null", "None"]
# Excel counts 1900-02-29, which never was: from 1900-03-01 on, its days count from this date.
_EXCEL_ORIGIN = np.datetime64("1899-12-30", "s")
_EXCEL_DAYS = (61, 100_000)  # 1900-03-01 to 2173
_DEGREES = {("lat", "latitude"): (-90, 90), ("lon", "longitude"): (-180, 360)}
_KM = 9
_OFF_CIRCLE = 0.01  # more than numbers rounded to three digits are off
_PAIRS = (("doy_sin", "doy_cos"), ("ease_col_sin", "ease_col_cos"))


def read_published_csv(
    path: Path | str, *, layout: FeatureLayout, label: PublishedLabel | None = "gt"
) -> Samples:
    """Read a table of samples of the published scripts into memory.

    Parameters
    ----------
    path
        CSV file in UTF-8 with a header; a name such as ``.csv.gz`` tells that it is compressed.
        Columns ``0``, ``1``, ... hold the scaled inputs. ``network``, ``station``, ``date``
        (YYYY-MM-DD) or else ``edate`` (Excel serial day), and ``lat``, ``lon``, ``latitude``,
        ``longitude`` in degrees are read where they are there. Others, such as ``s_index``,
        ``platform``, ``orbit`` and ``lc``, are not.
    layout
        What the columns are. A file does not say it, and the wrong layout gives nonsense: columns
        of another meaning and another scale. Layouts are told apart by what must hold in one: the
        sine and cosine of an angle lie on a circle, and a column that stands twice is the same.
    label
        Column of the label, soil moisture in m3 m-3; None for samples that have none.

    Returns
    -------
    Samples
        In the order of the file. As in the published scripts, a row that misses an input is
        dropped; the log counts them. A label is kept as it is, missing or out of range, because
        the published tables hold such rows and leave the choice to the training. The position is
        that of the file, else the centre of the cell ``r`` (counted from 1) and ``c`` (from 0),
        else NaN. Weights are 1; the time of day is unknown and 00:00.

    Raises
    ------
    SourceError
        There is no such file, columns are missing or too many, or a value is no number, no date,
        or out of its range; the message names the column and the first such row.
    LayoutError
        The columns cannot be those of the layout.
    NoDataError
        No row has all inputs.
    """
    parts = list(stream_published_csv(path, layout=layout, label=label))
    if not parts:
        raise NoDataError(f"{path} has no row with all {layout.n_columns} inputs")
    return share_series(join_samples(parts))


def stream_published_csv(
    path: Path | str, *, layout: FeatureLayout, label: PublishedLabel | None = "gt"
) -> Iterator[Samples]:
    """Read a table as `read_published_csv`, 16 384 rows at a time, for `write_samples`."""
    path = Path(path)
    numbers = _choose_numbers(path, layout, label)
    features = [str(i) for i in range(layout.n_columns)]
    total = dropped = 0
    for frame in _read_frames(path, numbers):
        complete = frame[frame[features].notna().all(axis=1)]
        total += len(frame)
        dropped += len(frame) - len(complete)
        if len(complete):
            yield share_series(_to_samples(complete, layout, label, path))
    if dropped:
        _log.info("%s: %d of %d rows were dropped, they miss an input", path, dropped, total)


def write_published_csv(
    samples: Samples, path: Path | str, *, layout: FeatureLayout, label: PublishedLabel = "gt"
) -> Path:
    """Write a table of samples in the form of the published scripts.

    Inputs, labels and positions are read back bit by bit. Weights, lags and the time of day have
    no place in the published form and are left out, as is an Excel day outside 1900-03 to 2173.

    Parameters
    ----------
    samples
        The samples.
    path
        File to make. It appears complete or not at all.
    layout
        The layout of the columns.
    label
        Name of the column of the label.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    NoDataError
        There is no sample.
    LayoutError
        The samples do not have the layout's columns, or cannot be in that layout.
    SourceError
        An input is missing or outside 0-1, a position off the globe, or a name has a CR or NUL.
    ConfigError
        The published scripts know no such label.
    StoreError
        The path is taken or cannot be written.
    """
    path = Path(path)
    _check_label(label)
    check_fit(samples, layout)
    if not len(samples):
        raise NoDataError(f"there is no sample to write to {path}; check what selects them")
    if path.exists():
        raise StoreError(f"{path} exists already; choose another name")
    partial = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(samples), _ROWS):
            rows = np.arange(start, min(start + _ROWS, len(samples)))
            frame = _to_frame(samples.take(rows), label, rows)
            _check_values(frame, layout, path)
            _check_names(frame, path)
            frame.to_csv(partial, mode="a", header=not start, index=False)
        partial.rename(path)
    except OSError as error:
        raise StoreError(
            f"{path} could not be written ({error.strerror or error}); nothing of it is kept. Free "
            "space or check the permissions, then write it again"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _check_label(label: str) -> None:
    if label not in get_args(PublishedLabel):
        raise ConfigError(f"label: expected one of {get_args(PublishedLabel)}, found {label!r}")


def _choose_numbers(path: Path, layout: FeatureLayout, label: str | None) -> list[str]:
    """Return the columns that hold numbers."""
    if label is not None:
        _check_label(label)
    header = _read_header(path)
    features = [str(i) for i in range(layout.n_columns)]
    missing = [name for name in features if name not in header]
    others = [name for name in header if name.isdecimal() and name not in features]
    if missing or others:
        raise SourceError(
            f"{path}: expected the columns 0 to {layout.n_columns - 1} of the layout "
            f"{layout.name!r}; missing are {_shorten(missing)}, not expected {_shorten(others)}"
        )
    if label is not None and label not in header:
        known = [name for name in get_args(PublishedLabel) if name in header]
        cure = f"give label={known[0]!r}" if known else "give label=None for samples without one"
        raise SourceError(f"{path} has no column {label!r} for the label; {cure}")
    return [name for name in header if name in {*features, *_NUMBERS, label}]


def _read_header(path: Path) -> list[str]:
    try:
        return [str(name) for name in pd.read_csv(path, nrows=0).columns]
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise SourceError(f"{path} is no CSV file with a header: {_tell(error)}") from error


def _tell(error: Exception) -> str:
    is_text = not isinstance(error, UnicodeDecodeError)
    return f"{error}" if is_text else f"expected text in UTF-8, found {error}; convert it to UTF-8"


def _read_frames(path: Path, numbers: list[str]) -> Iterator[pd.DataFrame]:
    """Yield the rows in parts; the index counts them over the whole file, from 0."""
    # All columns are read, because pandas tolerates rows that are too long where it chooses.
    options: dict[str, Any] = {
        "chunksize": _ROWS,
        "keep_default_na": False,
        "na_values": dict.fromkeys(numbers, _MISSING),
    }
    types = defaultdict(lambda: "str", dict.fromkeys(numbers, "float64"))
    try:
        with pd.read_csv(path, dtype=types, float_precision="round_trip", **options) as reader:
            for frame in reader:
                if not isinstance(frame.index, pd.RangeIndex):  # what pandas makes of the surplus
                    raise SourceError(f"{path}: row 1 has more values than the header has names")
                yield frame
    except (ValueError, OSError, EOFError) as error:
        found = _find_text(path, numbers, options) or _tell(error)
        raise SourceError(f"{path}: {found}") from error


def _find_text(path: Path, numbers: list[str], options: dict[str, Any]) -> str:
    """Say where the first value stands that is no number; empty if that is not the fault."""
    try:
        with pd.read_csv(path, dtype="str", **options) as reader:
            for frame in reader:
                texts = frame[numbers]
                wrong = texts.apply(pd.to_numeric, errors="coerce").isna() & texts.notna()
                if wrong.any(axis=None):
                    row = wrong.any(axis=1).idxmax()
                    column = wrong.loc[row].idxmax()
                    value = texts.loc[row, column]
                    return f"row {row + 1}, column {column!r}: {value!r} is no number"
    except (ValueError, OSError, EOFError):
        return ""
    return ""


def _to_samples(
    frame: pd.DataFrame, layout: FeatureLayout, label: str | None, path: Path
) -> Samples:
    inputs = _check_values(frame, layout, path)
    longitude, latitude = _find_positions(frame, path)
    n = len(layout.snapshot)
    tensor = torch.from_numpy(inputs.astype(np.float32))
    labels = None if label is None else torch.from_numpy(frame[label].to_numpy(np.float32))
    return make_samples(
        tensor[:, :n],
        tensor[:, n:].reshape(-1, len(layout.series), layout.steps),
        torch.arange(len(frame)),
        label=labels,
        time=_find_times(frame, path),
        longitude=longitude,
        latitude=latitude,
        station=frame["station"].to_numpy() if "station" in frame else "",
        network=frame["network"].to_numpy() if "network" in frame else "",
    )


def _check_values(frame: pd.DataFrame, layout: FeatureLayout, path: Path) -> FloatArray:
    """Return the inputs (row, column) of a table in which they and the positions can be true."""
    features = [str(i) for i in range(layout.n_columns)]
    for name in features:
        values = frame[name]
        _refuse(~values.between(-1e-6, 1 + 1e-6), frame, name, path, "a scaled value, 0 to 1")
    for names, (low, high) in _DEGREES.items():
        for column in frame.columns.intersection(list(names)):
            off = frame[column].notna() & ~frame[column].between(low, high)
            _refuse(off, frame, column, path, f"degrees, {low} to {high}, or nothing")
    inputs = frame[features].to_numpy(np.float64)
    _check_layout(inputs, frame, layout, path)
    return inputs


def _check_names(frame: pd.DataFrame, path: Path) -> None:
    """Refuse names that the CSV of pandas cuts, because it does not quote these characters."""
    for name in ("network", "station"):
        cut = frame[name].str.contains("[\r\0]")
        _refuse(cut, frame, name, path, "a name without a carriage return or NUL")


def _check_layout(
    inputs: FloatArray, frame: pd.DataFrame, layout: FeatureLayout, path: Path
) -> None:
    """Raise a LayoutError unless what must hold between columns of the layout holds in all rows."""
    features: list[str] = [column.feature for column in layout.snapshot]
    pairs = [
        (features.index(sine), features.index(cosine))
        for sine, cosine in _PAIRS
        if features.count(sine) == features.count(cosine) == 1
    ]
    pairs += [(features.index(f), i) for i, f in enumerate(features) if f in features[:i]]
    for pair in pairs:
        low, high = np.array([(layout.snapshot[i].low, layout.snapshot[i].high) for i in pair]).T
        values = low + inputs[:, pair] * (high - low)
        twins = features[pair[0]] == features[pair[1]]
        off = np.ptp(values, axis=1) if twins else np.abs(np.hypot(*values.T) - 1)
        if (off > _OFF_CIRCLE).any():
            row = int(np.argmax(off > _OFF_CIRCLE))
            rule = "are the same" if twins else "are the sine and cosine of one angle"
            raise LayoutError(
                f"{path} is not in the layout {layout.name!r}, in which columns {pair[0]} and "
                f"{pair[1]} ({features[pair[0]]}, {features[pair[1]]}) {rule}: unscaled they are "
                f"{values[row, 0]:.4f} and {values[row, 1]:.4f} in row {frame.index[row] + 1}. "
                "Give the layout that the file was made with"
            )


def _find_times(frame: pd.DataFrame, path: Path) -> npt.NDArray[np.datetime64]:
    """Return the date of each row at 00:00, NaT where there is none."""
    times = np.full(len(frame), np.datetime64("NaT"), "M8[ns]")
    if "edate" in frame:
        days = frame["edate"]
        low, high = _EXCEL_DAYS
        wrong = days.notna() & ~days.between(low, high)
        _refuse(wrong, frame, "edate", path, f"an Excel serial day, {low} to {high}")
        times = (_EXCEL_ORIGIN + days.to_numpy("m8[D]")).astype("M8[ns]")
    if "date" in frame:
        text = frame["date"]
        given = ~text.isin(_MISSING)
        dates = pd.to_datetime(text.where(given), format="%Y-%m-%d", errors="coerce")
        _refuse(given & dates.isna(), frame, "date", path, "a date, YYYY-MM-DD")
        times = np.where(given, dates.to_numpy("M8[ns]"), times)
    return times


def _find_positions(frame: pd.DataFrame, path: Path) -> tuple[FloatArray, FloatArray]:
    """Return longitude and latitude of each row: its own, else the centre of its EASE cell."""
    missing = np.full(len(frame), np.nan)
    longitude, latitude = (
        next((frame[name].to_numpy() for name in names if name in frame), missing)
        for names in (("lon", "longitude"), ("lat", "latitude"))
    )
    if not {"r", "c"} <= set(frame):
        return longitude, latitude
    row, column = frame["r"].to_numpy(), frame["c"].to_numpy()
    rows, columns, cell = ease_lattice(_KM)
    unknown = np.isnan(longitude) | np.isnan(latitude)
    used = unknown & (row == np.round(row)) & (column == np.round(column))
    cells = "of an EASE-Grid 2.0 cell of 9 km"
    _refuse(used & ~((row >= 1) & (row <= rows)), frame, "r", path, f"the row {cells}, 1 to {rows}")
    beyond = ~((column >= 0) & (column < columns))
    _refuse(used & beyond, frame, "c", path, f"the column {cells}, 0 to {columns - 1}")
    x, y = (column + 0.5 - columns / 2) * cell, (rows / 2 - row + 0.5) * cell
    centre = transform_points(x, y, EASE_CRS, "EPSG:4326")
    return np.where(used, centre[0], longitude), np.where(used, centre[1], latitude)


def _refuse(wrong: Any, frame: pd.DataFrame, column: str, path: Path, expected: str) -> None:
    """Raise a SourceError about the first row that is wrong, if there is one."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        raise SourceError(
            f"{path}: row {frame.index[rows[0]] + 1}, column {column!r}: expected {expected}, "
            f"found {frame[column].tolist()[rows[0]]!r}"
        )


def _shorten(names: list[str]) -> str:
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])]) or "none"


def _to_frame(samples: Samples, label: str, rows: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Return a published table of these rows, counted from 0."""
    times = pd.Series(samples.time.astype("M8[s]"))  # differences of nanoseconds end in 2192
    days = (times - _EXCEL_ORIGIN).dt.days
    row, column = _find_cells(samples)
    facts = {
        "s_index": rows + 1,
        "network": samples.network,
        "station": samples.station,
        "edate": days.where(days.between(*_EXCEL_DAYS)).astype("Int64"),
        "date": times.dt.strftime("%Y-%m-%d"),
        "latitude": samples.latitude,
        "longitude": samples.longitude,
        "r": row.astype("Int64"),
        "c": column.astype("Int64"),
        label: samples.label.numpy(),
    }
    inputs = pd.DataFrame(samples.features.numpy()).rename(columns=str)
    return pd.concat([pd.DataFrame(facts), inputs], axis=1).set_index(rows)


def _find_cells(samples: Samples) -> tuple[pd.Series, pd.Series]:
    """Return row and column of the EASE cells as the published scripts count them, or NaN."""
    x, y = transform_points(samples.longitude, samples.latitude, "EPSG:4326", EASE_CRS)
    known = np.isfinite(x) & np.isfinite(y)
    places = ease_position(x[known], y[known], km=_KM, convention="published")
    row, column = (pd.Series(np.full(len(samples), np.nan)) for _ in places)
    row[known], column[known] = places
    return row, column
