"""Where a job computes: threads, processes, or a cluster, chosen by one string.

Local processes and running schedulers are tried by the test suite with real processes, and Gateway
with a real server on one machine. Of SLURM the job script is tested, and that jobs which end are
submitted again, and of Kubernetes the description of the cluster; neither was run on a machine of
its kind. Kubernetes and Gateway keep the number of workers by themselves: the one has a Deployment
for each, the other starts what is missing of the number it was told.
"""

import asyncio
import concurrent.futures
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import Any

import dask
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed import Client, LocalCluster, WorkerPlugin
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError
from distributed.deploy.adaptive import Adaptive
from distributed.scheduler import NoWorkerError

from smgrid.errors import ConfigError, MissingDependencyError, SmgridError, StoreError

__all__ = ["OneThread", "open_scheduler"]

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""Environment of workers: small matrix products lose most of their speed on shared threads."""

ALLOWED_FAILURES = 1
"""Workers that a unit may take along before it is given up for the time being."""

_SCHEDULER = {"distributed.scheduler.allowed-failures": ALLOWED_FAILURES}
_SCHEDULER_ENV = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(ALLOWED_FAILURES)}
_CONNECT_S = 30
_WAIT_S = 3600.0  # queues of batch systems are long
_PATIENCE = "distributed.scheduler.no-workers-timeout"
_LOOK = "15s"  # between looks at jobs of a batch system: two without a worker, and it has ended
_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")  # as sbatch --time takes it
_MARGIN_S = 300  # at most, of the walltime of a job: workers end before it, not all at once
_LOST = (
    *(asyncio.CancelledError, concurrent.futures.CancelledError),
    *(ClosedClientError, CommClosedError, NoWorkerError),
)
_KINDS = "threads, synchronous, local, tcp://HOST:PORT, slurm, kubernetes or gateway"
_PACKAGES = {
    "slurm": "dask_jobqueue",
    "kubernetes": "dask_kubernetes.operator",
    "gateway": "dask_gateway",
}
_EXPECTED = {
    "workers": "a whole number above 0",
    "cores": "a whole number above 0",
    "wait": "seconds above 0",
    "memory": "a size such as 4GiB",
}
_ANY_PORT = {"dashboard_address": "127.0.0.1:0"}  # of the dashboard: jobs run beside each other
_LOCAL = {"dashboard_address", "host", "local_directory"}

Options = Mapping[str, Any]


class OneThread(WorkerPlugin):
    """Leaves one thread to the libraries of every worker, also of a cluster made by others."""

    name = "smgrid-one-thread"

    def setup(self, worker: Any) -> None:
        """Set what libraries read when they are imported, and PyTorch if it is there already."""
        os.environ.update(ONE_THREAD)
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(1)


@contextmanager
def open_scheduler(scheduler: str, *, options: Options | None = None) -> Iterator[Client | None]:
    """Compute inside the block with this scheduler.

    Parameters
    ----------
    scheduler
        ``threads`` or ``threads:4`` and ``synchronous`` (this process), ``local`` or ``local:4``
        (processes), ``tcp://HOST:PORT`` (a running scheduler), ``slurm``, ``kubernetes``,
        ``gateway`` or ``gateway:https://HOST``. Options may follow as in
        ``slurm:cores=8,memory=32GB``.
    options
        ``workers`` (processes to ask for), ``memory`` (of each, as in ``4GiB``), ``wait`` (how long
        for one of them, at the start and when all have ended [s]; by default two minutes for local
        processes and an hour for a cluster), and what the class of the cluster takes:
        `distributed.LocalCluster` (``local_directory``, ``host`` and ``dashboard_address``),
        `dask_jobqueue.SLURMCluster` (with ``cores`` and ``memory`` of a job, every core a worker),
        `dask_kubernetes.operator.make_cluster_spec` (with ``image``, which has smgrid in it, and
        ``namespace``), `dask_gateway.Gateway.new_cluster`.

    Yields
    ------
    Client or None
        Client of the cluster, ``None`` in this process.

    Raises
    ------
    ConfigError
        The string or an option is not understood, or no worker is there in time.
    MissingDependencyError
        The package of this kind of cluster is not installed.
    StoreError
        The scheduler was lost, or had no worker for too long, while the block computed with it.
    """
    kind, given = _parse(scheduler, options or {})
    chosen = _checked(kind, given)
    if kind in {"threads", "synchronous"}:
        with dask.config.set(scheduler=kind, **chosen):
            yield None
        return
    wait = chosen.pop("wait", 120 if kind == "local" else _WAIT_S)
    with ExitStack() as stack:
        stack.enter_context(dask.config.set({**_SCHEDULER, _PATIENCE: f"{wait:g}s"}))
        client = _OPENERS[kind](stack, chosen)
        client.register_plugin(OneThread())
        try:
            client.wait_for_workers(1, timeout=wait)
        except TimeoutError as cause:
            msg = f"scheduler: {scheduler}: no worker within {wait:g} s; see its log, or set wait"
            raise ConfigError(msg) from cause
        try:
            yield client
        except (Exception, asyncio.CancelledError) as error:
            if not is_lost(client, error):
                raise
            msg = (
                f"scheduler: {scheduler}: lost ({type(error).__name__}: {error}); what was written "
                "is kept, run again to resume"
            )
            raise StoreError(msg) from error


def is_lost(client: Client, error: BaseException) -> bool:
    """Whether an error is what the end of a scheduler looks like to those that compute with it.

    It cancels what is computed, closes connections or, a little later, the client, and what then is
    asked of the client ends with errors of many kinds.
    """
    if isinstance(error, SmgridError):
        return False
    return isinstance(error, _LOST) or client.status != "running"


def _parse(scheduler: str, options: Options) -> tuple[str, dict[str, Any]]:
    """Return the kind of a scheduler and its options."""
    kind, _, rest = scheduler.partition(":")
    if kind in {"tcp", "tls"}:
        return "running", {**options, "address": scheduler}
    if kind == "gateway" and rest.startswith("http"):
        return kind, {**options, "address": rest}
    known = {"threads": "num_workers", "local": "workers"}
    if kind in known and rest.isdecimal() and int(rest) > 0:
        if kind == "threads" and options:
            raise ConfigError(f"scheduler: threads has no options, found {', '.join(options)}")
        return kind, {**options, known[kind]: int(rest)}
    pairs = [part.split("=", 1) for part in rest.split(",") if part]
    if kind not in {"threads", "synchronous", *_OPENERS} or any(len(pair) != 2 for pair in pairs):
        raise ConfigError(f"scheduler: found {scheduler!r}, expected {_KINDS}")
    given = {key.strip(): int(v) if v.isdecimal() else v for key, v in pairs}
    if kind in {"threads", "synchronous"} and (given or options):
        raise ConfigError(
            f"scheduler: {kind} has no options, found {', '.join({**given, **options})}"
        )
    return kind, {**options, **given}


def _checked(kind: str, options: Options) -> dict[str, Any]:
    """Return the options with their numbers read; refuse what is none."""
    checked = dict(options)
    own = {"cores", "memory"} if kind == "gateway" else set()  # its server says what they are
    for name in (_EXPECTED.keys() & options.keys()) - own:
        try:
            checked[name] = _read_number(kind, name, options[name])
        except (TypeError, ValueError, OverflowError) as cause:
            msg = f"scheduler: {name} is {options[name]!r}, expected {_EXPECTED[name]}"
            raise ConfigError(msg) from cause
    return checked


def _read_number(kind: str, name: str, value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError
    if name == "memory":
        # Left as it is: each kind of cluster reads it in its own way.
        if not (kind == "local" and value in ("auto", None)) and parse_bytes(str(value)) < 0:
            raise ValueError
        return value
    number = float(value)
    if not 0 < number < math.inf or (name != "wait" and not number.is_integer()):
        raise ValueError
    return number if name == "wait" else int(number)


def _open_local(stack: ExitStack, options: dict[str, Any]) -> Client:
    workers = options.pop("workers", CPU_COUNT)
    memory = options.pop("memory", "auto")
    if unknown := options.keys() - _LOCAL:  # LocalCluster would hand them to processes that fail
        msg = f"scheduler: an option is not understood: {', '.join(sorted(unknown))}"
        raise ConfigError(msg)
    cluster = _made(
        LocalCluster,
        {**_ANY_PORT, **options},
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=memory,
        env=ONE_THREAD,
    )
    return _client_of(stack, cluster)


def _open_running(stack: ExitStack, options: dict[str, Any]) -> Client:
    address = options.pop("address")
    _refuse(options, address)
    try:
        return _connect(stack, lambda: Client(address, timeout=_CONNECT_S))
    except (OSError, ValueError) as cause:
        msg = f"scheduler: {address} does not answer ({cause}); start it or correct the address"
        raise ConfigError(msg) from cause


def _open_slurm(stack: ExitStack, options: dict[str, Any]) -> Client:
    workers = options.pop("workers", 1)
    cluster = slurm_cluster(options)
    client = _client_of(stack, cluster)
    cluster.scale(workers)
    # Which alone submits no job for one that has ended.
    jobs = math.ceil(workers / options.get("cores", 1))
    cluster.adapt(Adaptive=Replacing, interval=_LOOK, minimum_jobs=jobs, maximum_jobs=jobs)
    return client


class Replacing(Adaptive):
    """Keeps the number of jobs of a batch system, where each ends by its walltime.

    `Adaptive` does so by itself where a job is one worker. `distributed` misses the end of a job of
    several (https://github.com/dask/dask-jobqueue/issues/611).
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._seen: set[str] = set()
        self._without: set[str] = set()

    async def recommendations(self, target: int) -> dict[str, Any]:
        """Give up the jobs that had workers and have none at two looks; others take their place."""
        jobs: Any = self.cluster
        present = self.observed
        self._seen |= present
        without = set()
        for job, spec in jobs.worker_spec.items():
            workers = {f"{job}{suffix}" for suffix in spec.get("group", ())}
            if workers & self._seen and not workers & present:
                without.add(job)
                if job in self._without:
                    # The next job has the same name, and is not to be taken for this one.
                    self._seen -= workers
        ended, self._without = without & self._without, without
        if ended:
            return {"status": "down", "workers": sorted(ended)}
        found: dict[str, Any] = await super().recommendations(target)
        return found


def slurm_cluster(options: Options) -> Any:
    """Return a `dask_jobqueue.SLURMCluster` without workers, every core of a job one of them.

    Workers end a little before their job, as dask-jobqueue recommends: what they were at is given
    to others then, and does not look like what kills its workers.
    """
    module = _import("slurm")
    config = dask.config.get("jobqueue.slurm")
    given = {"cores": 1, "memory": "4GiB", **options}
    dashboard = {"dashboard_address": ":0", **given.pop("scheduler_options", {})}
    prologue = [f"export {name}={value}" for name, value in ONE_THREAD.items()]
    prologue += given.pop("job_script_prologue", [])
    extra = _lifetime(given.get("walltime", config["walltime"]))
    extra += given.pop("worker_extra_args", config["worker-extra-args"])
    return _made(
        module.SLURMCluster,
        given,
        processes=given["cores"],
        job_script_prologue=prologue,
        scheduler_options=dashboard,
        worker_extra_args=extra,
    )


def _lifetime(walltime: Any) -> list[str]:
    """Return the arguments of a worker in a job of SLURM with this limit."""
    if walltime is None or str(walltime).upper() in {"INFINITE", "UNLIMITED"}:
        return []
    match = _WALLTIME.fullmatch(str(walltime))
    if match is None:
        msg = f"scheduler: walltime is {walltime!r}, expected HH:MM:SS or D-HH:MM:SS"
        raise ConfigError(msg)
    days, *parts = (int(part) for part in match.groups(default="0"))
    # Minutes, minutes:seconds or hours:minutes:seconds; after days it begins with hours.
    hours_first = match[1] is not None or match[4] is not None
    hours, minutes, seconds = parts if hours_first else (0, *parts[:2])
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    margin = min(_MARGIN_S, total // 12)
    return [f"--lifetime={total - 2 * margin}s", f"--lifetime-stagger={margin}s"]


def _open_kubernetes(stack: ExitStack, options: dict[str, Any]) -> Client:
    operator = _import("kubernetes")
    namespace = options.pop("namespace", None)
    spec = kubernetes_spec(options)
    cluster = operator.KubeCluster(custom_cluster_spec=spec, namespace=namespace)
    return _client_of(stack, cluster)


def kubernetes_spec(options: Options) -> dict[str, Any]:
    """Return the description of a ``DaskCluster`` for the operator of Kubernetes."""
    given = {"name": "smgrid", "workers": 1, "memory": "4Gi", **options}
    if "image" not in given:
        msg = "scheduler: kubernetes needs image, one that has smgrid and its dependencies in it"
        raise ConfigError(msg)
    memory = str(given.pop("memory"))
    size = {"cpu": "1", "memory": memory}
    spec: dict[str, Any] = _made(
        _import("kubernetes").make_cluster_spec,
        given,
        n_workers=given.pop("workers"),
        resources={"requests": size, "limits": size},
        env={**ONE_THREAD, **_SCHEDULER_ENV, **given.pop("env", {})},
        worker_command="dask-worker --nthreads 1",
    )
    return spec


def _open_gateway(stack: ExitStack, options: dict[str, Any]) -> Client:
    module = _import("gateway")
    workers = options.pop("workers", 1)
    places = {
        key: options.pop(key) for key in ("address", "proxy_address", "auth") if key in options
    }
    gateway = stack.enter_context(module.Gateway(**places))
    cluster = gateway.new_cluster(**options)
    stack.callback(cluster.close)
    cluster.scale(workers)
    return _connect(stack, cluster.get_client)


def _client_of(stack: ExitStack, cluster: Any) -> Client:
    stack.callback(cluster.close)
    return _connect(stack, lambda: Client(cluster))


def _connect(stack: ExitStack, make: Callable[[], Client]) -> Client:
    # Said here as well as by the client, which takes it back when it loses the scheduler: all that
    # is left would be computed in this process then.
    stack.enter_context(dask.config.set(scheduler="dask.distributed"))
    client = make()
    stack.callback(_close, client)
    return client


def _close(client: Client) -> None:
    with suppress(OSError, TimeoutError):  # of a scheduler that has gone
        client.close(timeout=5)


def _made(factory: Callable[..., Any], options: Options, **fixed: Any) -> Any:
    """Call a factory with the options of a job, which may have any name."""
    try:
        return factory(**{**options, **fixed})
    except TypeError as cause:
        raise ConfigError(f"scheduler: an option is not understood: {cause}") from cause


def _refuse(options: Options, scheduler: str) -> None:
    if options:
        msg = f"scheduler: {scheduler} runs already and has no options, found {', '.join(options)}"
        raise ConfigError(msg)


def _import(kind: str) -> ModuleType:
    try:
        return import_module(_PACKAGES[kind])
    except ModuleNotFoundError as cause:
        msg = f"scheduler: {kind} needs {_PACKAGES[kind]}: pip install 'smgrid[{kind}]'"
        raise MissingDependencyError(msg) from cause


_OPENERS: dict[str, Callable[[ExitStack, dict[str, Any]], Client]] = {
    "local": _open_local,
    "running": _open_running,
    "slurm": _open_slurm,
    "kubernetes": _open_kubernetes,
    "gateway": _open_gateway,
}
