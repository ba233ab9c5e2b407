"""Catalogs: where each variable comes from, read from YAML into frozen source descriptions.

A catalog is one YAML file, shipped with smgrid or written by the user. Everything that can be wrong
with it is found when it is opened, with file, line and cure, before anything is downloaded.
``python -m smgrid.catalog`` prints the JSON Schema that editors check such files with.
"""

import glob
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from pyproj import CRS
from pyproj.exceptions import CRSError

from smgrid.catalogtext import (
    CATALOG_VERSION,
    CatalogText,
    Convention,
    Signing,
    SourceText,
)
from smgrid.errors import CatalogError, MissingDependencyError, SourceError
from smgrid.schema import catalog_folder, load_variables
from smgrid.yamltext import Location, YamlText, check_model, read_yaml, suggest

_URL = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]*://|/vsi)")
_ENVIRONMENT = re.compile(r"\$\{(\w+)\}")


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
    """Sources of the same catalog that fill the dates which this one lacks, in order."""
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


@dataclass(frozen=True)
class Catalog:
    """The sources of one catalog file."""

    name: str
    """Short name."""
    title: str
    """One line for people."""
    sources: Mapping[str, SourceSpec]
    """By their names in the file."""
    path: Path
    """The file."""

    def provider_of(self, variable: str) -> SourceSpec:
        """Return the source of `variable`; CatalogError if the catalog has none."""
        for spec in self.sources.values():
            if variable in spec.provides:
                return spec
        provided = [name for spec in self.sources.values() for name in spec.provides]
        msg = (
            f"{self.path.name}: no source provides {variable!r} (it has {', '.join(provided)}); "
            f"add a source with provides: [{variable}]"
        )
        raise CatalogError(msg)


def open_catalog(name_or_path: str | os.PathLike[str]) -> Catalog:
    """Open a catalog.

    Parameters
    ----------
    name_or_path
        A bare name such as ``"planetary-computer"`` for one that ships with smgrid, or the path
        of a YAML file.

    Raises
    ------
    CatalogError
        If anything in it is not understood or does not exist; the message lists file, line and
        cure.
    """
    text = read_yaml(_to_path(name_or_path), error=CatalogError)
    if not isinstance(text.data, dict):
        raise text.mistake((), f"is not a catalog; start with smgrid_catalog: {CATALOG_VERSION}")
    if text.data.get("smgrid_catalog") != CATALOG_VERSION:
        found = text.data.get("smgrid_catalog", "nothing")
        problem = f"expected version {CATALOG_VERSION}, found {found}; this smgrid reads no other"
        raise text.mistake(("smgrid_catalog",), problem)
    model = check_model(text, CatalogText)
    sources = {name: _to_spec(text, name, source) for name, source in model.sources.items()}
    _refuse_two_providers(text, sources)
    return Catalog(name=model.name, title=model.title, sources=sources, path=text.path)


