"""Where networks run."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

from smgrid.errors import ConfigError

_lock, _before = Lock(), list[int]()


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch on one thread: small matrix products lose most of their speed on several.

    Tasks may overlap in a process, so the last one restores what the first one found.
    """
    with _lock:
        _before.append(_before[0] if _before else torch.get_num_threads())
        torch.set_num_threads(1)  # by every task: OpenMP counts per thread
    try:
        yield
    finally:
        with _lock:
            before = _before.pop()
            if not _before:
                torch.set_num_threads(before)


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have; raises `ConfigError`."""
    kind, _, number = str(device).partition(":")
    if re.fullmatch(r"cpu|cuda(:\d+)?", str(device)) is None:
        raise ConfigError(f"device {str(device)!r} is unknown; expected 'cpu', 'cuda' or 'cuda:1'")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {str(device)!r}: {torch.cuda.device_count()} CUDA devices were found; check "
            "the driver, or give device='cpu'"
        )
