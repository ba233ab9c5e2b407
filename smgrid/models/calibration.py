"""What the spread of an ensemble is worth: intervals that hold as often as they say.

A predictive scale is made of the spread, and held-out errors in units of it tell how wide an
interval has to be (normalised split-conformal prediction: Papadopoulos et al. 2008, Proc. IEEE
ICTAI; Lei et al. 2018, J. Am. Stat. Assoc. 113:1094; Romano et al. 2019, Adv. Neural Inf. Process.
Syst. 32). `smgrid.training.uncertainty` fits it; here are the scale and how it is applied.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from smgrid.errors import BundleError, ConfigError

FloatArray: TypeAlias = npt.NDArray[np.float32]
DoubleArray: TypeAlias = npt.NDArray[np.float64]
Days: TypeAlias = float | DoubleArray | None

LARGEST_SEASON = float(np.log(4))
"""Length of (c, s) from which the scale would be doubled and halved within a year."""

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_SHARES = np.linspace(0, 0.99, 100)  # of the variance that goes with the spread
_STEPS = 50  # towards the season: about half of the way is left after each

_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Calibration:
    """How wide an interval around the ensemble's mean has to be.

    The predictive scale is sqrt(a^2 + (b * spread)^2), times exp((c cos t + s sin t) / 2) where t
    goes through a circle in a year. The interval of a coverage spans as many of it to both sides as
    the share coverage * (n + 1) / n of the held-out errors does not exceed, n being ``effective``.

    Attributes
    ----------
    a
        Part of the scale that is the same everywhere, m3 m-3.
    b
        Factor on the spread of the members.
    scores
        Quantiles of abs(label - mean) / scale at equal steps of probability from 0 to 1, each
        station or place of the same weight.
    rows, groups
        Held-out samples, and stations or places that they are of.
    effective
        Independent errors that they are worth, at least ``groups``.
    fitted_on
        Name of the samples.
    ensemble
        Digest of the ensemble, which no other one may use this with.
    coverage
        Observed share of labels inside the intervals by samples and nominal coverage ("0.8"). On
        the samples that it was fitted on each station is judged by what the others tell.
    season
        c and s: how the scale differs over the year where the held-out stations are.
    hemisphere
        On which side of the equator that is: 1 north, -1 south, 0 where nobody knows.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=False)

    a: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    b: _NotNegative
    scores: Annotated[tuple[_NotNegative, ...], Field(min_length=2)]
    rows: _Count
    groups: _Count
    effective: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    fitted_on: str
    ensemble: str
    coverage: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    season: tuple[_Finite, _Finite] = (0.0, 0.0)
    hemisphere: Literal[-1, 0, 1] = 0

    def __post_init__(self) -> None:
        if np.hypot(*self.season) > LARGEST_SEASON * (1 + 1e-9):
            raise BundleError(
                f"season of a calibration: expected a length of at most {LARGEST_SEASON:.3f}, "
                f"found {self.season}; calibrate again"
            )
        if any(low > high for low, high in zip(self.scores, self.scores[1:], strict=False)):
            raise BundleError("scores of a calibration must not decrease; calibrate again")

    @property
    def highest_coverage(self) -> float:
        """Highest coverage that the held-out errors support."""
        return self.effective / (self.effective + 1)

    def scale(self, spread: FloatArray, day_of_year: Days = None) -> FloatArray:
        """Return the predictive scale of a spread, m3 m-3; arguments as for `bounds`."""
        squared = np.square(spread, dtype=np.float32)
        squared *= np.float32(self.b**2)
        squared += np.float32(self.a**2)
        return np.sqrt(squared) * self._season_factor(day_of_year)

    def _days(self, day_of_year: Days, latitude: Days) -> Days:
        if latitude is None or day_of_year is None:
            return day_of_year
        same = np.sign(latitude) == (self.hemisphere or np.nan)
        return np.where(same, day_of_year, np.nan)

    def _season_factor(self, day_of_year: Days) -> FloatArray:
        days = np.asarray(np.nan if day_of_year is None else day_of_year, np.float64)
        logs = np.nan_to_num(season_columns(days) @ self.season, nan=np.hypot(*self.season))
        return np.exp(logs / 2, dtype=np.float64).astype(np.float32)

    def bounds(
        self,
        mean: FloatArray,
        spread: FloatArray,
        coverage: float,
        day_of_year: Days = None,
        *,
        latitude: Days = None,
    ) -> tuple[FloatArray, FloatArray]:
        """Return the interval that holds the truth with a probability.

        Parameters
        ----------
        mean, spread
            Mean and spread of the members, m3 m-3, of any one shape; NaN stays.
        coverage
            Probability, between 0 and 1.
        day_of_year
            Day of the acquisition, 1 to 366: one for all, or an array that broadcasts with
            ``spread``. Where it is not given or NaN the scale is that of the season of the largest
            errors, so that the interval is too wide rather than too narrow.
        latitude
            Of the pixels in degrees, broadcast likewise. Across the equator from the stations of
            the calibration the season is another one, and the day counts as unknown; without
            latitude the day is taken as it is.

        Returns
        -------
        tuple of arrays
            Lower and upper bound, m3 m-3, not clipped to a physical range.

        Raises
        ------
        ConfigError
            The coverage is no probability, or more than the held-out errors support.
        """
        days = self._days(day_of_year, latitude)
        reach = self.scale(spread, days) * np.float32(self.factor(coverage))
        return mean - reach, mean + reach

    def factor(self, coverage: float) -> float:
        """Return half the width of an interval in units of the scale; raises as `bounds`."""
        if not 0 < coverage < 1:
            raise ConfigError(f"coverage: expected a number between 0 and 1, found {coverage}")
        share = coverage / self.highest_coverage
        if share > 1:
            raise ConfigError(
                f"coverage {coverage:g} cannot be told from {self.groups} held-out stations or "
                f"places, which are worth {self.effective:.0f} independent errors: ask for at most "
                f"{self.highest_coverage:.3f}, or calibrate on more stations"
            )
        return float(np.interp(share, np.linspace(0, 1, len(self.scores)), self.scores))

    @property
    def digest(self) -> str:
        """sha256 of everything that decides on intervals."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as JSON-ready dicts, lists, strings and numbers."""
        return {**asdict(self), "scores": list(self.scores), "season": list(self.season)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Calibration":
        """Read what `to_dict` wrote.

        Raises
        ------
        BundleError
            It is no mapping, a key is unknown or missing, or a value makes no sense.
        """
        try:
            return TypeAdapter(cls).validate_python(
                dict(plain) if isinstance(plain, Mapping) else plain
            )
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'calibration'}: {e['msg']}"
                for e in error.errors()
            )
            raise BundleError(f"the description of a calibration is not valid: {faults}") from error


