"""Every command of the README runs, in its order, on a small demo.

`make demo` and `make test` are run by CI itself; commands that need the network are not run.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smgrid import demo
from smgrid.cube.store import open_map
from smgrid.training.plan import FitPlan

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.slow


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def offline_commands():
    for block in blocks("sh"):
        if not block.startswith("# needs the network"):
            yield from (line for line in block.splitlines() if not line.startswith("make "))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place where `make demo` was run, on a small region and a shorter archive of one end."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "START", "2021-05-01")
        patch.setattr(demo, "MONTHS", 15)
        patch.setattr(demo, "HELD_OUT_MONTHS", 3)
        patch.setattr(demo, "STATIONS", 20)
        plan = FitPlan(epochs=2)
        demo.run_demo(folder / "demo", size_km=3, plan=plan)
    shutil.copytree(ROOT / "pipelines", folder / "pipelines")
    return folder


def test_every_command_is_found():
    commands = list(offline_commands())
    assert len(commands) == 15
    assert {line.split()[0] for line in commands} == {"smgrid", "python"}
    assert sum(b.startswith("# needs the network") for b in blocks("sh")) == 1
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in makefile for target in re.findall(r"^make (\w+)", README, re.M))


@pytest.mark.parametrize("command", list(offline_commands()), ids=lambda c: " ".join(c.split()[:2]))
def test_command(folder, command):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_notebook(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert float(open_map("notebook_sm.zarr")["soil_moisture"].notnull().mean()) > 0.9


def test_pictures_exist():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path
