"""The flow of the architecture is held by import-linter; the tests hold that it is run."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_no_module_imports_from_a_later_stage():
    command = [str(Path(sys.executable).with_name("lint-imports"))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_module_stands_in_a_layer():
    """A package that the contract forgets would be free to import anything."""
    import tomllib

    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    named = {n.strip() for layer in contract["contracts"][0]["layers"] for n in layer.split("|")}
    modules = {
        f"smgrid.{p.stem if p.suffix else p.name}"
        for p in (ROOT / "smgrid").iterdir()
        if (p.suffix == ".py" or (p / "__init__.py").exists()) and p.stem != "__init__"
    }
    assert modules <= named, f"not in any layer: {sorted(modules - named)}"
