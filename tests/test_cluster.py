"""Which scheduler: what one string chooses, and what workers are told."""

import asyncio
import os
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import dask
import dask.array as da
import pytest
from distributed import LocalCluster, Worker
from distributed.client import FutureCancelledError

from smgrid import cluster
from smgrid.cluster import ONE_THREAD, OneThread, open_scheduler
from smgrid.errors import ConfigError, MissingDependencyError, NoDataError, StoreError

MISSING = {
    "slurm": ("dask_jobqueue", "slurm:cores=2"),
    "kubernetes": ("dask_kubernetes.operator", "kubernetes"),
    "gateway": ("dask_gateway", "gateway:https://nowhere.example"),
}


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_this_process(scheduler):
    with open_scheduler(scheduler) as client:
        assert client is None
        assert dask.config.get("scheduler") == scheduler
    assert dask.config.get("scheduler", None) != scheduler


def test_a_number_of_threads():
    with open_scheduler("threads:3"):
        assert dask.config.get("num_workers") == 3


@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [
        ("thread", {}, "found 'thread', expected threads, synchronous, local, tcp://HOST:PORT"),
        ("local:0", {}, "found 'local:0'"),
        ("slurm:cores", {}, "found 'slurm:cores'"),
        ("synchronous:workers=2", {}, "synchronous has no options, found workers"),
        ("threads", {"memory": "4GiB"}, "threads has no options, found memory"),
        ("tcp://127.0.0.1:1", {"workers": 2}, "runs already and has no options, found workers"),
        ("local:1", {"colour": "red"}, "an option is not understood.*colour"),
        ("local", {"workers": "two"}, "workers is 'two', expected a whole number above 0"),
        ("local:workers=two", {}, "workers is 'two', expected a whole number above 0"),
        ("local", {"workers": -1}, "workers is -1, expected a whole number above 0"),
        ("local:workers=0", {}, "workers is 0, expected a whole number above 0"),
        ("local", {"workers": 1.5}, "workers is 1.5, expected a whole number above 0"),
        ("slurm", {"workers": None}, "workers is None, expected a whole number above 0"),
        ("slurm:cores=many", {}, "cores is 'many', expected a whole number above 0"),
        ("local:1", {"memory": "lots"}, "memory is 'lots', expected a size such as 4GiB"),
        ("local:memory=lots", {}, "memory is 'lots', expected a size such as 4GiB"),
        ("kubernetes", {"memory": "-4Gi"}, "memory is '-4Gi', expected a size such as 4GiB"),
        ("slurm", {"memory": "auto"}, "memory is 'auto', expected a size such as 4GiB"),
        ("local:1", {"wait": "soon"}, "wait is 'soon', expected seconds above 0"),
        ("local:wait=soon", {}, "wait is 'soon', expected seconds above 0"),
        ("tcp://127.0.0.1:1", {"wait": float("inf")}, "wait is inf, expected seconds above 0"),
    ],
)
def test_what_is_not_understood_is_named(scheduler, options, message):
    with pytest.raises(ConfigError, match=message), open_scheduler(scheduler, options=options):
        pass


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("local", {"workers": 2, "memory": "auto", "wait": 0.5}),
        ("local", {"memory": None}),
        ("local", {"memory": 0.5}),
        ("kubernetes", {"workers": 1, "memory": "4Gi"}),
        ("gateway", {"workers": 3, "memory": "small", "cores": 0.5}),
    ],
)
def test_options_that_are_understood_stay(kind, options):
    assert cluster._checked(kind, options) == options


def test_numbers_may_be_written_as_text():
    given = {"workers": "4", "wait": "0.5", "memory": "4GiB"}
    assert cluster._checked("slurm", given) == {"workers": 4, "wait": 0.5, "memory": "4GiB"}


def test_a_scheduler_that_is_not_there(monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT_S", 1)
    with (
        pytest.raises(ConfigError, match=r"tcp://127.0.0.1:1 does not answer.*start it or correct"),
        open_scheduler("tcp://127.0.0.1:1"),
    ):
        pass


@pytest.mark.parametrize("kind", MISSING)
def test_a_package_that_is_not_there_is_named_with_its_extra(kind, monkeypatch):
    package, scheduler = MISSING[kind]
    monkeypatch.setitem(sys.modules, package.partition(".")[0], None)
    monkeypatch.setitem(sys.modules, package, None)
    with (
        pytest.raises(MissingDependencyError, match=rf"pip install 'smgrid\[{kind}\]'"),
        open_scheduler(scheduler),
    ):
        pass


def test_workers_have_one_thread(monkeypatch):
    import torch

    for name in ONE_THREAD:
        monkeypatch.setenv(name, "7")
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    OneThread().setup(worker=None)
    assert {os.environ[name] for name in ONE_THREAD} == {"1"}
    assert chosen == [1]


@pytest.mark.slow
def test_local_processes_have_one_thread_and_give_up_early():
    with open_scheduler("local:1", options={"memory": "1GiB"}) as client:
        found = client.run(lambda dask_worker: (dask_worker.state.nthreads, os.environ.copy()))
        ((threads, environ),) = found.values()
        assert threads == 1
        assert ONE_THREAD.items() <= environ.items()
        limits = client.run(lambda dask_worker: dask_worker.memory_manager.memory_limit)
        assert set(limits.values()) == {2**30}
        allowed = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.allowed_failures)
        assert allowed == cluster.ALLOWED_FAILURES


