"""One writer per store: a lease in the store itself, with a sign of life.

``_smgrid/writer-000001.json`` is made only if it is not there, so of two processes one gets it. A
lease is void when its process is gone, which is seen on the same machine, or when it has given no
sign of life for ten minutes. It is then succeeded by the next number, which again only one process
can make; whoever finds a number besides his own and the void ones withdraws. Tasks in other
processes may outlive the writer that sent them: each looks for its lease before it writes.
"""

import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
from zarr.abc.store import Store
from zarr.core.sync import sync

from smgrid.cube.storage import create_bytes, delete_keys, read_bytes, write_bytes
from smgrid.errors import StoreError, StoreInUseError

_FOLDER = "_smgrid"
_NAME = re.compile(r"writer-(\d+)\.json")
_HEARTBEAT_S = 30.0
_VOID_AFTER_S = 600.0
_ATTEMPTS = 5
_held: set[str] = set()  # leases of this process


@dataclass(frozen=True)
class Writer:
    """A process that writes to a store."""

    host: str
    pid: int
    process_started: float
    """When the process began [s since 1970], because process ids are used again."""
    namespace: str
    """Where the process id counts; containers have their own."""
    since: str
    """When it got the lease, UTC."""
    seen: float
    """Last sign of life [s since 1970]."""
    token: str
    """Unlike that of any other lease."""


def read_writers(store: Store) -> dict[str, Writer | None]:
    """Return the leases of a store by key; ``None`` for one that cannot be read."""

    async def list_names() -> list[str]:
        return [name async for name in store.list_dir(_FOLDER)]

    writers: dict[str, Writer | None] = {}
    for name in sorted(sync(list_names())):
        if not _NAME.fullmatch(name):
            continue
        key = f"{_FOLDER}/{name}"
        content = read_bytes(store, key)
        if content is None:
            continue  # given back since
        try:
            writers[key] = Writer(**json.loads(content))
        except (ValueError, TypeError):
            writers[key] = None
    return writers


def is_alive(writer: Writer | None) -> bool:
    """Whether a lease counts; one that cannot be read may belong to somebody."""
    if writer is None:
        return True
    if (writer.host, writer.namespace) != (platform.node(), _namespace()):
        return time.time() - writer.seen < _VOID_AFTER_S
    if writer.pid == os.getpid():
        return writer.token in _held
    try:
        process = psutil.Process(writer.pid)
        same = bool(abs(process.create_time() - writer.process_started) < 1)
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@dataclass(frozen=True)
class Claim:
    """What tasks in other processes need to know of the lease that they write under."""

    key: str
    """Of the lease in the store."""
    token: str

    def confirm(self, store: Store, path: str) -> None:
        """Look into the store at `path` whether the lease is there, or raise StoreInUseError."""
        content = read_bytes(store, self.key)
        try:
            held = content is not None and json.loads(content)["token"] == self.token
        except (ValueError, TypeError, KeyError):
            return  # being written; the process that holds it keeps watch as well
        if not held:
            msg = (
                f"{path}: the writer that began this unit has ended or has lost the right to "
                "write, nothing was written; write again to resume"
            )
            raise StoreInUseError(msg)


class Lease:
    """The right to write to a store, kept up by a thread."""

    def __init__(self, store: Store, path: str, key: str, writer: Writer) -> None:
        self._store = store
        self._path = path
        self._key = key
        self._writer = writer
        self._lost = ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, daemon=True)
        self._thread.start()

    @property
    def claim(self) -> Claim:
        """What tasks in other processes write under."""
        return Claim(self._key, self._writer.token)

    def check(self) -> None:
        """Raise StoreInUseError if another process has taken over meanwhile."""
        if self._lost:
            raise StoreInUseError(self._lost)

    def confirm(self) -> None:
        """Look into the store whether the lease still holds, and raise as `check` does if not.

        A process that was paused learns of a takeover only by its next sign of life.
        """
        self._renew()
        self.check()

    def give_back(self) -> None:
        """End the lease."""
        self._end.set()
        self._thread.join()
        if not self._lost:
            delete_keys(self._store, [self._key])

    def _keep_up(self) -> None:
        while not self._end.wait(_HEARTBEAT_S):
            try:
                self._renew()
            except (OSError, StoreError):
                continue  # the units tell whether the store is really out of reach

    def _renew(self) -> None:
        writers = read_writers(self._store)
        own = writers.pop(self._key, None)
        later = [key for key in writers if key > self._key]
        if own is None or own.token != self._writer.token or later:
            self._lost = (
                f"{self._path}: this process gave no sign of life for more than "
                f"{_VOID_AFTER_S / 60:g} minutes, or the store was removed, and it has lost the "
                "right to write; what it has written is kept. Write again to resume"
            )
            self._end.set()
            if own is not None and own.token == self._writer.token:
                # Written after somebody had taken over: tasks must not take it for one that holds.
                delete_keys(self._store, [self._key])
            return
        self._writer = replace(self._writer, seen=time.time())
        write_bytes(self._store, self._key, _to_bytes(self._writer))


@contextmanager
def writing(store: Store, path: str) -> Iterator[Lease]:
    """Hold the lease of the store at `path` inside the block.

    Raises
    ------
    StoreInUseError
        If another process holds it.
    """
    own = _this_process()
    _held.add(own.token)  # before others of this process can see it
    try:
        lease = _take(store, path, own)
        try:
            yield lease
        finally:
            lease.give_back()
    finally:
        _held.discard(own.token)


def _take(store: Store, path: str, own: Writer) -> Lease:
    for _ in range(_ATTEMPTS):
        found = read_writers(store)
        _refuse(path, {key: w for key, w in found.items() if is_alive(w)})
        last = max((int(key.rpartition("-")[2].removesuffix(".json")) for key in found), default=0)
        key = f"{_FOLDER}/writer-{last + 1:06d}.json"
        try:
            if not create_bytes(store, key, _to_bytes(own)):
                continue  # somebody was quicker, and is found now
        except FileNotFoundError:
            continue  # a writer that has just finished swept up
        others = {k: w for k, w in read_writers(store).items() if k != key and w != found.get(k)}
        if others:
            delete_keys(store, [key])
            _refuse(path, others)
        delete_keys(store, found)
        return Lease(store, path, key, own)
    raise StoreInUseError(f"{path} is being written by others at this moment; try again later")


def _refuse(path: str, writers: Mapping[str, Writer | None]) -> None:
    for key, writer in writers.items():
        who = "another process"
        if writer is not None:
            seen = datetime.fromtimestamp(writer.seen, UTC).isoformat(timespec="seconds")
            who = (
                f"process {writer.pid} on {writer.host}, which began at {writer.since} and was "
                f"last seen at {seen}"
            )
        raise StoreInUseError(
            f"{path} is being written by {who}. Wait for it, or end it; a writer that died is "
            "taken over by itself, at once on its own machine and from another one after "
            f"{_VOID_AFTER_S / 60:g} minutes. If you are sure that it is gone, delete {key} in "
            "the store"
        )


def _this_process() -> Writer:
    return Writer(
        host=platform.node(),
        pid=os.getpid(),
        process_started=psutil.Process().create_time(),
        namespace=_namespace(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        seen=time.time(),
        token=uuid.uuid4().hex,
    )


def _namespace() -> str:
    """Return what tells machines and containers of one name apart."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return ""


def _to_bytes(writer: Writer) -> bytes:
    return json.dumps(asdict(writer), indent=2).encode()
