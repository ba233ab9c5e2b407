"""What the spread of an ensemble is worth: intervals that hold as often as they say.

A predictive scale is made of the spread, and held-out errors in units of it tell how wide an
interval has to be (normalised split-conformal prediction: Papadopoulos et al. 2008, Proc. IEEE
ICTAI; Lei et al. 2018, J. Am. Stat. Assoc. 113:1094; Romano et al. 2019, Adv. Neural Inf. Process.
Syst. 32). `smgrid.training.uncertainty` fits it; here it is applied.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from smgrid.errors import BundleError, ConfigError

FloatArray: TypeAlias = npt.NDArray[np.float32]

_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Calibration:
    """How wide an interval around the ensemble's mean has to be.

    The predictive scale is sqrt(a^2 + (b * spread)^2). The interval of coverage c spans as many of
    it to both sides as the share c * (n + 1) / n of the held-out errors does not exceed, n being
    ``effective``.

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

    def __post_init__(self) -> None:
        if any(low > high for low, high in zip(self.scores, self.scores[1:], strict=False)):
            raise BundleError("scores of a calibration must not decrease; calibrate again")

    @property
    def highest_coverage(self) -> float:
        """Highest coverage that the held-out errors support."""
        return self.effective / (self.effective + 1)

    def scale(self, spread: FloatArray) -> FloatArray:
        """Return the predictive scale of a spread, m3 m-3."""
        squared = np.square(spread, dtype=np.float32)
        squared *= np.float32(self.b**2)
        squared += np.float32(self.a**2)
        return np.sqrt(squared)

    def bounds(
        self, mean: FloatArray, spread: FloatArray, coverage: float
    ) -> tuple[FloatArray, FloatArray]:
        """Return the interval that holds the truth with a probability.

        Parameters
        ----------
        mean, spread
            Mean and spread of the members, m3 m-3, of any one shape; NaN stays.
        coverage
            Probability, between 0 and 1.

        Returns
        -------
        tuple of arrays
            Lower and upper bound, m3 m-3, not clipped to a physical range.

        Raises
        ------
        ConfigError
            The coverage is no probability, or more than the held-out errors support.
        """
        reach = self.scale(spread)
        reach *= np.float32(self.factor(coverage))
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

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as JSON-ready dicts, lists, strings and numbers."""
        return {**asdict(self), "scores": list(self.scores)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Calibration":
        """Read what `to_dict` wrote.

        Raises
        ------
        BundleError
            A key is unknown or missing, or a value makes no sense.
        """
        try:
            return TypeAdapter(cls).validate_python(dict(plain))
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'calibration'}: {e['msg']}"
                for e in error.errors()
            )
            raise BundleError(f"the description of a calibration is not valid: {faults}") from error
