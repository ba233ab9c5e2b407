"""The columns that a feature layout is made of: what each holds and how it is scaled."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from smgrid.errors import LayoutError

SnapshotFeature = Literal[
    "vv",
    "vh",
    "angle",
    "doy_sin",
    "doy_cos",
    "sand",
    "clay",
    "bdod",
    "elevation",
    "slope",
    "aspect_sin",
    "aspect_cos",
    "ease_row",
    "ease_col_sin",
    "ease_col_cos",
]
SeriesFeature = Literal["ndvi", "t2m", "tp"]
BlockReduction = Literal["mean", "sum", "first"]

# How a description of a layout is read from text: no unknown key, no NaN.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Column:
    """One snapshot column: (value - low) / (high - low), clipped to 0..1.

    Attributes
    ----------
    feature
        What the column holds; a feature may fill several columns.
    low, high
        Values that become 0 and 1, in the feature's canonical units.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    feature: SnapshotFeature
    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range(self.feature, self.low, self.high)


@dataclass(frozen=True)
class SeriesColumn:
    """One run of ``steps`` columns, oldest step first; scaled as a `Column`.

    Attributes
    ----------
    feature
        Which series the run holds.
    low, high
        Values that become 0 and 1, in the feature's canonical units.
    block
        How the 8 days of a weather block become one value; an NDVI step is one composite.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    feature: SeriesFeature
    low: float
    high: float
    block: BlockReduction

    def __post_init__(self) -> None:
        _check_range(self.feature, self.low, self.high)


def _check_range(feature: str, low: float, high: float) -> None:
    if not low < high:
        raise LayoutError(f"the range of {feature} must rise, not run from {low} to {high}")
