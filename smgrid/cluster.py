"""Where a job computes: threads, processes, or a cluster, chosen by one string.

Local processes and running schedulers are tried by the test suite with real processes, and Gateway
with a real server on one machine. Of SLURM the job script is tested and of Kubernetes the
description of the cluster; neither was run on a machine of its kind.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, WorkerPlugin

from smgrid.errors import ConfigError, MissingDependencyError

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
_KINDS = "threads, synchronous, local, tcp://HOST:PORT, slurm, kubernetes or gateway"
_PACKAGES = {
    "slurm": "dask_jobqueue",
    "kubernetes": "dask_kubernetes.operator",
    "gateway": "dask_gateway",
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
        ``workers`` (processes to ask for), ``memory`` (of each, as in ``4GiB``), ``wait`` (for the
        first of them [s]), and what the class of the cluster takes: `distributed.LocalCluster`
        (``local_directory``, ``host`` and ``dashboard_address``), `dask_jobqueue.SLURMCluster`
        (with ``cores`` and ``memory`` of a job, every core a worker),
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
    """
    kind, chosen = _parse(scheduler, options or {})
    if kind in {"threads", "synchronous"}:
        with dask.config.set(scheduler=kind, **chosen):
            yield None
        return
    wait = float(chosen.pop("wait", 120 if kind == "local" else _WAIT_S))
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_SCHEDULER))
        client = _OPENERS[kind](stack, chosen)
        client.register_plugin(OneThread())
        try:
            client.wait_for_workers(1, timeout=wait)
        except TimeoutError as cause:
            msg = f"scheduler: {scheduler}: no worker within {wait:g} s; see its log, or set wait"
            raise ConfigError(msg) from cause
        yield client


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


def _open_local(stack: ExitStack, options: dict[str, Any]) -> Client:
    workers = int(options.pop("workers", CPU_COUNT))
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
        client = Client(address, timeout=_CONNECT_S)
    except (OSError, ValueError) as cause:
        msg = f"scheduler: {address} does not answer ({cause}); start it or correct the address"
        raise ConfigError(msg) from cause
    stack.callback(_close, client)
    return client


def _open_slurm(stack: ExitStack, options: dict[str, Any]) -> Client:
    workers = int(options.pop("workers", 1))
    cluster = slurm_cluster(options)
    stack.callback(cluster.close)
    cluster.scale(workers)
    return _client_of(stack, cluster)


def slurm_cluster(options: Options) -> Any:
    """Return a `dask_jobqueue.SLURMCluster` without workers, every core of a job one of them."""
    module = _import("slurm")
    given = {"cores": 1, "memory": "4GiB", **options}
    dashboard = {"dashboard_address": ":0", **given.pop("scheduler_options", {})}
    prologue = [f"export {name}={value}" for name, value in ONE_THREAD.items()]
    prologue += given.pop("job_script_prologue", [])
    return _made(
        module.SLURMCluster,
        given,
        processes=given["cores"],
        job_script_prologue=prologue,
        scheduler_options=dashboard,
    )


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
        n_workers=int(given.pop("workers")),
        resources={"requests": size, "limits": size},
        env={**ONE_THREAD, **_SCHEDULER_ENV, **given.pop("env", {})},
        worker_command="dask-worker --nthreads 1",
    )
    return spec


def _open_gateway(stack: ExitStack, options: dict[str, Any]) -> Client:
    module = _import("gateway")
    workers = int(options.pop("workers", 1))
    places = {
        key: options.pop(key) for key in ("address", "proxy_address", "auth") if key in options
    }
    gateway = stack.enter_context(module.Gateway(**places))
    cluster = gateway.new_cluster(**options)
    stack.callback(cluster.close)
    cluster.scale(workers)
    client: Client = cluster.get_client()
    stack.callback(_close, client)
    return client


def _client_of(stack: ExitStack, cluster: Any) -> Client:
    stack.callback(cluster.close)
    client = Client(cluster)
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
