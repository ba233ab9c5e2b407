"""How values are stored: floats rounded to the digits that matter, or integers that never wrap."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from smgrid.errors import SchemaError


@dataclass(frozen=True)
class Packing:
    """How a variable is stored: rounded floats, or integers with a scale and a fill value."""

    dtype: str
    """numpy name of the type on disk."""
    scale: float | None = None
    """Physical units per count; ``None`` when counts are the values themselves."""
    offset: float | None = None
    """Physical value of count 0."""
    fill: int | None = None
    """Count that stands for a missing value; floats use NaN."""
    mantissa_bits: int | None = None
    """Explicit mantissa bits that a float keeps; ``None`` keeps all."""

    def encode(self, values: npt.ArrayLike, *, name: str = "values") -> npt.NDArray[Any]:
        """Return `values` as they are stored.

        Parameters
        ----------
        values
            Physical values; NaN is missing.
        name
            What the error message calls them.

        Raises
        ------
        SchemaError
            If an integer type cannot hold a value. Nothing is ever wrapped or clipped.

        Notes
        -----
        Integers are ``round((value - offset) / scale)``. Floats keep `mantissa_bits` explicit
        mantissa bits, rounded to nearest, ties to even: "BitRound" of Klöwer et al. (2021,
        doi:10.1038/s43588-021-00156-2) in the family of Zender (2016,
        doi:10.5194/gmd-9-3199-2016). The relative error is at most ``2**-(mantissa_bits + 1)``.
        """
        array = np.asarray(values)
        if np.dtype(self.dtype).kind == "f":
            return _round_mantissa(array.astype(self.dtype, copy=False), self.mantissa_bits)
        return self._to_integers(array, name)

    def _to_integers(self, values: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        missing = np.isnan(values)
        counts = np.where(missing, 0, values).astype("float64")
        counts = np.rint((counts - (self.offset or 0.0)) / (self.scale or 1.0))
        limits = np.iinfo(self.dtype)
        bad = (counts < limits.min) | (counts > limits.max)
        if self.fill is not None:
            bad |= (counts == self.fill) & ~missing
        elif missing.any():
            msg = f"{name}: a missing value cannot be stored, {self.dtype} has no fill value here"
            raise SchemaError(msg)
        if bad.any():
            msg = (
                f"{name}: {values[bad].flat[0]} cannot be stored as {self.dtype} "
                f"(scale {self.scale or 1.0:g}, fill value {self.fill}); "
                "the value is outside of what the variable can hold, check its units"
            )
            raise SchemaError(msg)
        packed = counts.astype(self.dtype)
        if self.fill is not None:
            packed[missing] = self.fill
        return packed


def _round_mantissa(values: npt.NDArray[Any], bits: int | None) -> npt.NDArray[Any]:
    explicit = np.finfo(values.dtype).nmant
    if bits is None or bits >= explicit:
        return values
    unsigned = values.view(f"u{values.dtype.itemsize}")
    dropped = unsigned.dtype.type(explicit - bits)
    one = unsigned.dtype.type(1)
    # Adding just under half of the last kept bit, plus that bit itself, carries ties to even.
    half = (one << (dropped - one)) - one
    rounded = unsigned + half + ((unsigned >> dropped) & one)
    rounded &= ~((one << dropped) - one)
    # The carry would turn some NaN patterns into numbers.
    return np.where(np.isnan(values), values, rounded.view(values.dtype))
