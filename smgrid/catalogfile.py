"""One catalog file becomes source descriptions; every mistake is told with its line."""

import glob
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyproj import CRS
from pyproj.exceptions import CRSError

from smgrid.catalogtext import CATALOG_VERSION, CatalogText, SourceText
from smgrid.errors import CatalogError
from smgrid.schema import load_variables
from smgrid.sourcespec import SIGNED, SourceSpec, StacQuery, is_url, match_files, resolve_loader
from smgrid.yamltext import Location, YamlText, check_model, read_yaml, suggest

_ENVIRONMENT = re.compile(r"\$\{(\w+)\}")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY", re.IGNORECASE)
_PASSWORD = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/@]*:[^/@]*@")


@dataclass(frozen=True)
class CatalogFile:
    """A catalog file whose form is right; what its sources point to has not been looked for."""

    text: YamlText
    """Where everything stands in it."""
    model: CatalogText
    """Its content."""
    chosen: tuple[str, ...]
    """Sources that were asked for, with those that stand in for them, in the file's order."""

    @property
    def credentials(self) -> frozenset[str]:
        """Environment variables that hold secrets, of all sources of the file."""
        return frozenset(
            name for source in self.model.sources.values() for name in source.credentials
        )

    def to_specs(self, secrets: Collection[str]) -> dict[str, SourceSpec]:
        """Return the chosen sources, all files and loaders found.

        Parameters
        ----------
        secrets
            Environment variables that no path may name.

        Raises
        ------
        CatalogError
            If a name, file or loader is not known, or a path would hold a secret.
        """
        return {
            name: _to_spec(self.text, name, self.model.sources[name], secrets)
            for name in self.chosen
        }


def read_catalog_file(path: Path, chosen: Collection[str] = ()) -> CatalogFile:
    """Read a catalog file and choose sources of it.

    Parameters
    ----------
    path
        The file.
    chosen
        Names of sources; what stands in for them comes along. All of them by default.

    Raises
    ------
    CatalogError
        If the file is not a catalog or has no source of such a name.
    """
    text = read_yaml(path, error=CatalogError)
    if not isinstance(text.data, dict):
        raise text.mistake((), f"is not a catalog; start with smgrid_catalog: {CATALOG_VERSION}")
    if text.data.get("smgrid_catalog") != CATALOG_VERSION:
        found = text.data.get("smgrid_catalog", "nothing")
        problem = f"expected version {CATALOG_VERSION}, found {found}; this smgrid reads no other"
        raise text.mistake(("smgrid_catalog",), problem)
    model = check_model(text, CatalogText)
    for name in chosen:
        if name not in model.sources:
            problem = f"has no source called {name!r}; {suggest(name, list(model.sources))}"
            raise text.mistake(("sources",), problem)
    wanted = _with_fallbacks(model.sources, chosen or model.sources)
    return CatalogFile(text, model, tuple(name for name in model.sources if name in wanted))


def _with_fallbacks(sources: Mapping[str, SourceText], names: Collection[str]) -> set[str]:
    wanted: set[str] = set()
    ahead = [name for name in names if name in sources]
    while ahead:
        name = ahead.pop()
        if name not in wanted:
            wanted.add(name)
            ahead += [other for other in sources[name].fallbacks if other in sources]
    return wanted


def _to_spec(text: YamlText, name: str, source: SourceText, secrets: Collection[str]) -> SourceSpec:
    here: Location = ("sources", name)
    _check_names(text, here, source)
    for key in ("paths", "assets", "stac", "options"):
        _refuse_secrets(text, (*here, key), source.model_dump()[key], secrets)

    def anchor(key: Location, path: str) -> str:
        return _anchor(text, (*here, *key), path)

    paths = [anchor(("paths", number), path) for number, path in enumerate(source.paths)]
    assets = dict(source.assets)
    if not source.stac and not source.paths:
        assets = {key: anchor(("assets", key), path) for key, path in assets.items()}
    stac = None
    if source.stac:
        href = anchor(("stac", "href"), source.stac.href)
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


def _refuse_secrets(
    text: YamlText, location: Location, value: Any, secrets: Collection[str]
) -> None:
    """Raise CatalogError if a text, or one in a table or list, would carry a secret."""
    if isinstance(value, Mapping | list):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in pairs:
            _refuse_secrets(text, (*location, key), item, secrets)
    if not isinstance(value, str):
        return
    for variable in _ENVIRONMENT.findall(value):
        if variable in secrets or _SECRET.search(variable):
            problem = (
                f"${{{variable}}} is a secret, and this is written to stores and logs; name it in "
                "credentials: of the source, whose loader takes it from the environment"
            )
            raise text.mistake(location, problem)
    if _PASSWORD.match(value) or SIGNED.search(value):
        problem = (
            "a URL with a password or signature ends up in stores and logs; use credentials: "
            "instead"
        )
        raise text.mistake(location, problem)


def _anchor(text: YamlText, location: Location, path: str) -> str:
    """Return `path` with the environment filled in, absolute, and known to exist if local."""
    for variable in _ENVIRONMENT.findall(path):
        if variable not in os.environ:
            problem = f"the environment variable {variable} is not set; set it before opening"
            raise text.mistake(location, problem)
    path = _ENVIRONMENT.sub(lambda match: os.environ[match[1]], path)
    _refuse_secrets(text, location, path, ())
    if is_url(path):
        return path
    folder = str(text.path.absolute().parent)
    folder = glob.escape(folder) if glob.has_magic(path) else folder
    absolute = os.path.normpath(Path(folder, Path(path).expanduser()))
    if not match_files(absolute):
        problem = f"no file matches {absolute}; correct it or create the file"
        raise text.mistake(location, problem)
    return absolute
