"""The bits of ``VI Quality``, the quality layer of MODIS and VIIRS vegetation indices, by name.

After Didan and Barreto Munoz (2019), MODIS Vegetation Index User's Guide, Collection 6.1, table 5,
and Didan et al. (2018), Suomi NPP VIIRS Vegetation Index Product Suite User Guide, version 2.1.2;
the two differ in the land and water classes only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

Product = Literal["mod13", "vnp13"]

# What both products write where nothing was processed; its bits say the same.
_MISSING = 0xFFFF
_NO_YES = ("no", "yes")
_USEFULNESS = (
    "highest_quality",
    "lower_quality",
    *(f"decreasing_quality_{step}" for step in range(2, 11)),
    "",
    "lowest_quality",
    "not_useful",
    "faulty_level_1b",
    "not_processed",
)
_MOD13_LAND = (
    "shallow_ocean",
    "land",
    "coastline_or_lake_shoreline",
    "shallow_inland_water",
    "ephemeral_water",
    "deep_inland_water",
    "continental_ocean",
    "deep_ocean",
)
_VNP13_LAND = ("desert_land", "land", "inland_water", "sea_water", "", "coast", "", "")


@dataclass(frozen=True)
class BitField:
    """Some consecutive bits of a quality word."""

    name: str
    """Name of the decoded field."""
    first: int
    """Its lowest bit."""
    meanings: tuple[str, ...]
    """What its values 0, 1, ... mean; "" for a value that is not used."""

    @property
    def mask(self) -> int:
        """The bits it occupies."""
        return (len(self.meanings) - 1) << self.first

    @property
    def is_flag(self) -> bool:
        """Whether it is one bit that says no or yes."""
        return self.meanings == _NO_YES

    def values_of(self, words: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
        """Return its value in each word."""
        return (words & np.uint16(self.mask)) >> np.uint16(self.first)


def _fields(land_water: tuple[str, ...]) -> tuple[BitField, ...]:
    return (
        BitField("modland_qa", 0, ("good", "check_other_qa", "probably_cloudy", "not_produced")),
        BitField("usefulness", 2, _USEFULNESS),
        BitField("aerosol", 6, ("climatology", "low", "average", "high")),
        BitField("adjacent_cloud", 8, _NO_YES),
        BitField("brdf_corrected", 9, _NO_YES),
        BitField("mixed_clouds", 10, _NO_YES),
        BitField("land_water", 11, land_water),
        BitField("snow_ice", 14, _NO_YES),
        BitField("shadow", 15, _NO_YES),
    )


FIELDS: Mapping[Product, tuple[BitField, ...]] = MappingProxyType(
    {"mod13": _fields(_MOD13_LAND), "vnp13": _fields(_VNP13_LAND)}
)
"""The fields of each product, lowest bits first."""


def decode_vi_quality(quality: xr.DataArray, *, product: Product = "mod13") -> xr.Dataset:
    """Decode the bits of ``VI Quality`` into named fields, lazily.

    Parameters
    ----------
    quality
        Words as stored; a missing one is 65535 or, in a float array, NaN.
    product
        "mod13" (MOD13 and MYD13) or "vnp13" (VNP13, VJ113 and VJ213).

    Returns
    -------
    xr.Dataset
        ``modland_qa``, ``usefulness``, ``aerosol`` and ``land_water`` (uint8, with the CF
        attributes ``flag_values`` and ``flag_meanings``), and ``adjacent_cloud``,
        ``brdf_corrected``, ``mixed_clouds``, ``snow_ice`` and ``shadow`` (bool). Where a word is
        missing ``modland_qa`` is 3, not produced.

    Examples
    --------
    >>> fields = decode_vi_quality(xr.DataArray(0b1000_1100_1000_0101))
    >>> fields["usefulness"].item(), fields["land_water"].item(), fields["shadow"].item()
    (1, 1, True)
    """
    decoded = {}
    for field in FIELDS[product]:
        values = xr.apply_ufunc(
            _extract,
            quality,
            kwargs={"field": field},
            dask="parallelized",
            output_dtypes=["bool" if field.is_flag else "uint8"],
        )
        decoded[field.name] = values.assign_attrs({} if field.is_flag else _flag_attrs(field))
    return xr.Dataset(decoded)


def vi_quality_attrs(product: Product = "mod13") -> dict[str, Any]:
    """Return the CF attributes ``flag_masks``, ``flag_values`` and ``flag_meanings`` of the words.

    They hold one entry for each value of each field, called ``<field>_<meaning>``, and one for each
    bit that stands alone.
    """
    entries = [
        (field.mask, value << field.first, _entry_name(field, meaning))
        for field in FIELDS[product]
        for value, meaning in enumerate(field.meanings)
        if meaning not in ("", "no")
    ]
    masks, values, names = zip(*entries, strict=True)
    return {
        "flag_masks": np.array(masks, "uint16"),
        "flag_values": np.array(values, "uint16"),
        "flag_meanings": " ".join(names),
    }


def to_words(quality: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Return quality words as unsigned integers, missing ones as the products store them."""
    return np.where(np.isnan(quality), _MISSING, quality).astype("uint16")


def _extract(quality: npt.NDArray[Any], *, field: BitField) -> npt.NDArray[Any]:
    return field.values_of(to_words(quality)).astype("bool" if field.is_flag else "uint8")


def _entry_name(field: BitField, meaning: str) -> str:
    return field.name if field.is_flag else f"{field.name}_{meaning}"


def _flag_attrs(field: BitField) -> dict[str, Any]:
    used = [value for value, meaning in enumerate(field.meanings) if meaning]
    return {
        "flag_values": np.array(used, "uint8"),
        "flag_meanings": " ".join(field.meanings[value] for value in used),
    }
