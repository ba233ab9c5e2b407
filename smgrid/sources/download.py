"""Whole files for formats that GDAL does not read by ranges: fetched once, complete or not at all.

A file arrives under its name only when its length and kind are right, so that whatever stands in
the cache can be read. Files that their providers replace are asked about again after a while, see
`smgrid.sources.revalidation`. Credentials are taken from the environment when a request is made; no
message carries them, nor the query of a URL, which may be a signature.
"""

import filecmp
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import NoReturn
from urllib.parse import parse_qsl, urlencode, urlsplit

import h5py
import requests
from filelock import FileLock
from requests.auth import AuthBase

from smgrid.cache import cache_folder
from smgrid.catalog import is_url
from smgrid.catalogtext import Signing
from smgrid.errors import AssetError, SourceError
from smgrid.sources.retry import asked_wait, redact, retry_pauses
from smgrid.sources.revalidation import (
    FILE_MODE_VARIABLE,
    Note,
    is_good,
    keep_copy,
    read_note,
    write_note,
)
from smgrid.sources.signing import (
    EARTHDATA_VARIABLE,
    earthdata_headers,
    forget_token,
    sign_href,
)

_log = logging.getLogger(__name__)

# Waits before each new attempt [s].
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_TIMEOUTS = (20.0, 120.0)  # to connect, and between two pieces of the answer [s]
_BLOCK = 1 << 16  # of a block that breaks off nothing is kept
_PASSING = frozenset({408, 425, 429, *range(500, 600)})
_REFUSED = frozenset({401, 403})
_HDF5 = (".h5", ".he5", ".hdf5")
# Parameters that sign a URL (Azure, S3, Google, CloudFront): the file is the same without them.
_SIGNATURE = re.compile(
    r"^(x-(amz|goog)-.*|s[eiprtv]|sig|sip|spr|srt|sdd|sk(oid|tid|t|e|s|v)|(sao|suo|sc)id|signature"
    r"|token|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid)$",
    re.IGNORECASE,
)
# Hosts that this process gave up on and that have not answered since.
_SILENT: set[str] = set()


def fetch(href: str, *, sign: Signing, origin: str, max_age: timedelta | None = None) -> Path:
    """Return a file of the local disk: `href` itself, or its copy in the cache.

    Parameters
    ----------
    href
        Local path, which is returned as it is, or an ``http(s)`` URL. A URL is the same file
        whatever signature its query carries.
    sign
        How the request is authorised: a URL signed by the Planetary Computer, or the bearer token
        of Earthdata Login in the environment variable ``EARTHDATA_TOKEN``.
    origin
        Where the source was written, for messages.
    max_age
        How long a copy is good without asking the server; ``None`` (default) for good, which is
        right for files whose name carries their version.

    Raises
    ------
    SourceError
        If the file cannot be had: it does not exist, access is refused, the server fails again
        and again, what comes is not the file, or the cache cannot be written. Also if there is a
        newer version that cannot be had: the older one stays in the cache.
    ConfigError
        If ``SMGRID_FILE_CACHE`` is not understood.

    Notes
    -----
    Several threads and processes may ask for one file: one of them downloads it and the others
    wait. A transfer that breaks off is resumed where the server allows it.

    A copy that was last checked more than `max_age` ago is asked for on the condition that it has
    changed (RFC 9110, 13.1): one request, and one transfer if it has. Where the server states
    neither ETag nor Last-Modified, the file is transferred again, because another version can
    have the same length. Where the check cannot be made, the copy is used, with a warning;
    ``SMGRID_FILE_CACHE`` changes that, see `smgrid.sources.revalidation`.

    A new version takes the name of the old one. Who has that one open goes on reading it; who
    keeps the path to open it again must be ready to find another version there.
    """
    if not is_url(href):
        return Path(href)
    if not href.startswith(("http://", "https://")):
        msg = f"{redact(href)} cannot be fetched; {origin} needs local files or https URLs"
        raise SourceError(msg)
    path = cached_path(href)
    if not is_good(path, max_age):
        transfer = _Transfer(href, sign, origin, path)
        try:
            _bring(transfer, max_age)
        except SourceError as failure:
            if transfer.outdated:
                raise
            keep_copy(path, redact(href), failure)
    return path


def cached_path(href: str) -> Path:
    """Return where the cache keeps the file of a URL, whether it is there or not."""
    parts = urlsplit(href)
    query = [pair for pair in parse_qsl(parts.query, True) if not _SIGNATURE.match(pair[0])]
    identity = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}?{urlencode(query)}"
    name = re.sub(r"[^\w.+-]", "_", parts.path.rpartition("/")[2]) or "file"
    return cache_folder("files", hashlib.sha256(identity.encode()).hexdigest()[:24], name)


