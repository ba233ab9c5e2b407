"""Fixtures shared by the whole suite."""

import os
from pathlib import Path

import pytest
import torch

# Two threads on busy cores make small matrix products slower, not faster.
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of this run's cache, so that no test reads what another run has fetched."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["SMGRID_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the published weights, golden vectors and real samples.

    Its absence skips a test on a contributor's machine and fails it in CI.
    """
    if SHARED.is_dir():
        return SHARED
    message = "the shared data folder is not beside the checkout"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
