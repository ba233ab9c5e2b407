"""What lets a request for a file through: signatures and tokens, made when the request is made.

A URL that is signed when a graph is built is dead about 45 minutes later. Tokens are kept per
process: one request for each container of the Planetary Computer, whatever number of threads ask,
and a new one before the old one expires. Tokens stand in no graph, cache, log or message.
"""

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qs, urlsplit

import requests

from smgrid.catalogtext import Signing
from smgrid.errors import AssetError
from smgrid.sources.retry import open_session, redact

EARTHDATA_VARIABLE = "EARTHDATA_TOKEN"
"""Environment variable that holds a bearer token of NASA's Earthdata Login."""

# Services that take the bearer token of Earthdata Login; it goes to no other host.
_EARTHDATA_SCHEMES = ("https",)
_EARTHDATA_HOSTS = (".earthdata.nasa.gov", ".earthdatacloud.nasa.gov", ".ecs.nsidc.org")
# A token of the Planetary Computer is renewed when this much of its life is left [s], or half.
_MARGIN_S = 300.0
_TIMEOUTS = (20.0, 60.0)  # to connect, and between two pieces of the answer [s]


def sign_href(href: str, sign: Signing) -> str:
    """Return the URL of a file as it can be read now.

    Parameters
    ----------
    href
        URL or path as the catalog gives it.
    sign
        ``"planetary-computer"`` adds a token to URLs of Azure's blob storage; all others are
        returned as they are (those of Earthdata are authorised by `earthdata_headers`).

    Raises
    ------
    AssetError
        If the Planetary Computer gives no token.
    """
    container = _container(href) if sign == "planetary-computer" else None
    return f"{href}?{_token(container, href)}" if container else href


def forget_token(href: str, signed: str) -> None:
    """Let the next `sign_href` ask for a new token, unless `signed` bears an older one already."""
    container = _container(href)
    if container:
        with _LOCK:
            held = _TOKENS.get(container)
            if held and signed.endswith(held.query):
                del _TOKENS[container]


def earthdata_headers(url: str, *, origin: str) -> Mapping[str, str]:
    """Return the header that authorises a request to a service of Earthdata; none for others.

    Parameters
    ----------
    url
        Where the request goes.
    origin
        Where the source was written, for messages.

    Raises
    ------
    AssetError
        If ``EARTHDATA_TOKEN`` is not set.
    """
    parts = urlsplit(url)
    host = f".{parts.hostname}"
    if parts.scheme not in _EARTHDATA_SCHEMES or not host.endswith(_EARTHDATA_HOSTS):
        return {}
    token = os.environ.get(EARTHDATA_VARIABLE, "").strip()
    if not token:
        msg = (
            f"{redact(url)} needs a token of NASA Earthdata Login ({origin}); make one at "
            f"https://urs.earthdata.nasa.gov and set the environment variable {EARTHDATA_VARIABLE}"
        )
        raise AssetError(msg, asset=redact(url), reason=f"{EARTHDATA_VARIABLE} is not set")
    return {"Authorization": f"Bearer {token}"}


@dataclass(frozen=True)
class _Token:
    query: str
    renewal: float
    """When a new one is due, on the clock of ``time.monotonic``."""


_TOKENS: dict[tuple[str, str], _Token] = {}
_FAILED: dict[tuple[str, str], tuple[float, str]] = {}
"""When the service last gave up on a token, and why."""
_LOCK = threading.Lock()


def _container(href: str) -> tuple[str, str] | None:
    """Return account and container of a URL that is to be signed, else None."""
    from planetary_computer import sas  # only sources that sign need it; its models are slow

    parts = urlsplit(href)
    is_blob = parts.netloc.endswith(sas.BLOB_STORAGE_DOMAIN)
    if not is_blob or parts.netloc.startswith("ai4edatasetspublicassets."):
        return None
    if {"st", "se", "sp"} & parse_qs(parts.query).keys():
        return None
    return parts.netloc.split(".")[0], parts.path.lstrip("/").split("/")[0]


def _token(container: tuple[str, str], href: str) -> str:
    began = time.monotonic()
    with _LOCK:
        held = _TOKENS.get(container)
        if held is not None and time.monotonic() < held.renewal:
            return held.query
        # Who waited while another thread asked in vain need not ask again at once.
        failed, reason = _FAILED.get(container, (0.0, ""))
        if failed < began:
            try:
                held = _TOKENS[container] = _request_token(container)
            except (requests.RequestException, KeyError, ValueError) as cause:
                reason = redact(str(cause))
                _FAILED[container] = time.monotonic(), reason
            else:
                return held.query
    msg = (
        f"{redact(href)} could not be signed by the Planetary Computer ({reason}); try again "
        "later, or set PC_SDK_SUBSCRIPTION_KEY if requests are being limited"
    )
    raise AssetError(msg, asset=redact(href), reason=f"no token ({reason})")


def _request_token(container: tuple[str, str]) -> _Token:
    """Ask the Planetary Computer for a token.

    Its own client asks once per thread, waits for an answer without end and retries for minutes.
    """
    from planetary_computer.settings import Settings

    settings = Settings()
    key = settings.subscription_key
    with open_session() as session:
        answer = session.get(
            f"{settings.sas_url}/{'/'.join(container)}",
            headers={"Ocp-Apim-Subscription-Key": key} if key else None,
            timeout=_TIMEOUTS,
        )
    answer.raise_for_status()
    document = answer.json()
    expiry = datetime.fromisoformat(document["msft:expiry"])
    # By the server's clock: this machine's may be wrong.
    date = answer.headers.get("Date")
    now = parsedate_to_datetime(date) if date else datetime.now(UTC)
    life = (expiry - now).total_seconds()
    return _Token(document["token"], time.monotonic() + life - min(_MARGIN_S, life / 2))
