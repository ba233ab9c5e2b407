"""One source of data, as loaders see it: frozen, complete, and without a single secret in it."""

import glob
import importlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from smgrid.catalogtext import Convention, Signing
from smgrid.errors import CatalogError, ConfigError, MissingDependencyError, SourceError
from smgrid.schema import Kind, load_variables
from smgrid.yamltext import suggest

SIGNED = re.compile(
    r"[?&](sig|signature|x-amz-[^=]+|x-goog-[^=]+|awsaccesskeyid|(access_)?token)=", re.IGNORECASE
)
"""Finds a URL whose query lets through whoever has it."""

_URL = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]*://|/vsi)")


@dataclass(frozen=True)
class StacQuery:
    """Which items of a STAC API or static catalog a source reads."""

    href: str
    """Root URL of an API, or absolute path or URL of a static catalog."""
    collection: str
    """Collection id."""
    sign: Signing = "none"
    """How asset URLs are signed when they are read."""
    query: Mapping[str, Any] = field(default_factory=dict)
    """Conditions on item properties, in the form of the STAC query extension."""


@dataclass(frozen=True)
class SourceSpec:
    """One source of a catalog: what it provides, where it is and how its loader reads it."""

    name: str
    """Its key in the catalog."""
    loader: str
    """Dotted path ``package.module:function``."""
    provides: tuple[str, ...]
    """Canonical variables, see ``catalogs/variables.yml``."""
    paths: tuple[str, ...] = ()
    """Absolute files or globs, or URLs."""
    stac: StacQuery | None = None
    """Items to search, for sources that are STAC collections."""
    assets: Mapping[str, str] = field(default_factory=dict)
    """Canonical or auxiliary name -> STAC asset key, name inside the file, or absolute file."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Canonical name -> units as stored."""
    scale: Mapping[str, float] = field(default_factory=dict)
    """Name -> factor that turns stored counts into `units`."""
    offset: Mapping[str, float] = field(default_factory=dict)
    """Name -> value in `units` of count 0."""
    nodata: float | None = None
    """Stored value that means missing, where the files do not say it or say it wrongly."""
    convention: Convention | None = None
    """Normalisation area of backscatter."""
    native_resolution: float = 0.0
    """Pixel size of the provider [m]; 0 for sources without series, which do not need it."""
    crs: str | None = None
    """CRS of files that carry none or a broken one."""
    first_day: date | None = None
    """First day that the provider has, where it is known."""
    last_day: date | None = None
    """Last day that the provider has, where the record has ended."""
    cadence: str = ""
    """How often the provider adds data, in words."""
    credentials: tuple[str, ...] = ()
    """Environment variables that must be set before the source is read."""
    fallbacks: tuple[str, ...] = ()
    """Sources that stand in for this one where it has nothing, in order."""
    licence: str = ""
    """SPDX identifier or name of the data's licence."""
    citation: str = ""
    """How the provider asks to be cited."""
    note: str = ""
    """For people."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What only this loader understands."""
    origin: str = "a SourceSpec made in Python"
    """Where it was written: ``"catalog.yml, line 12"``."""

    @property
    def kind(self) -> Kind:
        """Kind of its variables, see ``catalogs/variables.yml``; that of those that have dates.

        A source may state static values and an angle together: both live on the base grid.
        """
        variables = load_variables()
        kinds = {variables[name].kind for name in self.provides if name in variables}
        dated: tuple[Kind, ...] = ("series", "label", "scene")
        return next((kind for kind in dated if kind in kinds), "static")


def find_files(spec: SourceSpec) -> tuple[str, ...]:
    """Return the files of ``spec.paths``, globs expanded and sorted, each once; URLs as they are.

    Raises
    ------
    SourceError
        If a local path or glob matches nothing.
    """
    found: dict[str, None] = {}
    for path in spec.paths:
        matches = [path] if is_url(path) else match_files(path)
        if not matches:
            msg = f"{spec.origin}: no file matches {path}; correct paths of {spec.name}"
            raise SourceError(msg)
        found.update(dict.fromkeys(matches))
    return tuple(found)


def is_url(path: str) -> bool:
    """Return whether `path` is a URL or a GDAL virtual path rather than a local file."""
    return _URL.match(path) is not None


def resolve_loader(spec: SourceSpec) -> Callable[..., Any]:
    """Return the function that ``spec.loader`` names.

    Raises
    ------
    CatalogError
        If there is none.
    MissingDependencyError
        If it needs a package that is not installed.
    """
    module_name, _, function_name = spec.loader.partition(":")
    try:
        loader = getattr(importlib.import_module(module_name), function_name)
    except ModuleNotFoundError as cause:
        if not cause.name or f"{module_name}.".startswith(f"{cause.name}."):
            raise _no_loader(spec, cause) from cause
        msg = (
            f"{spec.origin}: the loader {spec.loader!r} of {spec.name} needs the package "
            f"{cause.name!r}, which is not installed; install it, or remove this source"
        )
        raise MissingDependencyError(msg) from cause
    except (ImportError, AttributeError, ValueError) as cause:
        raise _no_loader(spec, cause) from cause
    if not callable(loader):
        msg = f"{spec.origin}: the loader {spec.loader!r} of {spec.name} is not a function"
        raise CatalogError(msg)
    return loader  # type: ignore[no-any-return]


def _no_loader(spec: SourceSpec, cause: Exception) -> CatalogError:
    return CatalogError(
        f"{spec.origin}: the loader {spec.loader!r} of {spec.name} cannot be imported "
        f"({cause}); write package.module:function and install its package"
    )


def check_options(spec: SourceSpec, *known: str) -> None:
    """Raise CatalogError if ``spec.options`` has a key that its loader does not know."""
    for key in spec.options:
        if key not in known:
            cure = suggest(key, known) if known else f"{spec.loader} has no options"
            msg = f"{spec.origin}: options.{key} of {spec.name}: unknown key; {cure}"
            raise CatalogError(msg)


def match_files(path: str) -> list[str]:
    """Return the local files that a path or glob means, sorted."""
    if Path(path).exists():
        return [path]
    return sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute one)


def require_credentials(specs: Iterable[SourceSpec]) -> None:
    """Raise ConfigError unless every credential that the sources need is in the environment.

    Only names are looked at: a value is read where it is used, and nowhere else.
    """
    missing = [
        f"{spec.origin}: {spec.name} needs the environment variable {name}, which is not set"
        f"{f' ({spec.note.strip()})' if spec.note else ''}; set it, or remove the source"
        for spec in specs
        for name in spec.credentials
        if not os.environ.get(name)
    ]
    if missing:
        raise ConfigError("\n".join(missing))
