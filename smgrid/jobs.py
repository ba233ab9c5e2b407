"""The frame of a batch job: configuration, progress, summary and exit code.

A job says on standard output, in one line of JSON, and in a file what it did, also when it failed.
Progress and errors go to standard error.
"""

import json
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from smgrid import __version__
from smgrid.cube.inspect import inspect
from smgrid.cube.overviews import write_overviews
from smgrid.cube.progress import Progress
from smgrid.cube.storage import StorePath
from smgrid.errors import ConfigError, SmgridError, StoreError
from smgrid.sources.retry import redact
from smgrid.yamltext import check_model, read_yaml

__all__ = ["Job", "JobConfig", "Stage", "run_job"]

_LINE_S = 30.0
_TERMINAL_S = 0.2
_PACKAGES = ("dask", "distributed", "numpy", "torch", "xarray", "zarr")
_SHOWN = 1000  # failures in a summary; the store lists all of them
_INTERRUPTED, _TERMINATED = 130, 143  # what shells give for a process that was


class JobConfig(BaseModel):
    """What every job has: where it runs, and where it says what it did."""

    model_config = ConfigDict(extra="forbid")

    scheduler: str = Field(
        "threads",
        description="threads, synchronous, local, tcp://HOST:PORT, slurm, kubernetes or gateway",
    )
    cluster: dict[str, Any] = Field({}, description="options of the scheduler, see open_scheduler")
    summary: Path | None = Field(None, description="JSON file to write, default beside the store")

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_no_path(cls, value: object) -> object:
        """Refuse texts that are no path; an empty one would be the working folder."""
        if isinstance(value, str) and (not value.strip() or "\0" in value):
            raise PydanticCustomError("no_path", "should not be empty, nor hold NUL")
        return value


Config = TypeVar("Config", bound=JobConfig)


@dataclass
class Stage:
    """The units of one store: what was there, what was written, and what failed."""

    what: str
    store: str
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    """Whatever else is worth telling."""
    _begun: dict[str, int] = field(default_factory=dict)
    _done: dict[str, int] = field(default_factory=dict)
    _total: dict[str, int] = field(default_factory=dict)
    _failed: list[dict[str, str]] = field(default_factory=list)
    _written: int | None = None
    _not_tried: int = 0
    _shown: float = 0.0

    def progress(self, event: Progress) -> None:
        """Count an event of a writer, and show it now and then."""
        self._begun.setdefault(event.group, event.done)
        self._done[event.group] = event.done
        self._total[event.group] = event.total
        terminal = sys.stderr.isatty()
        now = time.monotonic()
        if now - self._shown >= (_TERMINAL_S if terminal else _LINE_S):
            self._shown = now
            text = f"{self.what}: {sum(self._done.values())} of {sum(self._total.values())} units"
            sys.stderr.write(f"\r{text}" if terminal else f"{_now()} {text}\n")
            sys.stderr.flush()

    def finish(self, report: Any) -> None:
        """Take over what a `WriteReport` or `UpdateReport` says."""
        self._total = {"": report.total}
        self._written = report.written
        self._not_tried = getattr(report, "not_tried", 0)
        self._failed = [
            {"unit": unit.unit, "reason": unit.reason} for unit in getattr(report, "failed", ())
        ]

    def summary(self) -> dict[str, Any]:
        """Return what is known of the stage."""
        total, failed = sum(self._total.values()), len(self._failed)
        if self._written is None:  # there is no report: some of what is left may have been tried
            skipped = sum(self._begun.values())
            written = sum(self._done.values()) - skipped
            not_tried = total - written - skipped
        else:
            written, not_tried = self._written, self._not_tried
            skipped = total - written - failed - not_tried
        units = {"total": total, "written": written, "skipped": skipped, "failed": failed}
        units["not_tried"] = not_tried
        return {
            "what": self.what,
            "store": self.store,
            "units": units,
            "failures": self._failed[:_SHOWN],
            "seconds": round(self.seconds, 3),
            **_store_facts(self.store),
            **self.facts,
        }