@pytest.mark.slow
def test_no_worker_in_time(monkeypatch):
    monkeypatch.setattr(cluster, "LocalCluster", _without_workers(cluster.LocalCluster))
    with (
        pytest.raises(ConfigError, match=r"local:2: no worker within 0\.1 s"),
        open_scheduler("local:2", options={"wait": 0.1}),
    ):
        pass


def _without_workers(original):
    def make(**options):
        return original(**{**options, "n_workers": 0})

    return make


@pytest.fixture(scope="module")
def running():
    """The address of a scheduler in this process, with one worker."""
    options = {"processes": False, "n_workers": 1, "threads_per_worker": 1}
    with LocalCluster(**options, protocol="tcp", dashboard_address="127.0.0.1:0") as made:
        yield made.scheduler_address


def test_a_scheduler_that_is_lost_is_an_error_of_smgrid(running):
    lost = FutureCancelledError("a", "scheduler-connection-lost")
    with (
        pytest.raises(StoreError, match=r"tcp://.*: lost \(FutureCancelledError: .*run again"),
        open_scheduler(running),
    ):
        raise lost
    for other in (ZeroDivisionError("mine"), NoDataError("nothing")):
        with pytest.raises(type(other)) as caught, open_scheduler(running):
            raise other
        assert caught.value is other


@contextmanager
def _closing(address):
    """A scheduler that was lost half a minute ago: its client is closed."""
    with open_scheduler(address) as client:
        assert da.ones(3).sum().compute() == 3
        client.close()
        yield


def test_nothing_is_computed_in_this_process_when_the_scheduler_is_lost(running):
    """Which is what Dask does without a client, on the machine that a job is started from."""
    total = da.ones(3).sum()
    with pytest.raises(StoreError, match=r"lost .*no Client active"), _closing(running):
        total.compute()
    assert da.ones(3).sum().compute() == 3


def test_how_long_to_wait_for_workers_holds_while_a_job_runs(running):
    with open_scheduler(running):
        assert dask.config.get(cluster._PATIENCE) == "3600s"
    assert dask.config.get(cluster._PATIENCE) is None


def test_slurm_asks_for_one_worker_per_core():
    pytest.importorskip("dask_jobqueue")
    made = cluster.slurm_cluster(
        {"cores": 4, "memory": "16GB", "queue": "long", "account": "soil", "walltime": "02:00:00"}
    )
    with made:
        lines = made.job_script().splitlines()
    wanted = {"-p long", "-A soil", "-t 02:00:00", "--cpus-per-task=4", "--mem=15G"}
    assert wanted <= {line.removeprefix("#SBATCH ") for line in lines}
    assert {f"export {name}=1" for name in ONE_THREAD} <= set(lines)
    (command,) = [line for line in lines if "dask_worker" in line]
    assert "--nthreads 1 " in command
    assert "--nworkers 4 " in command
    assert "--memory-limit 3.73GiB" in command
    assert "--lifetime=6600s --lifetime-stagger=300s" in command


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [
        ("01:00:00", 3600),
        (90, 90 * 60),
        ("45:30", 45 * 60 + 30),
        ("1-12", 36 * 3600),
        ("1-12:30", 36.5 * 3600),
        ("2-03:04:05", 51 * 3600 + 4 * 60 + 5),
    ],
)
def test_workers_end_before_their_job(walltime, seconds):
    """Formats of ``sbatch --time``; the stagger is added or taken away."""
    lifetime, stagger = (float(arg.split("=")[1][:-1]) for arg in cluster._lifetime(walltime))
    assert 0.9 * seconds < lifetime + stagger < seconds - 60
    assert 0 < stagger <= 300


def test_a_job_without_end_has_workers_without_end():
    assert cluster._lifetime(None) == cluster._lifetime("unlimited") == []