def season_columns(day_of_year: DoubleArray) -> DoubleArray:
    """Return cosine and sine of the time of the year along a new last axis."""
    angle = 2 * np.pi / 365.25 * day_of_year
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def fit_scale(
    error2: DoubleArray, spread2: DoubleArray, weight: DoubleArray
) -> tuple[float, float]:
    """Return a and b of the greatest Gaussian likelihood.

    The variance is t (1 - r + r s^2 / <s^2>): for a given r the best t is known.

    Parameters
    ----------
    error2, spread2
        Squared errors and spreads (n,).
    weight
        Weights of the rows, sum 1.
    """
    typical = float(weight @ spread2)
    if typical == 0:  # one member
        return float(np.sqrt(weight @ error2)), 0.0
    best = (np.inf, 0.0, 0.0)
    for share in _SHARES.tolist():
        shape = 1 - share + share * spread2 / typical
        level = float(weight @ (error2 / shape))
        best = min(best, (np.log(level) + float(weight @ np.log(shape)), share, level))
    _, share, level = best
    return float(np.sqrt(level * (1 - share))), float(np.sqrt(level * share / typical))


def fit_season(
    squared: DoubleArray, columns: DoubleArray, weight: DoubleArray
) -> tuple[DoubleArray, DoubleArray]:
    """Return c and s of the greatest Gaussian likelihood, of any level.

    They make log(sum(weight * squared * exp(-x))) + sum(weight * x) least, with x = c cos + s sin.
    That is convex and nowhere more curved than 1, as cosine and sine lie on a circle of radius 1:
    steps of the gradient itself never go too far.

    Parameters
    ----------
    squared
        Squared errors in units of the scale without season (n,).
    columns
        Of `season_columns` (n, 2).
    weight
        Weights of the rows, sum 1.

    Returns
    -------
    tuple
        (c, s), not longer than `LARGEST_SEASON`, and the share of each row in the sum of squared
        errors that is left.
    """
    season, balanced = np.zeros(2), weight @ columns
    for _ in range(_STEPS):
        share = weight * squared * np.exp(-columns @ season)
        share /= share.sum()
        season = season + share @ columns - balanced
        season *= min(1.0, LARGEST_SEASON / max(float(np.hypot(*season)), LARGEST_SEASON))
    return season, share
