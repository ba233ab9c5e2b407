"""Catalogs: where each variable comes from, read from YAML into frozen source descriptions.

A catalog is one YAML file, shipped with smgrid or written by the user, or several of them together.
Everything that can be wrong with it is found when it is opened, with file, line and cure, before
anything is downloaded. ``python -m smgrid.catalog`` prints the JSON Schema that editors check such
files with.
"""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from smgrid.catalogfile import CatalogFile, read_catalog_file
from smgrid.catalogtext import CatalogText
from smgrid.errors import CatalogError
from smgrid.schema import catalog_folder
from smgrid.sourcespec import (
    SourceSpec,
    StacQuery,
    check_options,
    find_files,
    is_url,
    require_credentials,
    resolve_loader,
)
from smgrid.yamltext import YamlText, suggest

__all__ = [
    "Catalog",
    "CatalogName",
    "SourceSpec",
    "StacQuery",
    "check_options",
    "find_files",
    "is_url",
    "json_schema",
    "open_catalog",
    "require_credentials",
    "resolve_loader",
]

CatalogName: TypeAlias = str | os.PathLike[str]

# "earthdata:smap-l3,viirs" or "my/catalog.yml:soil": what follows the last colon chooses sources.
_CHOICE = re.compile(r"(?P<catalog>.*\.ya?ml|[^:/\\]+):(?P<sources>[^:/\\]+)")


@dataclass(frozen=True)
class Catalog:
    """The sources of one catalog file, or of several together."""

    name: str
    """Short name; those of all files, in order."""
    title: str
    """One line for people."""
    sources: Mapping[str, SourceSpec]
    """By their names, in the order of the files: those that are loaded, and those that only stand
    in for others (``fallbacks``)."""
    paths: tuple[Path, ...] = ()
    """The files."""
    opened_as: tuple[str, ...] = ()
    """What `open_catalog` opens it by, from any folder."""

    @property
    def loaded(self) -> tuple[SourceSpec, ...]:
        """Sources that are loaded themselves: all that stand in for no other."""
        standing_in = {name for spec in self.sources.values() for name in spec.fallbacks}
        return tuple(spec for name, spec in self.sources.items() if name not in standing_in)

    def provider_of(self, variable: str) -> SourceSpec:
        """Return the source of `variable`; CatalogError if the catalog has none."""
        for spec in self.loaded:
            if variable in spec.provides:
                return spec
        provided = [name for spec in self.loaded for name in spec.provides]
        msg = (
            f"{', '.join(path.name for path in self.paths) or self.name}: no source provides "
            f"{variable!r} (it has {', '.join(provided)}); "
            f"add a source with provides: [{variable}]"
        )
        raise CatalogError(msg)

    def chain_of(self, spec: SourceSpec) -> tuple[SourceSpec, ...]:
        """Return a source and all that stand in for it, in the order in which they are asked."""
        chain: dict[str, SourceSpec] = {}

        def add(one: SourceSpec) -> None:
            if one.name not in chain:
                chain[one.name] = one
                for name in one.fallbacks:
                    add(self.sources[name])

        add(spec)
        return tuple(chain.values())