def test_a_walltime_that_is_not_understood():
    with pytest.raises(ConfigError, match=r"walltime is 'a day', expected HH:MM:SS"):
        cluster._lifetime("a day")


@pytest.fixture
def batch_system(monkeypatch):
    """A SLURM that runs workers in this process: the jobs by number, and how many were seen."""
    slurm = pytest.importorskip("dask_jobqueue.slurm")
    recommendations = cluster.Replacing.recommendations
    jobs, starting, looks = {}, [], []

    async def start(workers, address, names):
        while len(jobs) > 2 and len(looks) < 12:  # the third one waits in the queue
            await asyncio.sleep(0.01)
        workers += [Worker(address, name=name, nthreads=1) for name in names]
        await asyncio.gather(*workers)

    async def look(self, target):
        looks.append(len(self.observed))
        return await recommendations(self, target)

    async def submit(self, script):
        command = shlex.split(self.job_script().splitlines()[-1])
        address, name = command[3], command[command.index("--name") + 1]
        names = [name] if self.worker_processes == 1 else [f"{name}-0", f"{name}-1"]
        number = str(len(jobs))
        jobs[number] = []
        starting.append(asyncio.ensure_future(start(jobs[number], address, names)))
        return f"Submitted batch job {number}"

    async def cancel(self, job_id, cancel_command):
        await end_job(jobs[job_id])

    monkeypatch.setattr(slurm.SLURMJob, "_submit_job", submit)
    monkeypatch.setattr(slurm.SLURMJob, "_close_job", cancel)
    monkeypatch.setattr(cluster, "_LOOK", "50ms")
    monkeypatch.setattr(cluster.Replacing, "recommendations", look)
    return jobs, looks


async def end_job(workers):
    for worker in workers:
        await worker.close()


@pytest.mark.parametrize("cores", [1, 2])
def test_slurm_jobs_that_end_are_submitted_again(batch_system, cores):
    jobs, looks = batch_system
    options = {"workers": 2 * cores, "cores": cores, "memory": "2GiB", "wait": 20}
    options["scheduler_options"] = {"host": "127.0.0.1"}
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "0.1s"}),
        open_scheduler("slurm", options=options) as client,
    ):
        client.wait_for_workers(2 * cores, timeout=20)
        while looks[-1:] != [2 * cores]:
            time.sleep(0.01)
        assert len(jobs) == 2
        looks.clear()
        client.sync(end_job, jobs["0"])
        assert len(client.nthreads()) == cores
        while len(client.nthreads()) < 2 * cores:  # `wait_for_workers` disturbs how it is told
            time.sleep(0.01)
        assert len(jobs) == 3


def test_slurm_is_asked_for_the_workers_of_the_string(monkeypatch, tmp_path):
    """Up to the submission, which is where a machine without SLURM ends."""
    jobqueue = pytest.importorskip("dask_jobqueue")
    asked, closed = {}, []

    class Cluster(jobqueue.SLURMCluster):
        def scale(self, workers):
            asked.setdefault(workers, self.job_script())  # at the end it asks for none

        def close(self, timeout=None):
            closed.append(self)  # a second time would wait for ever if the first one fails
            return super().close(timeout)

    monkeypatch.setattr(jobqueue, "SLURMCluster", Cluster)
    with (
        pytest.raises(ConfigError, match=r"no worker within 0\.1 s"),
        open_scheduler("slurm:cores=2,workers=6,queue=long", options={"wait": 0.1}),
    ):
        pass
    assert "#SBATCH -p long" in asked[6]
    assert len(closed) == 1


def test_kubernetes_describes_workers_with_one_thread():
    pytest.importorskip("dask_kubernetes")
    spec = cluster.kubernetes_spec(
        {"image": "soil:1", "workers": 5, "memory": "2Gi", "env": {"AWS_REGION": "eu"}}
    )
    worker = spec["spec"]["worker"]
    assert worker["replicas"] == 5
    (container,) = worker["spec"]["containers"]
    assert container["image"] == "soil:1"
    assert container["args"][:3] == ["dask-worker", "--nthreads", "1"]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    allowed = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1", "AWS_REGION": "eu"}
    assert environ == ONE_THREAD | allowed


def test_kubernetes_needs_an_image():
    pytest.importorskip("dask_kubernetes")
    with pytest.raises(ConfigError, match="needs image"):
        cluster.kubernetes_spec({})


@pytest.mark.slow
def test_a_gateway_on_this_machine(tmp_path):
    """A real server, whose clusters are processes of this machine."""
    pytest.importorskip("dask_gateway")
    pytest.importorskip("dask_gateway_server")
    script = Path(__file__).with_name("gateway_job.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["workers", "1", "OMP_NUM_THREADS", "1"]
