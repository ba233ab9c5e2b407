"""Zarr stores behind HTTP: opened with a token of the environment, retried, a hole never a value.

The token stands in the client of the process that reads, never in a graph: a store that travels to
a worker carries its URL alone and takes the token from the worker's environment.
"""

import asyncio
import base64
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import xarray as xr
from obstore.exceptions import (
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import GCSStore, HTTPStore
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import ObjectStore

from smgrid.errors import AssetError, SourceError
from smgrid.sources.retry import redact, retry_pauses

if TYPE_CHECKING:  # types that obstore does not have at runtime
    from obstore.store import ClientConfig, RetryConfig

_log = logging.getLogger(__name__)

# Waits before each new attempt at one object [s].
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
_CONNECT_TIMEOUT, _TIMEOUT = "20s", "300s"  # a chunk of years has tens of megabytes


@dataclass(frozen=True)
class _Login:
    """How a provider wants to know who asks."""

    variable: str
    """Environment variable of the token."""
    header: Callable[[str], str]
    """Token -> value of the Authorization header."""
    page: str
    """Where people get a token."""


def _basic(token: str) -> str:
    return f"Basic {base64.b64encode(f'edh:{token}'.encode()).decode()}"


# By host: a token is sent to no other, and over https only.
_EARTH_DATA_HUB = _Login("EDH_TOKEN", _basic, "https://earthdatahub.destine.eu/account-settings")
_LOGINS: Mapping[str, _Login] = {
    "data.earthdatahub.destine.eu": _EARTH_DATA_HUB,
    "api.earthdatahub.destine.eu": _EARTH_DATA_HUB,
    "arco.datastores.ecmwf.int": _Login(
        "CDSAPI_KEY", "Bearer {}".format, "https://cds.climate.copernicus.eu/profile"
    ),
}
_LOGIN_SCHEMES = ("https",)
_METADATA = frozenset({"zarr.json", ".zmetadata", ".zarray"})


def open_remote_zarr(url: str) -> xr.Dataset:
    """Open a Zarr store (version 2 or 3, consolidated) by its URL; nothing but coordinates is read.

    Parameters
    ----------
    url
        ``https://``, ``http://`` or ``gs://`` (public buckets of Google).

    Raises
    ------
    SourceError
        If it cannot be opened, or a token that its provider wants is not in the environment.

    Notes
    -----
    Tokens: ``EDH_TOKEN`` for the Earth Data Hub, ``CDSAPI_KEY`` for ECMWF's stores. A chunk that is
    not there is missing data (NaN), also where the store says that it stands for zeros.
    """
    store: Any = RemoteStore(url)  # which xarray takes, but does not declare
    try:
        ds = xr.open_dataset(store, engine="zarr", consolidated=True, cache=False)
    except (ValueError, KeyError, OSError) as cause:
        msg = (
            f"{redact(url)} cannot be read as a Zarr store ({redact(str(cause))}); check the URL: "
            "smgrid reads stores with consolidated metadata"
        )
        raise SourceError(msg) from None
    ds.encoding["source"] = redact(url)
    return ds


class RemoteStore(ObjectStore[Any]):
    """A store that is read over HTTP, retried, and pickled without its token."""

    supports_listing = False

    def __init__(self, url: str) -> None:
        self.url = url
        super().__init__(_connect(url), read_only=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteStore, (self.url,)

    def __str__(self) -> str:
        return redact(self.url)

    def __eq__(self, value: object) -> bool:
        return isinstance(value, RemoteStore) and self.url == value.url

    __hash__ = None  # type: ignore[assignment]

    def with_read_only(self, read_only: bool = False) -> "RemoteStore":
        """Return the store itself: it can only be read."""
        del read_only
        return self

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return the bytes of an object; ``None`` if the server says that there is none.

        Raises
        ------
        AssetError
            If it cannot be had after all attempts.
        """
        prototype = prototype or default_buffer_prototype()
        asset = f"{redact(self.url).rstrip('/')}/{key}"
        pauses = retry_pauses(_PAUSES)
        for attempt, pause in enumerate((*pauses, None), 1):
            try:
                found = await super().get(key, prototype, byte_range)
            except (PermissionDeniedError, UnauthenticatedError) as cause:
                raise _refused(self.url, asset, type(cause).__name__) from None
            except (BaseError, OSError) as cause:
                reason = _reason(cause)
            else:
                is_metadata = key.rpartition("/")[2] in _METADATA
                return _patch(found, prototype) if found and is_metadata else found
            if pause is None:
                msg = f"{asset} cannot be read ({reason}, {attempt} attempts); try again later"
                raise AssetError(msg, asset=asset, attempts=attempt, reason=reason)
            _log.warning(
                "%s: %s; attempt %d of %d, again in %.1f s",
                *(asset, reason, attempt, len(pauses) + 1, pause),
            )
            await asyncio.sleep(pause)
        raise AssertionError  # the last attempt returns or raises

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of objects, each as `get` does."""
        return await asyncio.gather(
            *(self.get(key, prototype, byte_range) for key, byte_range in key_ranges)
        )


def _connect(url: str) -> HTTPStore | GCSStore:
    parts = urlsplit(url)
    if parts.username or parts.password:
        msg = (
            f"a URL of {parts.hostname} carries a user or password; take them out: tokens are read "
            "from environment variables"
        )
        raise SourceError(msg)
    options: ClientConfig = {"timeout": _TIMEOUT, "connect_timeout": _CONNECT_TIMEOUT}
    retry: RetryConfig = {"max_retries": 0}  # this module's own waits are those of every reader
    if parts.scheme == "gs":
        return GCSStore.from_url(
            url, skip_signature=True, client_options=options, retry_config=retry
        )
    if parts.scheme not in ("http", "https"):
        msg = f"{redact(url)} cannot be opened; give an https:// or gs:// URL of a Zarr store"
        raise SourceError(msg)
    header = _authorization(url)
    if header:
        options["default_headers"] = {"Authorization": header}
    options["allow_http"] = parts.scheme == "http"
    return HTTPStore.from_url(url, client_options=options, retry_config=retry)


def _authorization(url: str) -> str | None:
    parts = urlsplit(url)
    login = _LOGINS.get(parts.hostname or "") if parts.scheme in _LOGIN_SCHEMES else None
    if login is None:
        return None
    token = os.environ.get(login.variable, "").strip()
    if not token:
        msg = (
            f"{redact(url)} needs a token; get one at {login.page} and set the environment "
            f"variable {login.variable}"
        )
        raise SourceError(msg)
    return login.header(token)


def _refused(url: str, asset: str, reason: str) -> AssetError:
    login = _LOGINS.get(urlsplit(url).hostname or "")
    cure = (
        f"the token in {login.variable} has expired or the provider's licence was not accepted; "
        f"see {login.page}"
        if login
        else "it needs credentials, which smgrid has for no store of this host"
    )
    return AssetError(f"{asset} was refused; {cure}", asset=asset, reason=reason)


def _reason(cause: Exception) -> str:
    """Return the gist of what the client says: its last line is a debug print of it all."""
    return redact(str(cause)).partition("\n")[0][:200]


def _patch(found: Buffer, prototype: BufferPrototype) -> Buffer:
    """Make chunks that are not there missing: many stores say that they hold zeros.

    A lost chunk of precipitation would be months of drought.
    """
    document = json.loads(found.to_bytes())
    if "zarr_consolidated_format" in document:  # .zmetadata of version 2
        nodes = document["metadata"]
        for name, node in nodes.items():
            if name.endswith(".zarray"):
                _mark_holes(node, nodes.get(f"{name.removesuffix('.zarray')}.zattrs", {}))
    else:
        inner = (document.get("consolidated_metadata") or {}).get("metadata") or {}
        for node in (document, *inner.values()):
            _mark_holes(node, node.get("attributes") or {})
    return prototype.buffer.from_bytes(json.dumps(document).encode())


def _mark_holes(node: dict[str, Any], attributes: Mapping[str, Any]) -> None:
    """Let an array's chunks that are not there read as its missing value."""
    dtype = str(node.get("data_type") or node.get("dtype") or "")
    if re.match(r"float|[<>|]f", dtype):
        if node.get("fill_value") in (0, None):
            node["fill_value"] = "NaN"
    elif re.match(r"u?int|[<>|][iu]", dtype) and isinstance(attributes.get("_FillValue"), int):
        node["fill_value"] = attributes["_FillValue"]
