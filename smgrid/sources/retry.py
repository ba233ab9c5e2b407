"""How often something is tried again, how long it is waited for, and what may be said about it.

The waits before new attempts are drawn between half and one and a half of the stated ones, so that
workers which failed together do not come back together. The environment variable
``SMGRID_RETRY_PAUSES`` (seconds with commas between them, ``none`` for a single attempt) replaces
the stated ones, for searches and reads alike; workers read it for themselves.
"""

import logging
import os
import random
import re
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from smgrid.errors import ConfigError

PAUSES_VARIABLE = "SMGRID_RETRY_PAUSES"
"""Environment variable that replaces the waits between attempts."""

LONGEST_WAIT_S = 300.0
"""A server that asks for more than this [s] is asked again after this."""

_log = logging.getLogger(__name__)

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_PASSING_ERRORS = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)
# Before each new attempt at an API [s]: one that is down is given up after about a minute.
_API_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# No attempt at one request begins later than this after the first one [s].
_LAST_ATTEMPT_S = 300.0
_QUERY = re.compile(r"\?[^\s'\"?=]+=[^\s'\"]*")
_BEARER = re.compile(r"(Bearer )[^\s'\"]+")


def retry_pauses(stated: tuple[float, ...]) -> tuple[float, ...]:
    """Return the waits before each new attempt [s]: those of the environment, else `stated`.

    Raises
    ------
    ConfigError
        If ``SMGRID_RETRY_PAUSES`` holds anything but numbers of seconds.
    """
    text = os.environ.get(PAUSES_VARIABLE, "").strip()
    if text:
        try:
            stated = () if text == "none" else tuple(float(part) for part in text.split(","))
        except ValueError as cause:
            msg = (
                f"{PAUSES_VARIABLE} is {text!r}; write seconds with commas between them, such as "
                "1,4,15, or none"
            )
            raise ConfigError(msg) from cause
    return tuple(pause * random.uniform(0.5, 1.5) for pause in stated)


def asked_wait(answer: requests.Response) -> float:
    """Return what an answer's ``Retry-After`` asks for [s], at most `LONGEST_WAIT_S`; else 0.

    The header is a number of seconds or a date (RFC 9110, 10.2.3).
    """
    stated = answer.headers.get("Retry-After", "").strip()
    if stated.isdigit():
        return min(float(stated), LONGEST_WAIT_S)
    try:
        wait = (parsedate_to_datetime(stated) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0.0
    return min(max(wait, 0.0), LONGEST_WAIT_S)


def redact(text: str) -> str:
    """Return `text` without the queries of its URLs, which may be signatures, and tokens."""
    return _BEARER.sub(r"\1...", _QUERY.sub("", text))


def open_session() -> requests.Session:
    """Return a session whose requests are sent again after failures that may pass.

    Failures that may pass are a connection that cannot be made or breaks off, a time-out, and the
    statuses 408, 425, 429, 500, 502, 503 and 504. There are seven attempts, with waits of 1, 2, 4,
    8, 16 and 30 s between them or what ``Retry-After`` asks for; none begins more than five minutes
    after the first. Each failure is one line of the log.
    """
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _PatientAdapter())
    return session


class _PatientAdapter(HTTPAdapter):
    """Sends a request again after a failure that may pass."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        """Return the first answer that is final, or the last one; raise the last failure."""
        start = time.monotonic()
        pauses = retry_pauses(_API_PAUSES)
        for attempt, pause in enumerate((*pauses, None), 1):
            last = pause is None or time.monotonic() + pause - start > _LAST_ATTEMPT_S
            wait = pause or 0.0
            try:
                answer = super().send(request, *args, **kwargs)
                answer.content  # noqa: B018 (a body that breaks off is a failure, too)
            except _PASSING_ERRORS as cause:
                if last:
                    raise
                reason = redact(str(cause))
            else:
                if last or answer.status_code not in _PASSING:
                    return answer
                reason = f"HTTP {answer.status_code}"
                wait = max(wait, asked_wait(answer))
            place = redact(str(request.url))
            _log.warning(
                "%s: %s; attempt %d of %d, again in %.1f s",
                *(place, reason, attempt, len(pauses) + 1, wait),
            )
            time.sleep(wait)
        raise AssertionError  # the last attempt returns or raises