def forget(path: str | os.PathLike[str]) -> None:
    """Remove a file from the cache that turned out to be damaged; others are left alone."""
    file = Path(path).absolute()
    if file.is_relative_to(cache_folder("files").absolute()):
        file.unlink(missing_ok=True)


@dataclass
class _Transfer:
    """One file on its way: what is asked for, what is there and what came so far."""

    href: str
    sign: Signing
    origin: str
    path: Path
    known: Note = field(default_factory=Note)
    """Of the copy that is there, if one is."""
    note: Note = field(default_factory=Note)
    """Of the version on its way, or of the copy once it is confirmed."""
    validator: str = ""
    """Of what came so far."""
    outdated: bool = False
    """Whether the server said that it has another version than the copy."""

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def host(self) -> str:
        return urlsplit(self.href).netloc

    @property
    def received(self) -> int:
        """Bytes that a resumed request need not ask for again."""
        return self.part.stat().st_size if self.validator and self.part.exists() else 0


class _PassingError(Exception):
    """A failure that may be gone at the next attempt."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Headers(AuthBase):
    """Headers that count as credentials: a ``.netrc`` must not replace them."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        r.headers.update(self._headers)
        return r


def _bring(transfer: _Transfer, max_age: timedelta | None) -> None:
    """Download a file, or its newer version, unless another thread or process has done it."""
    path = transfer.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            if not is_good(path, max_age):
                if path.exists():
                    transfer.known = read_note(path)
                _download(transfer)
    except OSError as cause:
        msg = (
            f"{redact(transfer.href)} cannot be kept in {path.parent} ({cause.strerror or cause}); "
            "make room there, or set SMGRID_CACHE to a folder that can be written"
        )
        raise SourceError(msg) from cause


def _download(transfer: _Transfer) -> None:
    # Who has a copy does not wait again and again for a host that is down.
    patient = transfer.host not in _SILENT or not transfer.path.exists()
    pauses = retry_pauses(_PAUSES) if patient else ()
    try:
        for attempt, pause in enumerate((*pauses, None), 1):
            try:
                if _receive(transfer):
                    _check_kind(transfer)
                    _publish(transfer)
                write_note(transfer.path, transfer.note)
                _SILENT.discard(transfer.host)
                return
            except _PassingError as failure:
                reason, wait = str(failure), failure.wait
            if pause is None:
                if not transfer.outdated:  # else it did answer
                    _SILENT.add(transfer.host)
                raise _given_up(transfer, reason, attempt)
            wait = max(wait, pause)
            name = redact(transfer.href)
            _log.warning(
                "%s: %s; attempt %d of %d, again in %.1f s",
                *(name, reason, attempt, len(pauses) + 1, wait),
            )
            time.sleep(wait)
    finally:
        transfer.part.unlink(missing_ok=True)


def _receive(transfer: _Transfer) -> bool:
    """Write what is missing of a file behind what came; return False if the copy still holds."""
    url, auth = _authorise(transfer)
    start = transfer.received
    conditions = {} if start else transfer.known.conditions
    headers = {"Accept-Encoding": "identity", **conditions}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": transfer.validator}
    try:
        with requests.get(
            url, headers=headers, auth=auth, stream=True, timeout=_TIMEOUTS
        ) as answer:
            if answer.status_code == 304 and conditions:
                transfer.note = replace(transfer.known, checked=time.time())
                return False
            _check_answer(transfer, answer, start, url)
            if answer.status_code == 200:
                transfer.note = Note.from_answer(answer)
                # A server may state the version of the copy and send it nevertheless.
                transfer.outdated = transfer.known.conditions not in ({}, transfer.note.conditions)
            expected = _write(transfer, answer)
    except requests.RequestException as cause:
        _translate(transfer, cause)
    size = transfer.part.stat().st_size
    if expected is not None and size != expected:
        msg = f"{size} of {expected} bytes came"
        raise _PassingError(msg)
    return True


def _write(transfer: _Transfer, answer: requests.Response) -> int | None:
    """Write what an answer brings; return the bytes of the whole file, where they are stated."""
    expected = _total(answer)
    _check_space(transfer, expected)
    transfer.validator = _validator(answer)
    with transfer.part.open("ab" if answer.status_code == 206 else "wb") as file:
        for block in answer.iter_content(_BLOCK):
            file.write(block)
    return expected


def _publish(transfer: _Transfer) -> None:
    """Give what came its name; a copy of the same content stays as it is, its times included."""
    path = transfer.path
    if not (path.exists() and filecmp.cmp(transfer.part, path, shallow=False)):
        transfer.part.replace(path)


