"""Which scheduler: what one string chooses, and what workers are told."""

import os
import subprocess
import sys
from pathlib import Path

import dask
import pytest

from smgrid import cluster
from smgrid.cluster import ONE_THREAD, OneThread, open_scheduler
from smgrid.errors import ConfigError, MissingDependencyError

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
    ],
)
def test_what_is_not_understood_is_named(scheduler, options, message):
    with pytest.raises(ConfigError, match=message), open_scheduler(scheduler, options=options):
        pass


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


def test_slurm_is_asked_for_the_workers_of_the_string(monkeypatch, tmp_path):
    """Up to the submission, which is where a machine without SLURM ends."""
    jobqueue = pytest.importorskip("dask_jobqueue")
    asked = {}

    class Cluster(jobqueue.SLURMCluster):
        def scale(self, workers):
            asked.setdefault(workers, self.job_script())  # at the end it asks for none

    monkeypatch.setattr(jobqueue, "SLURMCluster", Cluster)
    with (
        pytest.raises(ConfigError, match=r"no worker within 0\.1 s"),
        open_scheduler("slurm:cores=2,workers=6,queue=long", options={"wait": 0.1}),
    ):
        pass
    assert "#SBATCH -p long" in asked[6]


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
