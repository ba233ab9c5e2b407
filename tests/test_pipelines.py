import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "pipelines" / "map_region.py"


def run(*args, cwd):
    command = [sys.executable, str(SCRIPT), *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("period: [2021-01-01, 2022-03-01]\nmap: sm.zarr\n", "cube"),
        ("periods: [2021-01-01, 2022-03-01]\ncube: c.zarr\nmap: sm.zarr\n", "line 1"),
        ("period: [2021-01-01, 2022-03-01]\ncube: c.zarr\nmap: m.zarr\ncatalog: no.yml\n", "bbox"),
    ],
)
def test_a_bad_job_is_one_message_and_exit_code_2(text, message, tmp_path):
    (tmp_path / "job.yml").write_text(text)
    result = run("job.yml", cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["job.yml"]


def test_a_missing_job_or_argument(tmp_path):
    assert run("nowhere.yml", cwd=tmp_path).returncode == 2
    usage = run(cwd=tmp_path)
    assert usage.returncode == 2
    assert "python pipelines/map_region.py config.yml" in usage.stderr