def _authorise(transfer: _Transfer) -> tuple[str, AuthBase | None]:
    """Return the URL and credentials of a request that is made now."""
    if transfer.sign == "earthdata":
        headers = earthdata_headers(transfer.href, origin=transfer.origin)
        return transfer.href, _Headers(headers) if headers else None
    return sign_href(transfer.href, transfer.sign), None


def _check_answer(transfer: _Transfer, answer: requests.Response, start: int, url: str) -> None:
    status = answer.status_code
    if status in _REFUSED:
        if transfer.sign != "planetary-computer":
            raise _refusal(transfer, f"HTTP {status}")
        forget_token(transfer.href, url)
    if status in _PASSING or status in _REFUSED:
        reason = f"HTTP {status}"
        raise _PassingError(reason, asked_wait(answer))
    came = answer.headers.get("Content-Range", "")
    if status == 416 or (status == 206 and not (start and came.startswith(f"bytes {start}-"))):
        transfer.validator = ""  # start again from nothing
        reason = f"another range than asked for ({came or 'HTTP 416'})"
        raise _PassingError(reason)
    if status not in (200, 206):
        raise _unusable(transfer, f"HTTP {status}")
    kind = answer.headers.get("Content-Type", "")
    if kind.startswith("text/html") and not transfer.href.endswith((".html", ".htm")):
        raise _refusal(transfer, "a web page came instead of the file")


def _check_kind(transfer: _Transfer) -> None:
    """Refuse what is a page of a server or no HDF5 file, whatever the headers said."""
    name = transfer.path.name.lower()
    with transfer.part.open("rb") as file:
        head = file.read(256).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")) and not name.endswith((".html", ".htm")):
        raise _refusal(transfer, "a web page came instead of the file")
    if name.endswith(_HDF5) and not h5py.is_hdf5(transfer.part):
        transfer.validator = ""
        raise _PassingError("what came is not HDF5")


def _check_space(transfer: _Transfer, expected: int | None) -> None:
    free = shutil.disk_usage(transfer.part.parent).free + transfer.received
    if expected is not None and expected > free:
        msg = (
            f"{redact(transfer.href)} has {expected / 1e6:.1f} MB, but {transfer.part.parent} has "
            f"{free / 1e6:.1f} MB left; make room there, or set SMGRID_CACHE to another disk"
        )
        raise SourceError(msg)


def _refusal(transfer: _Transfer, reason: str) -> AssetError:
    cures: Mapping[Signing, str] = {
        "none": f"it needs credentials: correct stac.sign in {transfer.origin}",
        "planetary-computer": "try again later, or set PC_SDK_SUBSCRIPTION_KEY",
        "earthdata": (
            f"the token in {EARTHDATA_VARIABLE} has expired, or its account has not authorised "
            "the provider's application: make a new one at https://urs.earthdata.nasa.gov"
        ),
    }
    return _failure(transfer, f"was refused ({reason}); {cures[transfer.sign]}", reason)


def _unusable(transfer: _Transfer, reason: str) -> AssetError:
    cure = f"it does not exist or has moved, correct {transfer.origin}"
    return _failure(transfer, f"cannot be fetched ({reason}); {cure}", reason)


def _given_up(transfer: _Transfer, reason: str, attempts: int) -> AssetError:
    cure = f"try again later or correct {transfer.origin}"
    text = f"could not be fetched in {attempts} attempts ({reason}); {cure}"
    return _failure(transfer, text, reason, attempts)


def _failure(transfer: _Transfer, text: str, reason: str, attempts: int = 1) -> AssetError:
    name = redact(transfer.href)
    if transfer.path.exists():
        text += f"; an older copy is in the cache: set {FILE_MODE_VARIABLE}=stale to use it"
    return AssetError(f"{name} {text}", asset=name, attempts=attempts, reason=reason)


def _translate(transfer: _Transfer, cause: requests.RequestException) -> NoReturn:
    """Raise the error of a request without its text, which may hold a signed URL."""
    if isinstance(cause, requests.Timeout):
        raise _PassingError("timed out") from None
    if isinstance(cause, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
        raise _PassingError("the connection failed or broke off") from None
    raise _unusable(transfer, type(cause).__name__) from None


def _total(answer: requests.Response) -> int | None:
    """Return the bytes of the whole file, where the server states them."""
    part_of = answer.headers.get("Content-Range", "").rpartition("/")[2]
    stated = part_of if answer.status_code == 206 else answer.headers.get("Content-Length", "")
    return int(stated) if stated.isdigit() else None


def _validator(answer: requests.Response) -> str:
    """Return what tells one version of a file from another, strongly enough to resume."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")