class Job:
    """What a running job has done so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stages: list[Stage] = []
        self.facts: dict[str, Any] = {}
        self.summary_path: Path | None = None

    def tell_to(self, path: Path) -> None:
        """Choose the file of the summary, and say in it that the job runs.

        A job that is killed must not leave what a former run has told.
        """
        with suppress(OSError):  # told at the end, when something was made
            _write(path, {"job": self.name, "status": "running", "started": _now()})
        self.summary_path = path

    def add_overviews(self, path: StorePath) -> None:
        """Write the overviews of a map, as a stage of its own."""
        with self.stage("overviews", f"{path}/overviews") as stage:
            stage.finish(write_overviews(path, progress=stage.progress))

    @contextmanager
    def stage(self, what: str, store: StorePath) -> Iterator[Stage]:
        """Do one stage inside the block; the first one says where the summary is by default."""
        if not Path(store).name:
            raise ConfigError(f"{what}: expected the path of a store, found {str(store)!r}")
        stage = Stage(what, str(store))
        self.stages.append(stage)
        if self.summary_path is None and "://" not in stage.store:
            self.tell_to(Path(f"{stage.store.rstrip('/')}.{self.name}.json"))
        start = time.monotonic()
        try:
            yield stage
        except SmgridError as error:
            if getattr(error, "report", None) is not None:
                stage.finish(error.report)  # type: ignore[attr-defined]
            raise
        finally:
            stage.seconds = time.monotonic() - start


def run_job(name: str, usage: str, model: type[Config], work: Callable[[Config, Job], None]) -> int:
    """Read the command line, do the work, and tell what was done.

    Parameters
    ----------
    name
        Of the job, in its summary.
    usage
        What to say when the command line is not one configuration file.
    model
        Of the configuration.
    work
        What the job does; it adds stages to the `Job`.

    Returns
    -------
    int
        The exit code: that of the error of smgrid, 1 for an unexpected one, 0 when all is done.
    """
    if len(sys.argv) != 2:
        sys.stderr.write(f"{usage}\n")
        return ConfigError.exit_code
    before = signal.getsignal(signal.SIGTERM)
    try:
        return _run(Job(name), Path(sys.argv[1]), model, work)
    finally:
        _handle_sigterm(before)


def _run(job: Job, path: Path, model: type[Config], work: Callable[[Config, Job], None]) -> int:
    started, clock = _now(), time.monotonic()
    code, error = 0, ""
    try:
        config = check_model(read_yaml(path), model)
        if config.summary is not None:
            _tell_where_asked(job, config.summary, path)
        with _ending_on_request():
            work(config, job)
    except SmgridError as cause:
        code, error = cause.exit_code, redact(str(cause))
        sys.stderr.write(f"error: {error}\n")
    except KeyboardInterrupt as cause:
        code = _TERMINATED if cause.args else _INTERRUPTED
        error = "interrupted; run again to resume"
        sys.stderr.write(f"error: {error}\n")
    except Exception as cause:  # noqa: BLE001 (told like any other, and where it came from)
        code, error = 1, redact(f"{type(cause).__name__}: {cause}")
        sys.stderr.write(redact(traceback.format_exc()))
    return _tell(
        {
            "job": job.name,
            "config": str(path),
            "status": "failed" if code else "done",
            "exit_code": code,
            "error": error,
            "started": started,
            "seconds": round(time.monotonic() - clock, 3),
            "stages": [stage.summary() for stage in job.stages],
            **job.facts,
            "versions": _versions(),
        },
        job,
    )


def _tell_where_asked(job: Job, summary: Path, config: Path) -> None:
    """Begin the summary in the file of the configuration, or say before the work why not."""
    try:
        if summary.exists() and summary.samefile(config):
            raise ConfigError("summary: is the configuration file itself; name another file")
        summary.parent.mkdir(parents=True, exist_ok=True)
        if summary.is_dir():
            raise ConfigError(
                f"summary: {summary} is a folder; name a JSON file, as in summary.json"
            )
        job.tell_to(summary)
    except OSError as cause:
        msg = f"summary: {summary} cannot be written ({cause}); name a file in another folder"
        raise ConfigError(msg) from cause


@contextmanager
def _ending_on_request() -> Iterator[None]:
    """End as if interrupted where a batch system or a pod asks for it, so that clusters close.

    It is asked for once: what closes then, and tells what was done, is not ended by a second time.
    """

    def end(number: int, frame: object) -> None:
        _handle_sigterm(signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    _handle_sigterm(end)
    try:
        yield
    finally:
        _handle_sigterm(signal.SIG_IGN)


def _handle_sigterm(handler: Any) -> None:
    with suppress(ValueError):  # not in the main thread, where signals are not ours
        signal.signal(signal.SIGTERM, handler)


def _tell(summary: dict[str, Any], job: Job) -> int:
    """Write the summary and a line for people; return the exit code."""
    if job.summary_path is not None and job.summary_path.parent.is_dir():
        # Otherwise a job that has made nothing.
        try:
            _write(job.summary_path, summary)
        except OSError as cause:
            error = f"summary: {job.summary_path} cannot be written: {cause}"
            sys.stderr.write(f"error: {error}\n")
            if summary["status"] == "done":
                summary |= {
                    "status": "failed",
                    "exit_code": StoreError.exit_code,
                    "error": error,
                }
    written = sum(stage["units"]["written"] for stage in summary["stages"])
    if summary["status"] == "done" and job.stages:
        text = f"{written} units written" if written else "nothing to do, all units were there"
        sys.stderr.write(f"{job.name}: {text}\n")
    sys.stdout.write(json.dumps(summary) + "\n")
    code: int = summary["exit_code"]
    return code


def _write(path: Path, summary: Mapping[str, Any]) -> None:
    """Write a summary as a whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(summary, indent=1) + "\n")
    partial.replace(path)


def _store_facts(path: str) -> dict[str, Any]:
    """Return size and digest of a store, as far as it is there."""
    with suppress(SmgridError):
        report = inspect(path)
        digest = report.provenance.get("smgrid_manifest_sha256")
        return {"status": report.status, "bytes": report.nbytes, "digest": digest}
    return {"status": "none", "bytes": 0, "digest": None}


def _versions() -> dict[str, str]:
    return {
        "smgrid": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def say(text: str, items: Sequence[str] = ()) -> None:
    """Tell people something that is no error."""
    sys.stderr.write(f"{text}{': ' if items else ''}{', '.join(items)}\n")
