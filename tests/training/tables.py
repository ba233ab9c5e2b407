"""Random tables of samples for tests."""

import numpy as np
import torch

from smgrid.training.table import Samples, make_samples


def random_samples(n=40, m=12, *, columns=15, series=3, steps=46, seed=0, **facts) -> Samples:
    rng = np.random.default_rng(seed)
    facts = {
        "label": torch.from_numpy(rng.uniform(0.05, 0.5, n).astype("f4")),
        "weight": torch.from_numpy(rng.uniform(0.5, 2, n).astype("f4")),
        "time": np.datetime64("2021-01-01", "ns")
        + rng.integers(0, 700, n) * np.timedelta64(1, "D"),
        "longitude": rng.uniform(4, 5, n),
        "latitude": rng.uniform(50, 51, n),
        "lag": rng.uniform(-6, 6, n),
        "station": [f"s{k}" for k in rng.integers(0, 5, n)],
        "network": [f"net{k}" for k in rng.integers(0, 2, n)],
    } | facts
    return make_samples(
        torch.from_numpy(rng.random((n, columns), dtype="f4")),
        torch.from_numpy(rng.random((m, series, steps), dtype="f4")),
        torch.from_numpy(rng.integers(0, m, n)),
        **facts,
    )