def open_catalog(names: CatalogName | Sequence[CatalogName]) -> Catalog:
    """Open a catalog, or several as one.

    Parameters
    ----------
    names
        A bare name such as ``"planetary-computer"`` for one that ships with smgrid, or the path
        of a YAML file; or a sequence of them. ``"earthdata:smap-l3"`` takes only the sources
        named after the colon (separated by commas) and what stands in for them.

    Returns
    -------
    Catalog
        A variable comes from one source; others of it must be among its ``fallbacks``.

    Raises
    ------
    CatalogError
        If anything in it is not understood or does not exist; the message lists file, line and
        cure.
    """
    several = isinstance(names, Sequence) and not isinstance(names, str)
    listed: list[CatalogName] = list(names) if several else [names]  # type: ignore[arg-type,list-item]
    if not listed:
        msg = f"no catalog was given; name at least one, for instance {_shipped()[0]!r}"
        raise CatalogError(msg)
    files = [read_catalog_file(*_to_path_and_choice(name)) for name in listed]
    secrets = frozenset[str]().union(*(file.credentials for file in files))
    sources: dict[str, SourceSpec] = {}
    texts: dict[str, YamlText] = {}
    for file in files:
        _refuse_same_names(file, sources)
        sources |= file.to_specs(secrets)
        texts |= dict.fromkeys(file.chosen, file.text)
    catalog = Catalog(
        name=", ".join(dict.fromkeys(file.model.name for file in files)),
        title="; ".join(dict.fromkeys(file.model.title for file in files)),
        sources=sources,
        paths=tuple(dict.fromkeys(file.text.path for file in files)),
        opened_as=tuple(_from_anywhere(name) for name in listed),
    )
    _check_fallbacks(catalog, texts)
    _refuse_two_providers(catalog, texts)
    return catalog


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a catalog file, made from the models that check it."""
    schema = CatalogText.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _to_path_and_choice(name: CatalogName) -> tuple[Path, tuple[str, ...]]:
    match = _CHOICE.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        return _to_path(name), ()
    chosen = tuple(part.strip() for part in match["sources"].split(","))
    return _to_path(match["catalog"]), chosen


def _from_anywhere(name: CatalogName) -> str:
    """Return the name of a shipped catalog as it is, and a path absolute."""
    path, chosen = _to_path_and_choice(name)
    if path.parent == catalog_folder():
        return str(name)
    return f"{path.absolute()}:{','.join(chosen)}" if chosen else str(path.absolute())


def _to_path(name_or_path: CatalogName) -> Path:
    path = Path(name_or_path)
    if path.suffix in {".yml", ".yaml"} or len(path.parts) > 1:
        return path
    if path.name in _shipped():
        return catalog_folder() / f"{path}.yml"
    msg = (
        f"no catalog called {str(path)!r} ships with smgrid; {suggest(str(path), _shipped())}; "
        "for your own, give the path of its .yml file"
    )
    raise CatalogError(msg)


def _shipped() -> list[str]:
    return sorted(p.stem for p in catalog_folder().glob("*.yml") if p.stem != "variables")


def _refuse_same_names(file: CatalogFile, sources: Mapping[str, SourceSpec]) -> None:
    for name in file.chosen:
        if name in sources:
            problem = f"{sources[name].origin} has a source of that name as well; rename one"
            raise file.text.mistake(("sources", name), problem)


def _refuse_two_providers(catalog: Catalog, texts: Mapping[str, YamlText]) -> None:
    owners: dict[str, SourceSpec] = {}
    for spec in catalog.loaded:
        for number, name in enumerate(spec.provides):
            if name in owners:
                first = owners[name]
                problem = (
                    f"{name!r} is provided by {first.name} ({first.origin}) as well; remove it "
                    f"from one of them, choose sources (<catalog>:<source>,...), or name one in "
                    f"fallbacks: of the other"
                )
                where = ("sources", spec.name, "provides", number)
                raise texts[spec.name].mistake(where, problem)
            owners[name] = spec


def _check_fallbacks(catalog: Catalog, texts: Mapping[str, YamlText]) -> None:
    for spec in catalog.sources.values():
        for number, name in enumerate(spec.fallbacks):
            if problem := _wrong_fallback(catalog, spec, name):
                where = ("sources", spec.name, "fallbacks", number)
                raise texts[spec.name].mistake(where, problem)


def _wrong_fallback(catalog: Catalog, spec: SourceSpec, name: str) -> str:
    """Return why the source called `name` cannot stand in for `spec`; empty if it can."""
    if name not in catalog.sources:
        others = [other for other in catalog.sources if other != spec.name]
        return f"there is no source called {name!r}; {suggest(name, others)}"
    other = catalog.sources[name]
    if spec.name in _names_behind(catalog, other):
        return f"{name!r} stands in for {spec.name} and {spec.name} for it; remove one of the two"
    missing = [variable for variable in spec.provides if variable not in other.provides]
    if missing:
        return f"{name!r} ({other.origin}) does not provide {missing[0]!r}, as {spec.name} does"
    if other.kind != spec.kind:
        return f"{name!r} ({other.origin}) is of kind {other.kind}, {spec.name} of {spec.kind}"
    if other.convention != spec.convention:
        return (
            f"{name!r} ({other.origin}) is {other.convention}, {spec.name} is {spec.convention}; "
            "the two must not be mixed in one series"
        )
    return ""


def _names_behind(catalog: Catalog, spec: SourceSpec) -> set[str]:
    """Return the names of a source and of all that stand in for it, circles or not."""
    seen: set[str] = set()
    ahead = [spec.name]
    while ahead:
        name = ahead.pop()
        if name not in seen and name in catalog.sources:
            seen.add(name)
            ahead += catalog.sources[name].fallbacks
    return seen


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
