"""Layouts: the columns, order, scaling and conventions that a network was trained with.

A network means nothing without them, so a layout travels inside every model bundle. Three are
built in. ``published`` is what the published preparation code of DenseSM emits (Zhu et al. 2024,
Remote Sens. Environ. 301:113944). ``released-9km`` is what the released 9 km weights were trained
on, inferred from the statistics stored in their batch norms: another column order, components of
aspect, one day-of-year harmonic twice, another range of precipitation. ``smgrid-1`` is for new
training.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from smgrid.ease import EaseConvention
from smgrid.errors import LayoutError
from smgrid.features.columns import STRICT, BlockReduction, SnapshotFeature
from smgrid.features.columns import Column as Column
from smgrid.features.columns import SeriesColumn as SeriesColumn
from smgrid.windows import WindowRule

FloatArray: TypeAlias = npt.NDArray[np.float32]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

Convention = Literal["sigma0", "gamma0"]
Averaging = Literal["db", "linear"]
AspectRule = Literal["components", "direction"]
LayoutName = Literal["published", "released-9km", "smgrid-1"]

# How the fields of a layout are read; a change of their meaning takes a new number.
LAYOUT_VERSION = 1


@dataclass(frozen=True)
class FeatureLayout:
    """The contract between a trained network and a cube.

    Attributes
    ----------
    name
        Name for people; two layouts are the same only if their digests are.
    version
        How the fields are read, `LAYOUT_VERSION`.
    snapshot
        Columns that hold one value per pixel and date.
    series
        Runs of ``steps`` columns that follow the snapshot columns. Tables of samples and networks
        do without; a cube is only mapped by a layout that has all of them.
    window
        Rule of the one-year window.
    convention, averaging
        Reference area of the backscatter, and the domain fine pixels were averaged in.
    aspect
        ``components``: area means of sine and cosine as they are; ``direction``: the unit vector
        along them.
    ease, ease_km
        How the EASE-Grid 2.0 position is computed, and the size of its cells in km.
    steps
        Steps of every run.
    note
        What a reader should know; no part of the identity.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    version: int
    snapshot: tuple[Column, ...]
    series: tuple[SeriesColumn, ...]
    window: WindowRule
    convention: Convention
    averaging: Averaging
    aspect: AspectRule
    ease: EaseConvention
    ease_km: float
    steps: int = 46
    note: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.version != LAYOUT_VERSION:
            raise LayoutError(
                f"layout {self.name!r} has version {self.version}, this smgrid reads version "
                f"{LAYOUT_VERSION}. Use the smgrid that wrote it, or a newer one"
            )
        for name, choices in _CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        features = [column.feature for column in self.series]
        if not self.snapshot or len(set(features)) < len(features):
            raise LayoutError(
                f"layout {self.name!r} needs snapshot columns and distinct series, it has "
                f"{len(self.snapshot)} columns and the series {features}"
            )
        if self.steps < 1 or not self.ease_km > 0:
            raise LayoutError(
                f"layout {self.name!r} has steps={self.steps} and ease_km={self.ease_km}; both "
                "must be positive"
            )

    @property
    def n_columns(self) -> int:
        """Length of one input vector."""
        return len(self.snapshot) + len(self.series) * self.steps

    @property
    def column_names(self) -> tuple[str, ...]:
        """Unique names of the columns: a repeated feature is numbered, as a series' steps are."""
        features = [column.feature for column in self.snapshot]
        counts = [features[: i + 1].count(feature) for i, feature in enumerate(features)]
        snapshot = [f if n == 1 else f"{f}_{n}" for f, n in zip(features, counts, strict=True)]
        runs = [f"{column.feature}_{i:02d}" for column in self.series for i in range(self.steps)]
        return (*snapshot, *runs)

    @property
    def digest(self) -> str:
        """sha256 of everything that decides what a column holds (the note does not)."""
        identity = {key: value for key, value in self.to_dict().items() if key != "note"}
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def with_window(self, window: WindowRule) -> "FeatureLayout":
        """Return the same columns with another window rule."""
        return replace(self, window=window)

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as JSON-ready dicts, lists, strings and numbers."""
        plain: dict[str, Any] = asdict(self)
        plain["ease_km"] = float(self.ease_km)
        for key in ("snapshot", "series"):
            plain[key] = [
                {**column, "low": float(column["low"]), "high": float(column["high"])}
                for column in plain[key]
            ]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "FeatureLayout":
        """Read what `to_dict` wrote.

        Raises
        ------
        LayoutError
            A key is unknown or missing, a value is not allowed, or the version is another.
        """
        try:
            return TypeAdapter(cls).validate_python(dict(plain))
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'layout'}: {e['msg']}" for e in error.errors()
            )
            raise LayoutError(f"the description of a layout is not valid: {faults}") from error


class Scaled(NamedTuple):
    """Scaled columns, and which of them had to be clipped.

    Attributes
    ----------
    values
        0..1, NaN where the input was.
    clipped
        True where the input lay outside the layout's range.
    """

    values: FloatArray
    clipped: BoolArray


def scale_columns(values: FloatArray, layout: FeatureLayout) -> Scaled:
    """Scale (n, snapshot columns) values in canonical units to 0..1; NaN stays.

    Raises
    ------
    LayoutError
        The array does not have the layout's columns.
    """
    _check_shape(values, (len(layout.snapshot),))
    low = np.array([column.low for column in layout.snapshot], np.float32)
    high = np.array([column.high for column in layout.snapshot], np.float32)
    return _scale(values, low, high)


def scale_series(values: FloatArray, layout: FeatureLayout) -> Scaled:
    """Scale (n, series, steps) values in canonical units to 0..1; NaN stays.

    Raises
    ------
    LayoutError
        The array does not have the layout's series and steps.
    """
    _check_shape(values, (len(layout.series), layout.steps))
    low = np.array([[column.low] for column in layout.series], np.float32)
    high = np.array([[column.high] for column in layout.series], np.float32)
    return _scale(values, low, high)


def with_means(x: FloatArray, *, n_snapshot: int = 15, n_series: int = 3) -> FloatArray:
    """Insert the mean of each run, ignoring NaN, after the snapshot columns.

    Parameters
    ----------
    x
        (n, columns) vectors in a layout's order, (n, 153) for the built-in layouts.
    n_snapshot, n_series
        Number of snapshot columns and of runs.

    Returns
    -------
    array
        (n, columns + n_series), what the layers of DenseSM read (Zhu et al. 2024).
    """
    runs = x[:, n_snapshot:].reshape(len(x), n_series, -1)
    present = (~np.isnan(runs)).sum(axis=2)
    with np.errstate(invalid="ignore"):
        means = np.nansum(runs, axis=2, dtype=np.float64) / present
    return np.concatenate([x[:, :n_snapshot], means, x[:, n_snapshot:]], axis=1, dtype=np.float32)


def get_layout(name: LayoutName) -> FeatureLayout:
    """Return a built-in layout.

    Raises
    ------
    LayoutError
        There is no layout of that name.
    """
    if name == "released-9km":
        return released_9km()
    if name not in _BUILT_IN:
        known = ", ".join(get_args(LayoutName))
        raise LayoutError(f"there is no layout {name!r}; built in are {known}")
    return _BUILT_IN[name]


def released_9km(precipitation_factor: float = 10.0) -> FeatureLayout:
    """Return the layout of the released 9 km weights, with causal windows.

    Parameters
    ----------
    precipitation_factor
        How many times finer than 0..0.3 m per day the range of precipitation is. The stored
        statistics of the weights allow 8 to 10; no source states it.
    """
    if not precipitation_factor > 0:
        raise LayoutError(f"precipitation_factor must be positive, not {precipitation_factor}")
    return FeatureLayout(
        name="released-9km",
        version=LAYOUT_VERSION,
        snapshot=_columns(_RELEASED_ORDER),
        series=_series(tp_high=_PUBLISHED_TP_HIGH / precipitation_factor, tp_block="mean"),
        window="causal",
        convention="sigma0",
        averaging="db",
        aspect="components",
        ease="centre",
        ease_km=9.0,
        note="inferred from the batch norms of the weights; precipitation is 8-day means of m/day",
    )


def _columns(
    order: tuple[SnapshotFeature, ...], **ranges: tuple[float, float]
) -> tuple[Column, ...]:
    return tuple(Column(feature, *ranges.get(feature, _RANGES[feature])) for feature in order)


def _series(*, tp_high: float, tp_block: BlockReduction) -> tuple[SeriesColumn, ...]:
    return (
        SeriesColumn("ndvi", -0.2, 1.0, "first"),
        SeriesColumn("t2m", 263.15, 308.15, "mean"),
        SeriesColumn("tp", 0.0, tp_high, tp_block),
    )


def _scale(values: FloatArray, low: FloatArray, high: FloatArray) -> Scaled:
    values = np.asarray(values, np.float32)
    clipped = (values < low) | (values > high)
    return Scaled(np.clip((values - low) / (high - low), 0, 1), clipped)


def _check_shape(values: FloatArray, expected: tuple[int, ...]) -> None:
    if values.shape[1:] != expected:
        wanted = ", ".join(["n", *map(str, expected)])
        raise LayoutError(f"expected an array of shape ({wanted}), got {values.shape}")


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise LayoutError(f"{name} of a layout is one of {get_args(choices)}, not {value!r}")


_CHOICES = {
    "window": WindowRule,
    "convention": Convention,
    "averaging": Averaging,
    "aspect": AspectRule,
    "ease": EaseConvention,
}

# Ranges of the published preparation code, in canonical units (Zhu et al. 2024); the row fraction
# as the released weights saw it.
_RANGES: dict[SnapshotFeature, tuple[float, float]] = {
    "vv": (-30.0, 5.0),
    "vh": (-35.0, 0.0),
    "angle": (29.1, 46.0),
    "doy_sin": (-1.0, 1.0),
    "doy_cos": (-1.0, 1.0),
    "sand": (0.0, 1000.0),
    "clay": (0.0, 1000.0),
    "bdod": (100.0, 180.0),
    "elevation": (0.0, 5500.0),
    "slope": (0.0, 40.0),
    "aspect_sin": (-1.0, 1.0),
    "aspect_cos": (-1.0, 1.0),
    "ease_row": (0.0, 1.0),
    "ease_col_sin": (-1.0, 1.0),
    "ease_col_cos": (-1.0, 1.0),
}
_PUBLISHED_TP_HIGH = 0.3

_SATELLITE: tuple[SnapshotFeature, ...] = ("vv", "vh", "angle")
_SITE: tuple[SnapshotFeature, ...] = (
    *("sand", "clay", "bdod", "elevation", "slope", "aspect_sin", "aspect_cos"),
    *("ease_row", "ease_col_sin", "ease_col_cos"),
)
_PUBLISHED_ORDER = (*_SATELLITE, "doy_sin", "doy_cos", *_SITE)
_RELEASED_ORDER = (*_SATELLITE, *_SITE, "doy_cos", "doy_cos")
_SMGRID_ORDER = (*_SATELLITE, *_SITE, "doy_sin", "doy_cos")

_BUILT_IN = {
    "published": FeatureLayout(
        name="published",
        version=LAYOUT_VERSION,
        snapshot=_columns(_PUBLISHED_ORDER, ease_row=(-1.0, 1.0)),
        series=_series(tp_high=_PUBLISHED_TP_HIGH, tp_block="mean"),
        window="published",
        convention="sigma0",
        averaging="db",
        aspect="direction",
        ease="published",
        ease_km=0.1,
        note="as the published preparation code emits it; precipitation is 8-day means of m/day",
    ),
    "smgrid-1": FeatureLayout(
        name="smgrid-1",
        version=LAYOUT_VERSION,
        snapshot=_columns(_SMGRID_ORDER),
        series=_series(tp_high=0.3, tp_block="sum"),
        window="causal",
        # What radiometric terrain correction gives, the form that open archives serve.
        convention="gamma0",
        averaging="db",
        aspect="components",
        ease="centre",
        ease_km=9.0,
        note="for new training; precipitation is 8-day sums in m",
    ),
}
