"""Every notebook runs as a reader would run it, offline, and shows what its text says."""

import base64
import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from matplotlib.image import imread

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
FIGURES = {"cluster": 1, "flanders": 3, "region_to_map": 4, "train_and_adapt": 2}
INPUTS = {
    "SMGRID_SITE": "data/real/colocated_worldcereal/00002806639B424A",
    "SMGRID_DENSESM_9KM": "data/densesm_9km",
}
CELL_TIMEOUT = 300
# No request leaves the machine: the proxy is a port where nobody listens.
OFFLINE = {
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "no_proxy": "localhost,127.0.0.1",
}
# Said of a process of a cluster on a busy machine, where ending it takes long.
SLOW = re.compile(r"distributed\.nanny - WARNING - Worker process still alive after")
NUMBER = r"([-+]?\d+(?:\.\d+)?)"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Run:
    """What an executed notebook shows, and the folder in which its kernel ran."""

    name: str
    folder: Path
    outputs: list[Any]

    @property
    def text(self):
        """What was printed, and tables as text."""
        return "\n".join(
            o["text"] if o["output_type"] == "stream" else o["data"].get("text/plain", "")
            for o in self.outputs
        )

    @property
    def figures(self):
        pictures = [
            o["data"]["image/png"] for o in self.outputs if "image/png" in o.get("data", {})
        ]
        return [imread(io.BytesIO(base64.b64decode(picture))) for picture in pictures]

    def numbers(self, pattern):
        """Return the numbers in the first text like a pattern, in which # stands for one."""
        found = re.search(pattern.replace("#", NUMBER), self.text)
        assert found, f"{self.name} says nothing like {pattern!r}:\n{self.text}"
        return [float(value) for value in found.groups()]


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def execute(name, folder, environment):
    """Execute a copy of a notebook with nbmake; return what it said and the copy."""
    for place in ("here", "temporary", "settings"):
        (folder / place).mkdir()
    copy = folder / "here" / f"{name}.ipynb"
    shutil.copy(FOLDER / copy.name, copy)
    places = {
        "TMPDIR": folder / "temporary",
        "IPYTHONDIR": folder / "settings",
        "JUPYTER_RUNTIME_DIR": folder / "settings",
    }
    kept = {k: v for k, v in os.environ.items() if k not in INPUTS and "PYTEST" not in k}
    given = {k: str(v) for k, v in {**OFFLINE, **places, **environment}.items()}
    command = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", "--nbmake"]
    command += ["--overwrite", f"--nbmake-timeout={CELL_TIMEOUT}", copy.name]
    done = subprocess.run(
        command, cwd=copy.parent, env=kept | given, capture_output=True, text=True, check=False
    )
    return done, nbformat.read(copy, as_version=4)


@pytest.fixture(scope="module", params=FIGURES)
def ran(request, tmp_path_factory):
    name, environment = request.param, {}
    if name == "flanders":
        shared = request.getfixturevalue("shared")
        environment = {variable: shared / path for variable, path in INPUTS.items()}
    folder = tmp_path_factory.mktemp(name)
    done, notebook = execute(name, folder, environment)
    assert done.returncode == 0, done.stdout
    return Run(name, folder, [o for cell in notebook.cells for o in cell.get("outputs", [])])


def test_every_notebook_is_known_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == FIGURES.keys()


@pytest.mark.parametrize("name", FIGURES)
def test_notebooks_are_stored_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        assert cell.metadata == {}
        assert re.fullmatch(r"[a-z-]+-\d\d", cell.id)
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert not re.search(r"/(home|work|tmp|Users)/", (FOLDER / f"{name}.ipynb").read_text("utf-8"))


def test_nothing_but_results_is_shown(ran):
    """No error, and no warning: a reader would take it for one."""
    assert ran.outputs
    said = [o["text"] for o in ran.outputs if o.get("name") == "stderr"]
    lines = [line for text in said for line in text.splitlines() if line and not SLOW.search(line)]
    assert lines == []
    assert [o["evalue"] for o in ran.outputs if o["output_type"] == "error"] == []


def test_figures_show_something(ran):
    assert len(ran.figures) == FIGURES[ran.name]
    for picture in ran.figures:
        height, width, _ = picture.shape
        assert height >= 400
        assert width >= 600
        some = picture[::3, ::3].reshape(-1, picture.shape[-1])
        assert len(np.unique(some, axis=0)) > 200
        assert (picture[..., :3].min(axis=-1) < 0.95).mean() > 0.05


def test_files_are_temporary(ran):
    assert [path.name for path in (ran.folder / "here").iterdir()] == [f"{ran.name}.ipynb"]
    left = [path.name for path in (ran.folder / "temporary").iterdir()]
    assert not [name for name in left if name.startswith("smgrid")]


def test_numbers_are_sane(ran):
    CHECKS[ran.name](ran)


def check_region(ran):
    correlation, rmse, bias = ran.numbers(r"R #, RMSE #, bias # m3 m-3")
    assert correlation > 0.5
    assert rmse < 0.1
    assert abs(bias) < 0.07
    (inside,) = ran.numbers(r"the 90 % interval holds # % of the truth")
    assert 70 <= inside <= 99


def check_flanders(ran):
    passes, mean = ran.numbers(r"# passes, [^\n]*\nmean # m3 m-3")
    assert 37 <= passes <= 40
    assert 0.15 < mean < 0.40
    assert "assumed: angle sand clay bdod" in ran.text
    causal, after = ran.numbers(r"causal +# +#")
    published, published_after = ran.numbers(r"published +# +#")
    assert causal > 0.5 > published
    assert after < 0 < published_after


def check_training(ran):
    (coarse,) = ran.numbers(r"on other SMAP cells: R #")
    assert coarse > 0.5
    averages = ran.text[ran.text.rindex("pre-trained only") :]
    rows = {
        name: [float(v) for v in re.search(rf"{name} +{NUMBER} +{NUMBER}", averages).groups()]
        for name in ("pre-trained only", "scratch", "fine-tuned", "adapted")
    }
    correlation, rmse = ({name: row[k] for name, row in rows.items()} for k in (0, 1))
    assert correlation["adapted"] > max(0.5, correlation["scratch"])
    assert rmse["adapted"] < rmse["pre-trained only"]


def check_cluster(ran):
    assert ran.numbers("# workers") == [2]
    done, total = ran.numbers("interrupted with # of # units done")
    assert 20 <= done < total
    assert "open_cube refuses it" in ran.text
    assert ran.numbers("second time: # of # units written") == [total - done, total]
    assert ran.numbers("third time: # of # units written") == [0, total]
    mapped, units = ran.numbers("map: # of # units written")
    assert mapped == units >= 8
    passes, written = ran.numbers(r"# new passes, [^\n]*: # units written")
    assert passes == written >= 3
    same, old = ran.numbers("# of # old chunks as they were")
    assert same == old > units
    assert len(re.findall(r"sm.zarr: sound; \d+ objects checked", ran.text)) == 2


CHECKS = {
    "cluster": check_cluster,
    "flanders": check_flanders,
    "region_to_map": check_region,
    "train_and_adapt": check_training,
}


def test_flanders_stops_with_one_sentence_where_its_inputs_are_not_set(tmp_path):
    done, notebook = execute("flanders", tmp_path, {})
    assert done.returncode == 1
    assert "Set SMGRID_SITE and SMGRID_DENSESM_9KM to run" in done.stdout
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert set(counts[1:]) == {None}
