"""The answers of STAC searches on disk, so that a rerun needs no search.

One file per part of a search (API, collection, region, span of at most a month, conditions) below
``cache_folder("search")``. An answer is kept for 30 days if its span had been over for 30 days
when it was given, or if the search had no span; otherwise for six hours, since providers are still
adding to it. The environment variable ``SMGRID_SEARCH_CACHE`` changes that:

``on``
    As described; the default.
``off``
    Nothing is read from the cache or written to it.
``refresh``
    Everything is searched again and written.
``stale``
    Answers are used whatever their age.

Deleting the folder clears the cache. Items are kept as the API gives them: unsigned. An answer
whose URLs carry signatures is not kept.
"""

import gzip
import hashlib
import json
import logging
import os
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from smgrid.cache import cache_folder
from smgrid.errors import ConfigError
from smgrid.sourcespec import SIGNED
from smgrid.yamltext import suggest

CACHE_MODE_VARIABLE = "SMGRID_SEARCH_CACHE"
"""Environment variable that says how the cache is used."""

Document = dict[str, Any]

_log = logging.getLogger(__name__)

_MODES = ("on", "off", "refresh", "stale")
_FORMAT = 1
_HOUR, _DAY = 3600.0, 86400.0
_SETTLED_AFTER = 30 * _DAY
_KEPT_SETTLED = 30 * _DAY
_KEPT_RECENT = 6 * _HOUR
_FORGOTTEN = 60 * _DAY
_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error)


@dataclass(frozen=True)
class SearchKey:
    """What one part of a search asked for."""

    href: str
    """Root URL of the API."""
    collection: str
    bbox: tuple[float, ...]
    """West, south, east, north [degree]."""
    span: tuple[str, str] | None
    """First and last moment, ISO, UTC."""
    conditions: Mapping[str, Any]
    """On the properties."""

    @property
    def path(self) -> Path:
        """File of its answer."""
        text = json.dumps([_FORMAT, asdict(self)], sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:40]
        return cache_folder("search") / f"{name}.json.gz"


def read_answer(key: SearchKey) -> list[Document] | None:
    """Return the items of an earlier search that still holds, or None.

    A file that is damaged counts as none, with a line in the log.

    Raises
    ------
    ConfigError
        If ``SMGRID_SEARCH_CACHE`` is not understood.
    """
    mode = _mode()
    if mode in ("off", "refresh"):
        return None
    answer = _read(key)
    if answer is None:
        return None
    return (
        answer["items"]
        if mode == "stale" or _holds(key, answer["searched"], found=bool(answer["items"]))
        else None
    )


def write_answer(key: SearchKey, items: Sequence[Document]) -> None:
    """Keep what a search found; where the cache cannot be written, go on with a line in the log."""
    if _mode() == "off":
        return
    if any(SIGNED.search(href) for item in items for href in _hrefs(item)):
        _log.info("%s gives URLs that are signed; its answer is not kept", key.collection)
        return
    path = key.path
    content = json.dumps({"searched": time.time(), "items": list(items)}).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first: other processes see the whole file or none.
        descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(gzip.compress(content))
            Path(part).replace(path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        _forget_old(path.parent)
    except OSError as cause:
        _log.warning("the search cache %s cannot be written (%s)", path.parent, cause.strerror)


def offer_stale(key: SearchKey) -> str:
    """Return how an answer that is too old may be used after all, for a message; "" if none is."""
    answer = _read(key) if _mode() == "on" else None
    if answer is None:
        return ""
    day = pd.Timestamp(answer["searched"], unit="s").strftime("%Y-%m-%d %H:%M")
    return (
        f"; the answer of {day} UTC is still in the cache: set {CACHE_MODE_VARIABLE}=stale to use "
        "answers of any age"
    )


def _mode() -> str:
    mode = os.environ.get(CACHE_MODE_VARIABLE) or "on"
    if mode not in _MODES:
        msg = f"{CACHE_MODE_VARIABLE} is {mode!r}; {suggest(mode, _MODES)}"
        raise ConfigError(msg)
    return mode


def _read(key: SearchKey) -> Document | None:
    path = key.path
    try:
        answer = json.loads(gzip.decompress(path.read_bytes()))
        if not all(isinstance(item["assets"], dict) for item in answer["items"]):
            raise TypeError("items without assets")
        return {"searched": float(answer["searched"]), "items": answer["items"]}
    except FileNotFoundError:
        return None
    except _DAMAGED as cause:
        _log.warning("%s in the search cache is damaged (%s); searching again", path.name, cause)
        return None


def _holds(key: SearchKey, searched: float, *, found: bool) -> bool:
    # Nothing found may be an index that is out of order: not believed for long.
    end = pd.Timestamp(key.span[1], tz="UTC").timestamp() if key.span else 0.0
    kept = _KEPT_SETTLED if searched >= end + _SETTLED_AFTER else _KEPT_RECENT
    return 0 <= time.time() - searched < (kept if found else _KEPT_RECENT)


def _hrefs(item: Document) -> list[str]:
    parts = [*item.get("assets", {}).values(), *item.get("links", [])]
    return [str(part.get("href", "")) for part in parts]


def _forget_old(folder: Path) -> None:
    """Remove answers, and what killed processes left, that no rule would use."""
    for path in folder.iterdir():
        try:
            if time.time() - path.stat().st_mtime > _FORGOTTEN:
                path.unlink()
        except FileNotFoundError:  # another process was faster
            continue
