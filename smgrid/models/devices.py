"""Where networks run."""

import torch

from smgrid.errors import ConfigError


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have; raises `ConfigError`."""
    kind, _, number = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise ConfigError(f"device {str(device)!r} is unknown; expected 'cpu', 'cuda' or 'cuda:1'")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {str(device)!r}: {torch.cuda.device_count()} CUDA devices were found; check "
            "the driver, or give device='cpu'"
        )
