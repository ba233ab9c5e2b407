"""What loaders take from a source's catalog entry, with errors that name the entry."""

from collections.abc import Sequence
from typing import Any

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError


def take_choice(spec: SourceSpec, key: str, choices: Sequence[str], *, default: str | None) -> str:
    """Return the option `key`, one of `choices`; without a default it must be given."""
    value = spec.options.get(key, default)
    if value not in choices:
        found = "is missing" if value is None else f"is {value!r}"
        msg = f"{spec.origin}: options.{key} of {spec.name} {found}; use {' or '.join(choices)}"
        raise CatalogError(msg)
    return str(value)


def take_days(spec: SourceSpec, key: str, *, default: int) -> int:
    """Return the option `key`, a number of days >= 0."""
    value = spec.options.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        msg = f"{spec.origin}: options.{key} of {spec.name} is {value!r}; give whole days"
        raise CatalogError(msg)
    return value


def take_integers(spec: SourceSpec, key: str, *, default: Sequence[int]) -> tuple[int, ...]:
    """Return the option `key`, a list of whole numbers with at least one entry."""
    value: Any = spec.options.get(key, list(default))
    if not isinstance(value, list) or not value or not all(type(item) is int for item in value):
        msg = f"{spec.origin}: options.{key} of {spec.name} is {value!r}; give a list of integers"
        raise CatalogError(msg)
    return tuple(value)


def take_asset(spec: SourceSpec, name: str) -> str:
    """Return ``spec.assets[name]``; CatalogError if the entry does not have it."""
    if name not in spec.assets:
        known = ", ".join(spec.assets) or "none"
        msg = f"{spec.origin}: assets.{name} of {spec.name} is missing (it has {known}); add it"
        raise CatalogError(msg)
    return spec.assets[name]


def take_units(spec: SourceSpec, name: str, *, default: str | None = None) -> str:
    """Return the units that `name` is stored in; without a default they must be given."""
    units = spec.units.get(name, default)
    if units is None:
        msg = f"{spec.origin}: units.{name} of {spec.name} is missing; write the units as stored"
        raise CatalogError(msg)
    return units


def take_native_resolution(spec: SourceSpec) -> float:
    """Return the provider's pixel size [m]; CatalogError if the entry does not state it."""
    if spec.native_resolution <= 0:
        msg = f"{spec.origin}: native_resolution of {spec.name} is missing; give it in metres"
        raise CatalogError(msg)
    return spec.native_resolution
