"""How GDAL talks to servers: time-outs, retries, authorisation, and what of it reaches a log.

The options are set around every read, in the thread that reads, so that they hold on the workers of
a cluster as well. An environment variable of the same name on the worker comes before what stands
here, and the user's ``rasterio.Env`` around the loading before both.
"""

import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from smgrid.catalogtext import Signing
from smgrid.sources.retry import redact
from smgrid.sources.signing import earthdata_headers
from smgrid.sourcespec import SIGNED

# By itself GDAL retries nothing and waits for ever. A server that is silent costs 20 s per request
# and five requests per attempt at an asset.
_OPTIONS: Mapping[str, str] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "0.5",  # [s], doubled each time
    # 0 is a connection that was dropped or timed out. A refusal (401, 403) or an absent file (404)
    # is not asked for again with the same URL.
    "GDAL_HTTP_RETRY_CODES": "0,408,429,500,502,503,504",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_TIMEOUT": "120",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",  # [bytes/s], for LOW_SPEED_TIME [s]
    "GDAL_HTTP_LOW_SPEED_TIME": "20",
}
# Not to be changed: with more threads than one, GDAL 3.10 fills uncompressed tiles with whatever is
# in memory where a request fails, and reports no error (OSGeo/gdal issues 11552, 12426).
_FIXED: Mapping[str, str] = {"GDAL_NUM_THREADS": "1"}
FORGET: Mapping[str, str] = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/"}
"""Lets GDAL forget a URL that it opened: else failures and damaged bytes stay with the process."""

# These write whole URLs into the log when something fails.
_GDAL_LOGGERS = ("rasterio._env", "rasterio._err")
_HTTP_LOGGER = "urllib3.connectionpool"
_URL_LOGGERS = ("odc.loader._rio", _HTTP_LOGGER)
_DAMAGE = re.compile(r"IO error during reading|tags apparently corrupt")
_SEEN = threading.local()


def gdal_options(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for reading remote files in this process.

    Parameters
    ----------
    chosen
        Options that the user set, which come first.
    """
    here = {name: os.environ.get(name, value) for name, value in _OPTIONS.items()}
    return {**here, **chosen, **_FIXED}


def asset_options(url: str, sign: Signing, *, origin: str) -> dict[str, str]:
    """Return the options that authorise the reading of one file.

    Parameters
    ----------
    url
        The file.
    sign
        For Earthdata the bearer token goes to its services, and not along with a redirect to
        another host. Other signatures are part of the URL.
    origin
        Where the source was written, for messages.

    Raises
    ------
    SourceError
        If a token is needed that is not in the environment.
    """
    header = earthdata_headers(url, origin=origin) if sign == "earthdata" else {}
    if not header:
        return {}
    return {
        "GDAL_HTTP_AUTH": "BEARER",
        "GDAL_HTTP_BEARER": header["Authorization"].removeprefix("Bearer "),
        "CPL_VSIL_CURL_AUTHORIZATION_HEADER_ALLOWED_IF_REDIRECT": "IF_SAME_HOST",
    }


@contextmanager
def watch_headers() -> Iterator[list[str]]:
    """Collect what GDAL says, as a mere warning, of tags that it could not read in this thread.

    Where the header of a TIFF comes short, GDAL opens the file without the tags that are missing:
    no transform, so that nothing overlaps, or no nodata, so that fill values become data.
    """
    for name in _GDAL_LOGGERS:
        logger = logging.getLogger(name)
        if not logger.isEnabledFor(logging.WARNING):
            logger.setLevel(logging.WARNING)  # `_Redaction` keeps silent for whoever wished so
    damage: list[str] = []
    _SEEN.damage = damage
    try:
        yield damage
    finally:
        del _SEEN.damage


class _Redaction(logging.Filter):
    """Takes signatures out of what is logged, and listens for damage."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        of_others = record.name == _HTTP_LOGGER and not SIGNED.search(text)
        clean = text if of_others else redact(text)
        if clean != text:
            record.msg, record.args = clean, ()
        if record.name not in _GDAL_LOGGERS:
            return True
        if _DAMAGE.search(text) and hasattr(_SEEN, "damage"):
            _SEEN.damage.append(clean.removeprefix("CPLE_AppDefined in "))
        return record.levelno >= logging.getLogger("rasterio").getEffectiveLevel()


for _name in (*_GDAL_LOGGERS, *_URL_LOGGERS):
    logging.getLogger(_name).addFilter(_Redaction())
