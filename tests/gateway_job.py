"""A Gateway server on this machine and one worker of it, which computes; run by test_cluster.py."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import requests

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, below the repository

from smgrid.cluster import open_scheduler

CONFIG = """
c.DaskGateway.address = "127.0.0.1:{api}"
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.log_level = "ERROR"
c.UnsafeLocalBackend.clusters_directory = "{folder}"
c.UnsafeLocalBackend.inherited_environment = [{environ}]
c.Proxy.address = "127.0.0.1:{http}"
c.Proxy.tcp_address = "127.0.0.1:{tcp}"
c.ClusterConfig.scheduler_cmd = ["{python}", "-m", "distributed.cli.dask_scheduler"]
c.ClusterConfig.worker_cmd = ["{python}", "-m", "distributed.cli.dask_worker"]
"""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def main():
    ports = {name: free_port() for name in ("api", "http", "tcp")}
    environ = ", ".join(repr(name) for name in ("PATH", "PYTHONPATH", "HOME"))
    text = CONFIG.format(folder=Path.cwd(), python=sys.executable, environ=environ, **ports)
    Path("gateway.py").write_text(text)
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-m", "dask_gateway_server", "-f", "gateway.py"]
    server = subprocess.Popen(command)
    try:
        options = {"workers": 1, "proxy_address": f"tls://127.0.0.1:{ports['tcp']}", "wait": 60}
        _wait_for(ports["http"])
        address = f"gateway:http://127.0.0.1:{ports['http']}"
        with open_scheduler(address, options=options) as client:
            threads = client.run(lambda: os.environ["OMP_NUM_THREADS"])
            sys.stdout.write(
                f"workers {len(threads)}\nOMP_NUM_THREADS {next(iter(threads.values()))}\n"
            )
    finally:
        server.terminate()
        server.wait()


def _wait_for(port):
    for _ in range(300):
        with suppress(requests.RequestException):
            if requests.get(f"http://127.0.0.1:{port}/api/health", timeout=1).ok:
                return
        time.sleep(0.1)


if __name__ == "__main__":
    main()
