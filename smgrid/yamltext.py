"""YAML written by people: read strictly, checked by a pydantic model, errors with line numbers.

Values follow the YAML 1.2 core schema, so that ``17:32`` and ``2024-01-01`` stay text, ``1e-4`` is
a number and ``no`` is not a boolean.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from smgrid.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[str | int, ...]


class StrictModel(BaseModel):
    """Base of the models of hand-written YAML: unknown keys and coerced types are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


@dataclass(frozen=True)
class YamlText:
    """Content of a YAML file that still knows where each value stands."""

    path: Path
    """The file."""
    data: Any
    """Plain mappings, lists and scalars."""
    lines: Mapping[Location, int]
    """Line, from 1, of each key and list item by its path from the root."""
    error: type[ConfigError]
    """What a mistake in it is raised as."""

    def where(self, location: Location) -> str:
        """Return ``"file, line n"`` of a location, or of its nearest parent in the file."""
        while location and location not in self.lines:
            location = location[:-1]
        return f"{self.path.name}, line {self.lines.get(location, 1)}"

    def mistake(self, location: Location, problem: str) -> ConfigError:
        """Return the error that names file, line, key and `problem`."""
        key = ".".join(str(part) for part in location)
        return self.error(f"{self.where(location)}: {key + ': ' if key else ''}{problem}")


def read_yaml(path: Path, *, error: type[ConfigError] = ConfigError) -> YamlText:
    """Read one YAML file.

    Parameters
    ----------
    path
        The file.
    error
        What to raise when it is missing, not UTF-8, not YAML or gives a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        msg = f"{path}: cannot be read ({cause}); give an existing YAML file in UTF-8"
        raise error(msg) from cause
    try:
        loader = _CoreLoader(text)  # refuses control characters
        node = loader.get_single_node()
        lines = {} if node is None else dict(_index(node, ()))
        data = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as cause:
        mark = cause.problem_mark or cause.context_mark
        line = mark.line + 1 if mark else 1
        msg = f"{path.name}, line {line}: {cause.problem}; correct the YAML"
        raise error(msg) from cause
    except (yaml.YAMLError, RecursionError) as cause:
        msg = f"{path.name}: is not valid YAML ({cause})"
        raise error(msg) from cause
    return YamlText(path=path, data=data, lines=lines, error=error)


def check_model(text: YamlText, model: type[Model]) -> Model:
    """Return the content of `text` as `model`, or raise one error that lists every mistake."""
    if text.data is None:
        fields = model.model_fields.items()
        needed = [field.alias or name for name, field in fields if field.is_required()]
        keys = f"with the keys {', '.join(needed)}" if needed else "of keys to values, or {}"
        raise text.mistake((), f"the file is empty; expected a mapping {keys}")
    try:
        return model.model_validate(text.data)
    except ValidationError as cause:
        mistakes = [str(_to_mistake(text, model, details)) for details in cause.errors()]
        raise text.error("\n".join(mistakes)) from cause


def suggest(word: str, known: Sequence[str]) -> str:
    """Return a cure for an unknown `word`: the nearest of `known`, or all of them."""
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lowered, n=1)
    return (
        f"did you mean {lowered[near[0]]!r}?" if near else f"known are {', '.join(sorted(known))}"
    )


class _CoreLoader(yaml.SafeLoader):
    """SafeLoader with the YAML 1.2 core schema instead of the guesses of YAML 1.1."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own class attribute)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _CoreLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )
# PyYAML reads a leading zero as octal.
_CoreLoader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def _index(node: yaml.Node, location: Location) -> Iterator[tuple[Location, int]]:
    """Yield the line of every key and item below `node`; refuse a key that is given twice."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key should be a word or a number, found a list or mapping"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"the key {key.value!r} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
            below = (*location, key.value)
            yield below, key.start_mark.line + 1
            yield from _index(value, below)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            below = (*location, number)
            yield below, item.start_mark.line + 1
            yield from _index(item, below)


def _to_mistake(text: YamlText, model: type[BaseModel], details: ErrorDetails) -> ConfigError:
    location, kind = details["loc"], details["type"]
    if kind == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        return text.mistake(location, f"unknown key; {suggest(str(location[-1]), known)}")
    if kind == "missing":
        return text.mistake(location, "is missing; add it")
    problem = details["msg"].replace("Input should be", "should be")
    if kind == "string_type" and isinstance(details["input"], int | float):
        cure = f'write it in quotes: "{details["input"]}"'
        return text.mistake(location, f"{problem}, found {details['input']!r}; {cure}")
    return text.mistake(location, f"{problem}, found {details['input']!r}")


def _keys_at(model: type[BaseModel], location: Location) -> list[str]:
    """Return the keys that `model` knows at `location`, following nested models."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is not None:
            nested = _models_in(field.annotation)
            model = nested[0] if nested else model
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
