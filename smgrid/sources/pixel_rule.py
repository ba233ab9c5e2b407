"""Which pixels of a vegetation index composite count as observations."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError
from smgrid.sources.options import take_integers
from smgrid.sources.vi_quality import FIELDS, Product, to_words
from smgrid.yamltext import suggest

CONDITIONS: Mapping[str, tuple[str, frozenset[str]]] = MappingProxyType(
    {
        "cloud": ("modland_qa", frozenset({"probably_cloudy"})),
        "mixed_clouds": ("mixed_clouds", frozenset({"yes"})),
        "adjacent_cloud": ("adjacent_cloud", frozenset({"yes"})),
        "snow": ("snow_ice", frozenset({"yes"})),
        "shadow": ("shadow", frozenset({"yes"})),
        "high_aerosol": ("aerosol", frozenset({"high"})),
        "water": (
            "land_water",
            frozenset(
                {"shallow_ocean", "continental_ocean", "deep_ocean", "sea_water"}
                | {"shallow_inland_water", "deep_inland_water", "inland_water"}
            ),
        ),
    }
)
"""What the option ``reject`` can name: a field of ``VI Quality``, and the meanings rejected."""

DEFAULT_REJECT = ("cloud", "mixed_clouds", "snow", "shadow")
"""What is rejected unless the option says otherwise, see `PixelRule`."""

# Ranks of pixel reliability that are used by default. MOD13: good and marginal; 2 is snow or ice, 3
# cloud (user's guide, table 4). VNP13: excellent, good, acceptable and marginal; 4 to 6 are pass,
# questionable and poor, 7 to 9 shadow, snow and cloud, and 10 and 11 no observations but estimates
# and long-term averages.
_ACCEPTED: Mapping[Product, tuple[int, ...]] = MappingProxyType(
    {"mod13": (0, 1), "vnp13": (0, 1, 2, 3)}
)
_WORST = 15
# The layer that each option is about.
_NEEDS = {"accept_reliability": "reliability", "reject": "quality", "max_usefulness": "quality"}

RULE_OPTIONS = tuple(_NEEDS)
"""The options that `take_rule` reads."""


@dataclass(frozen=True)
class PixelRule:
    """What both quality layers must say of a pixel that is used.

    The default rejects what is not the surface: no value, probable or mixed cloud, snow or ice, and
    shadow. It keeps pixels beside a cloud and under much aerosol: in humid regions these are most
    pixels of a season, the composite has already chosen the best of its days, and a gap filled from
    a month away is the larger error. The usefulness score is not used by default: in Collection 6
    good pixels carry the worst score (known issue PM_MOD13_16301), and the provider advises to
    disregard it there.
    """

    product: Product
    """Decides what the bits mean."""
    accept: tuple[int, ...]
    """Ranks of pixel reliability."""
    reject: tuple[str, ...] = DEFAULT_REJECT
    """Keys of `CONDITIONS`."""
    max_usefulness: int | None = None
    """Largest usefulness score, 0 (best) to 15; ``None`` for any."""

    def select(self, layers: xr.Dataset) -> xr.DataArray:
        """Return ``layers["ndvi"]`` where ``reliability`` and ``quality``, if there, allow it."""
        ndvi = layers["ndvi"]
        if "reliability" in layers:
            ndvi = ndvi.where(layers["reliability"].isin(self.accept))
        if "quality" in layers:
            usable = xr.apply_ufunc(
                _is_usable,
                layers["quality"],
                kwargs={"rule": self},
                dask="parallelized",
                output_dtypes=["bool"],
            )
            ndvi = ndvi.where(usable)
        return ndvi


def take_rule(spec: SourceSpec, product: Product) -> PixelRule:
    """Return the rule that the options of a source state.

    Options are ``accept_reliability`` (list of ranks), ``reject`` (list of `CONDITIONS`) and
    ``max_usefulness`` (0 to 15).

    Raises
    ------
    CatalogError
        If one of them is not understood, or the asset that it is about is missing.
    """
    for option, asset in _NEEDS.items():
        if option in spec.options and asset not in spec.assets:
            msg = f"{spec.origin}: {option} of {spec.name} needs assets.{asset}; add it"
            raise CatalogError(msg)
    return PixelRule(
        product,
        accept=take_integers(spec, "accept_reliability", default=_ACCEPTED[product]),
        reject=_take_conditions(spec),
        max_usefulness=_take_usefulness(spec),
    )


def _take_conditions(spec: SourceSpec) -> tuple[str, ...]:
    names = spec.options.get("reject", list(DEFAULT_REJECT))
    if not isinstance(names, list):
        msg = f"{spec.origin}: options.reject of {spec.name} is {names!r}; give a list of names"
        raise CatalogError(msg)
    for name in names:
        if name not in CONDITIONS:
            cure = suggest(str(name), list(CONDITIONS))
            msg = f"{spec.origin}: options.reject of {spec.name} has {name!r}; {cure}"
            raise CatalogError(msg)
    return tuple(names)


def _take_usefulness(spec: SourceSpec) -> int | None:
    limit: Any = spec.options.get("max_usefulness")
    if limit is not None and (type(limit) is not int or not 0 <= limit <= _WORST):
        msg = (
            f"{spec.origin}: options.max_usefulness of {spec.name} is {limit!r}; give a whole "
            f"number of 0 (best) to {_WORST}"
        )
        raise CatalogError(msg)
    return None if limit is None else int(limit)


def _is_usable(quality: npt.NDArray[Any], *, rule: PixelRule) -> npt.NDArray[np.bool_]:
    return _usable_words(rule)[to_words(quality)]


@lru_cache(maxsize=8)
def _usable_words(rule: PixelRule) -> npt.NDArray[np.bool_]:
    """Return for each of the 65536 words whether a pixel that carries it is used."""
    words = np.arange(1 << 16).astype("uint16")
    fields = {field.name: field for field in FIELDS[rule.product]}
    usable = np.ones(words.shape, bool)
    not_produced = ("modland_qa", frozenset({"not_produced"}))
    for name, meanings in (not_produced, *(CONDITIONS[condition] for condition in rule.reject)):
        is_rejected = np.array([meaning in meanings for meaning in fields[name].meanings])
        usable &= ~is_rejected[fields[name].values_of(words)]
    if rule.max_usefulness is not None:
        usable &= fields["usefulness"].values_of(words) <= rule.max_usefulness
    return usable
