"""How long a copy in the cache is used before its provider is asked whether it still holds.

Beside a copy lies a note: when the provider was last asked, and what tells the version of the copy
from others (ETag and Last-Modified, RFC 9110, 8.8). It holds no URL and no credential. The
environment variable ``SMGRID_FILE_CACHE`` changes when a provider is asked about copies that can
be replaced; those that are good for good are not concerned.

``on``
    When the copy was last checked longer ago than its reader allows; the default. Where the check
    cannot be made, the copy is used, with a warning in the log.
``refresh``
    Once in every process, whatever the age. Where the check cannot be made, it is an error.
``stale``
    Never: copies are used whatever their age.
"""

import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import requests

from smgrid.errors import AssetError, ConfigError, SourceError
from smgrid.yamltext import suggest

FILE_MODE_VARIABLE = "SMGRID_FILE_CACHE"
"""Environment variable that says when providers are asked about copies."""

_log = logging.getLogger(__name__)

_MODES = ("on", "refresh", "stale")
_DAY_S = 86400.0
# When this process last asked about a copy [s since 1970], in vain or not.
_ASKED: dict[Path, float] = {}


@dataclass(frozen=True)
class Note:
    """What is known of a copy."""

    checked: float = 0.0
    """When its provider last stated or confirmed it [s since 1970]."""
    etag: str = ""
    modified: str = ""

    @classmethod
    def from_answer(cls, answer: requests.Response) -> "Note":
        """Return the note of the version that an answer brings."""
        headers = answer.headers
        return cls(time.time(), headers.get("ETag", ""), headers.get("Last-Modified", ""))

    @property
    def conditions(self) -> dict[str, str]:
        """Headers that ask for another version only; none if this one has no validator."""
        stated = {"If-None-Match": self.etag, "If-Modified-Since": self.modified}
        return {name: value for name, value in stated.items() if value}


def is_good(path: Path, max_age: timedelta | None) -> bool:
    """Return whether a copy is there and can be used without asking its provider.

    Parameters
    ----------
    path
        Where the copy lies.
    max_age
        How long it is good after it was checked; ``None`` for good.

    Raises
    ------
    ConfigError
        If ``SMGRID_FILE_CACHE`` is not understood.
    """
    if not path.exists():
        return False
    if max_age is None:
        return True
    mode = _mode()
    if mode == "stale":
        return True
    checked = _ASKED.get(path, 0.0)
    if mode == "on":
        checked = max(checked, read_note(path).checked)
    return 0 <= time.time() - checked < max_age.total_seconds()


def read_note(path: Path) -> Note:
    """Return the note of a copy; without one, the copy was last checked when it was written."""
    try:
        stated = json.loads(_beside(path).read_text())
        return Note(float(stated["checked"]), str(stated["etag"]), str(stated["modified"]))
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as cause:
        _log.warning("the note of %s in the cache is damaged (%s)", path.name, cause)
    return Note(path.stat().st_mtime if path.exists() else 0.0)


def write_note(path: Path, note: Note) -> None:
    """Keep the note of a copy, which must lie there already.

    In this order: what is interrupted between both leaves an old note, which costs one transfer; a
    new note beside an old copy would keep that copy for good.
    """
    target = _beside(path)
    part = target.with_name(f"{target.name}.part")
    part.write_text(json.dumps(asdict(note)))
    part.replace(target)
    _ASKED[path] = time.time()


def keep_copy(path: Path, name: str, failure: SourceError) -> None:
    """Go on with a copy that could not be checked, with a warning, or raise `failure`.

    Parameters
    ----------
    path
        Where the copy lies; `failure` is raised if there is none.
    name
        What the log calls it: its URL without the query.
    failure
        Why it could not be checked; raised with ``SMGRID_FILE_CACHE=refresh``.
    """
    if not path.exists() or _mode() == "refresh":
        raise failure
    reason = failure.reason if isinstance(failure, AssetError) else str(failure)
    _log.warning(
        "%s could not be checked for a newer version (%s); its copy, last checked %.1f days ago, "
        "is used",
        *(name, reason, (time.time() - read_note(path).checked) / _DAY_S),
    )
    _ASKED[path] = time.time()


def _mode() -> str:
    mode = os.environ.get(FILE_MODE_VARIABLE) or "on"
    if mode not in _MODES:
        msg = f"{FILE_MODE_VARIABLE} is {mode!r}; {suggest(mode, _MODES)}"
        raise ConfigError(msg)
    return mode


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.checked.json")
