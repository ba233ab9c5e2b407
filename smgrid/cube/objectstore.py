"""Object stores by their URL: S3 and what speaks its language, Google Cloud, Azure; HTTP to read.

How to get in comes from the environment of each process and from nowhere else: a URL that carries
a credential is refused, and a store is sent to another process as its URL alone, so that no graph,
log or dashboard holds a secret. Workers therefore need the same variables as the client.
"""

import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

import obstore
import obstore.store
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import HTTPStore
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from smgrid.errors import StoreError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

Mode = Literal["read", "write"]
Answer = TypeVar("Answer")

# A shard is a few megabytes at most; what takes longer than this is stuck and asked for again.
_CLIENT: "ClientConfig" = {"connect_timeout": "10s", "timeout": "60s"}
# With jitter, doubling from 0.1 s to 15 s: three quarters of a minute of an overloaded server.
_RETRIES: "RetryConfig" = {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}
_ATTEMPTS = 3
_PAGE = 1000

_S3 = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket"
_GOOGLE = "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket"
_AZURE = "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
_ACCESS = {
    "s3": _S3,
    "gs": _GOOGLE,
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
    "http": "the address: a store on a web server must be public",
    "https": "the address: a store on a web server must be public",
}
"""Schemes of URLs, and what lets a process in."""

_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist")
_CAUSES = (
    (_NO_BUCKET, "there is no such bucket; create it, or check its name and the endpoint"),
    (
        re.compile(r"169\.254\.169\.254|metadata\.google\.internal|[Mm]issing (credential|\w*Key)"),
        "no complete credentials were found; set {access}",
    ),
    (
        re.compile(
            r"status code: 40[13]|lacked|AccessDenied|InvalidAccessKey|SignatureDoesNot|Expired"
        ),
        "access is refused{code}; check {access}, and what these may do",
    ),
    (re.compile("Received redirect"), "the bucket is in another region; set AWS_REGION"),
    (
        re.compile(r"status code: 501"),
        "the server does not do what a store needs, such as PUT with If-None-Match; use another",
    ),
    (
        re.compile(r"status code: (5\d\d|429)"),
        "the server was overloaded or failing until the last attempt{code}; try again later, "
        "what is written is kept",
    ),
    (
        re.compile(r"HTTP error|timed out|error sending request|dns error|dispatch failure"),
        "the server cannot be reached; check the network and the endpoint (AWS_ENDPOINT_URL for "
        "servers other than Amazon's)",
    ),
)


def normalise_url(url: str) -> str:
    """Return the URL of a store without what does not matter.

    Raises
    ------
    StoreError
        If it is no URL that a store can have, or if it carries a credential.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    shown = f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if scheme not in _ACCESS:
        msg = (
            f"{shown}: a store cannot be at {scheme}://, expected a folder or a URL that begins "
            f"with {', '.join(f'{known}://' for known in _ACCESS)}"
        )
        raise StoreError(msg)
    container = "@" in parts.netloc and scheme.startswith("abfs") and not parts.password
    if ("@" in parts.netloc and not container) or parts.query or parts.fragment:
        msg = (
            f"{shown}: the URL of a store must not carry a name, a password or parameters, which "
            f"would end up in logs; take them out and set {_ACCESS[scheme]}"
        )
        raise StoreError(msg)
    if not parts.netloc:
        msg = f"{url} names no bucket or server, expected {scheme}://BUCKET/PATH"
        raise StoreError(msg)
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def open_url(url: str, mode: Mode = "read") -> "UrlStore":
    """Return the store at a URL; the connection behind it is shared within a process.

    Raises
    ------
    StoreError
        If it is to be written but can only be read, or if the environment makes no sense.
    """
    if mode == "write" and url.startswith(("http://", "https://")):
        msg = f"{url} can only be read, a web server takes no stores; give a folder or a bucket"
        raise StoreError(msg)
    with explaining_access(url):
        return UrlStore(_connect(url, _environment()), url=url, read_only=mode == "read")


def _environment() -> int:
    """Return a fingerprint of what obstore takes from the environment."""
    prefixes = ("AWS_", "AZURE_", "GOOGLE_")
    return hash(frozenset(item for item in os.environ.items() if item[0].startswith(prefixes)))


@lru_cache(maxsize=64)
def _connect(url: str, environment: int) -> Any:
    endpoints = [v for k, v in os.environ.items() if k.startswith("AWS_ENDPOINT")]
    plain = any(value.startswith("http://") for value in (url, *endpoints))
    client: ClientConfig = {**_CLIENT, "allow_http": plain}
    if url.startswith("http"):
        # Not from_url, which would ask Amazon's and Microsoft's hosts for credentials.
        return HTTPStore.from_url(url, client_options=client, retry_config=_RETRIES)
    return obstore.store.from_url(url, client_options=client, retry_config=_RETRIES)


@contextmanager
def explaining_access(url: str) -> Iterator[None]:
    """Turn an obstore error inside the block into a StoreError about the store at `url`."""
    try:
        yield
    except FileNotFoundError as error:
        if not _NO_BUCKET.search(str(error)):
            raise
        raise StoreError(_explain(error, url)) from None
    except BaseError as error:
        # Without its cause, which shows requests with all that was in them.
        raise StoreError(_explain(error, url)) from None


def _explain(error: Exception, url: str) -> str:
    text = str(error).partition("\n\nDebug source")[0]
    plain = re.sub(r"\?\S+", "", text).partition("\n")[0]  # a query may be signed
    environment = "the endpoint and the environment's AWS_, GOOGLE_ or AZURE_ variables"
    return explain_access(text, url) or f"{url}: {plain}; check {environment}"


def explain_access(text: str, url: str) -> str | None:
    """Return what the message of an object store's client means, if that is known."""
    found = re.search(r"<Code>(\w+)</Code>", text) or re.search(r"status code: (\d+)", text)
    code = f" ({found[1]})" if found else ""
    for pattern, cause in _CAUSES:
        if pattern.search(text):
            return f"{url}: {cause.format(code=code, access=_ACCESS[urlsplit(url).scheme])}"
    return None


