"""A training job on disk: what it is, how far it got, how its epochs went, and what it made.

``run.json`` says what the job is; only the same job goes on in a folder. ``state.pt`` is replaced
whole, so an interruption at any moment leaves one that was complete, and ``history.jsonl`` has one
line per epoch up to that state. ``ensemble`` is the result, and appears when it is complete.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from smgrid.errors import ConfigError, StoreError
from smgrid.training.loop import EpochEnd, State

_SAVE_EVERY_S = 20.0
_LOCK = "lock"
_CIRCUMSTANCES = ("smgrid_version", "torch_version", "device")


class RunFolder:
    """The folder of one training job.

    Parameters
    ----------
    path
        Folder; made if needed.
    identity
        What the job is, JSON-ready: a folder of another job is refused. Nothing is written before
        `claimed`.

    Raises
    ------
    ConfigError
        The folder belongs to another job.
    StoreError
        It cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._lines: list[str] = []
        self._saved = 0.0
        self._identity = json.loads(json.dumps(identity))
        self._check()

    @property
    def ensemble(self) -> Path:
        """Where the result is."""
        return self.path / "ensemble"

    @property
    def _part(self) -> Path:
        return self.path / "run.json.part"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder that of this job, and keep other processes out of it.

        Raises
        ------
        ConfigError
            Another process trains there.
        StoreError
            The folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / _LOCK)
            lock.acquire(blocking=False)
        except Timeout as cause:
            raise ConfigError(
                f"another process trains in {self.path}; wait for it, or give another folder"
            ) from cause
        except OSError as cause:
            raise StoreError(f"{self.path} cannot be made or written: {cause}") from cause
        try:
            for stale in self.path.glob(f".{self.ensemble.name}.*.partial"):
                shutil.rmtree(stale)
            self._part.write_text(json.dumps(self._identity, indent=1))
            self._part.replace(self.path / "run.json")
            yield
        finally:
            lock.release()

    def resume(self, state: State) -> None:
        """Bring a fresh state to where the job was; the history ends there, too."""
        file = self.path / "state.pt"
        if not file.exists():
            self._write_history()  # of epochs that are run again
            return
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
            state.load(saved["state"])
        except Exception as cause:  # a torn file makes the unpickler raise whatever it likes
            raise StoreError(
                f"{file} is damaged ({type(cause).__name__}); remove {self.path} to train anew"
            ) from cause
        self._lines = list(saved["history"])
        self._write_history()

    def note(self, end: EpochEnd) -> None:
        """Add an epoch to the history."""
        entry = {
            "epoch": end.epoch,
            "loss": end.loss,
            "members": [dict(member) for member in end.members],
        }
        self._lines.append(json.dumps(_finite(entry)))
        with (self.path / "history.jsonl").open("a") as file:
            file.write(f"{self._lines[-1]}\n")

    def save(self, state: State) -> None:
        """Keep the state, unless that was done a moment ago."""
        if time.monotonic() - self._saved < _SAVE_EVERY_S:
            return
        part = self.path / "state.pt.part"
        with part.open("wb") as file:
            torch.save({"state": state.to_dict(), "history": self._lines}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path / "state.pt")
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Drop what only an unfinished job needs."""
        for name in ("state.pt", "state.pt.part"):
            (self.path / name).unlink(missing_ok=True)

    def _check(self) -> None:
        file = self.path / "run.json"
        if not file.exists():
            there = self.path.iterdir() if self.path.is_dir() else ()
            known = {self._part, self.path / _LOCK}
            if self.path.is_file() or any(other not in known for other in there):
                raise ConfigError(
                    f"{self.path} holds something else than a training job; give an empty folder"
                )
            return
        try:
            found = json.loads(file.read_text())
        except ValueError as cause:
            raise StoreError(f"{file} is damaged; remove {self.path} to train anew") from cause
        names = sorted({*found, *self._identity})
        if self.ensemble.exists():  # what is done is done, also after an update
            names = [name for name in names if name not in _CIRCUMSTANCES]
        changed = [name for name in names if found.get(name) != self._identity.get(name)]
        if changed:
            raise ConfigError(
                f"{self.path} belongs to another training job, which differs in "
                f"{', '.join(changed)}; give another folder or remove it"
            )

    def _write_history(self) -> None:
        part = self.path / "history.jsonl.part"
        part.write_text("".join(f"{line}\n" for line in self._lines))
        part.replace(self.path / "history.jsonl")


def _finite(value: Any) -> Any:
    """Return a JSON value with ``None`` for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