def find_files(spec: SourceSpec) -> tuple[str, ...]:
    """Return the files of ``spec.paths``, globs expanded and sorted, each once; URLs as they are.

    Raises
    ------
    SourceError
        If a local path or glob matches nothing.
    """
    found: dict[str, None] = {}
    for path in spec.paths:
        matches = [path] if is_url(path) else _match(path)
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


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a catalog file, made from the models that check it."""
    schema = CatalogText.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _to_path(name_or_path: str | os.PathLike[str]) -> Path:
    path = Path(name_or_path)
    if path.suffix in {".yml", ".yaml"} or len(path.parts) > 1:
        return path
    shipped = catalog_folder() / f"{path}.yml"
    if shipped.is_file() and path.name != "variables":
        return shipped
    names = sorted(p.stem for p in catalog_folder().glob("*.yml") if p.stem != "variables")
    msg = (
        f"no catalog called {str(path)!r} ships with smgrid; {suggest(str(path), names)}; "
        "for your own, give the path of its .yml file"
    )
    raise CatalogError(msg)


def _to_spec(text: YamlText, name: str, source: SourceText) -> SourceSpec:
    here: Location = ("sources", name)
    _check_names(text, here, source)
    paths = [
        _anchor(text, (*here, "paths", number), path) for number, path in enumerate(source.paths)
    ]
    assets = dict(source.assets)
    if not source.stac and not source.paths:
        assets = {key: _anchor(text, (*here, "assets", key), path) for key, path in assets.items()}
    stac = None
    if source.stac:
        href = _anchor(text, (*here, "stac", "href"), source.stac.href)
        stac = StacQuery(**(source.stac.model_dump() | {"href": href}))
    fields = source.model_dump() | {
        "name": name,
        "provides": tuple(source.provides),
        "credentials": tuple(source.credentials),
        "fallbacks": tuple(source.fallbacks),
        "paths": tuple(paths),
        "assets": assets,
        "stac": stac,
        "native_resolution": source.native_resolution or 0.0,
        "origin": text.where(here),
    }
    spec = SourceSpec(**fields)
    resolve_loader(spec)
    return spec


def _check_names(text: YamlText, here: Location, source: SourceText) -> None:
    variables = load_variables()
    for number, name in enumerate(source.provides):
        if name not in variables:
            problem = f"{name!r} is not a variable of smgrid; {suggest(name, list(variables))}"
            raise text.mistake((*here, "provides", number), problem)
    known = [*source.provides, *source.assets]
    for table in ("units", "scale", "offset"):
        for key in getattr(source, table):
            if key not in known:
                problem = f"is neither in provides nor in assets; {suggest(key, known)}"
                raise text.mistake((*here, table, key), problem)
    if {"vv", "vh"} & set(source.provides) and source.convention is None:
        problem = "is missing; backscatter is either sigma0 or gamma0, see the provider's guide"
        raise text.mistake((*here, "convention"), problem)
    series = [name for name in source.provides if variables[name].kind == "series"]
    if series and source.native_resolution is None:
        problem = f"is missing; {series[0]} is kept near the provider's pixel size, give it [m]"
        raise text.mistake((*here, "native_resolution"), problem)
    if source.crs is not None:
        _check_crs(text, (*here, "crs"), source.crs)
    if source.first_day and source.last_day and source.first_day > source.last_day:
        raise text.mistake((*here, "last_day"), f"is before first_day ({source.first_day})")


def _check_crs(text: YamlText, location: Location, crs: str) -> None:
    try:
        CRS.from_user_input(crs)
    except CRSError as cause:
        problem = f"{crs!r} is not a CRS; write EPSG:<code>, ESRI:<code> or WKT"
        raise text.mistake(location, problem) from cause


def _anchor(text: YamlText, location: Location, path: str) -> str:
    """Return `path` with the environment filled in, absolute, and known to exist if local."""
    for variable in _ENVIRONMENT.findall(path):
        if variable not in os.environ:
            problem = f"the environment variable {variable} is not set; set it before opening"
            raise text.mistake(location, problem)
    path = _ENVIRONMENT.sub(lambda match: os.environ[match[1]], path)
    if is_url(path):
        return path
    folder = str(text.path.absolute().parent)
    folder = glob.escape(folder) if glob.has_magic(path) else folder
    absolute = os.path.normpath(Path(folder, Path(path).expanduser()))
    if not _match(absolute):
        problem = f"no file matches {absolute}; correct it or create the file"
        raise text.mistake(location, problem)
    return absolute


def _match(path: str) -> list[str]:
    if Path(path).exists():
        return [path]
    return sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute one)


def _refuse_two_providers(text: YamlText, sources: Mapping[str, SourceSpec]) -> None:
    owners: dict[str, SourceSpec] = {}
    for spec in sources.values():
        for number, name in enumerate(spec.provides):
            if name in owners:
                first = owners[name]
                problem = (
                    f"{name!r} is provided by {first.name} ({first.origin}) as well; "
                    "remove it from one of them"
                )
                raise text.mistake(("sources", spec.name, "provides", number), problem)
            owners[name] = spec


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