def _raise_unless_cut_off(error: BaseError) -> None:
    """Raise what is no use to repeat, as the client repeats all but a cut listing or refusal."""
    if "body" not in str(error).partition("\n")[0]:
        raise error


class UrlStore(ObjectStore[Any]):
    """A zarr store that is known by its URL, is pickled as such and raises StoreError."""

    def __init__(self, store: Any, *, url: str, read_only: bool = False) -> None:
        super().__init__(store, read_only=read_only)
        self.url = url

    def __reduce__(self) -> tuple[Any, ...]:
        return open_url, (self.url, "read" if self.read_only else "write")

    def __str__(self) -> str:
        return self.url

    def with_read_only(self, read_only: bool = False) -> Self:
        """Return the same store, to be read only or not."""
        return type(self)(self.store, url=self.url, read_only=read_only)

    def read(self, key: str) -> bytes | None:
        """Return the object `key`, or ``None`` if there is none in a bucket that exists."""

        def get() -> bytes | None:
            try:
                return obstore.get(self.store, key).bytes().to_bytes()
            except FileNotFoundError as error:
                if _NO_BUCKET.search(str(error)):
                    raise
                return None

        return self._ask(get)

    def create(self, key: str, content: bytes) -> bool:
        """Make the object `key` unless there is one, and return whether this call made it."""
        with explaining_access(self.url):
            try:
                obstore.put(self.store, key, content, mode="create")
            except BaseError as error:
                # Where an answer was lost, the client has asked again and found its own object.
                found = self.read(key)
                if found == content:
                    return True
                if found is None or not isinstance(error, AlreadyExistsError):
                    raise
                return False
        return True

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every object by key; StoreError on a web server, which lists none."""
        if self.url.startswith("http"):
            msg = (
                f"{self.url}: a web server does not list what a store holds; use a bucket or a copy"
            )
            raise StoreError(msg)

        def collect() -> dict[str, int]:
            pages = obstore.list(self.store, chunk_size=_PAGE)
            return {entry["path"]: entry["size"] for page in pages for entry in page}

        return self._ask(collect)

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        with explaining_access(self.url):
            for _ in range(_ATTEMPTS - 1):
                try:
                    return question()
                except BaseError as error:
                    _raise_unless_cut_off(error)
            return question()

    async def _ask_async(self, question: Callable[[], Awaitable[Answer]]) -> Answer:
        with explaining_access(self.url):
            for _ in range(_ATTEMPTS - 1):
                try:
                    return await question()
                except BaseError as error:
                    _raise_unless_cut_off(error)
            return await question()

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return an object or a part of it."""
        get = super().get
        return await self._ask_async(lambda: get(key, prototype, byte_range))

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object."""
        with explaining_access(self.url):
            await super().set(key, value)

    async def delete(self, key: str) -> None:
        """Delete an object."""
        with explaining_access(self.url):
            await super().delete(key)

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """Yield the names directly below a prefix."""
        list_dir = super().list_dir

        async def collect() -> list[str]:
            return [name async for name in list_dir(prefix)]

        for name in await self._ask_async(collect):
            yield name
