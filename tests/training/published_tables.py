"""Tables of the published scripts for tests."""

import numpy as np
import pandas as pd
import torch

from smgrid.features.layout import FeatureLayout, get_layout
from smgrid.training.table import Samples, make_samples

PUBLISHED, RELEASED = get_layout("published"), get_layout("released-9km")
COLUMNS = [str(i) for i in range(153)]


def make_features(n: int, layout: FeatureLayout, seed: int = 0) -> np.ndarray:
    """Random scaled vectors in which what a layout promises holds."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, 153), dtype="f4")
    names = [column.feature for column in layout.snapshot]
    for sine, cosine in (("doy_sin", "doy_cos"), ("ease_col_sin", "ease_col_cos")):
        angle = rng.uniform(0, 2 * np.pi, n)
        for name, value in ((sine, np.sin(angle)), (cosine, np.cos(angle))):
            for i in (i for i, found in enumerate(names) if found == name):
                x[:, i] = (value + 1) / 2
    return x


def write_table(path, x: np.ndarray, **columns):
    """A file as pandas writes it for the published scripts."""
    table = pd.DataFrame({"s_index": range(1, len(x) + 1), **columns})
    pd.concat([table, pd.DataFrame(x, columns=COLUMNS[: x.shape[1]])], axis=1).to_csv(
        path, index=False
    )
    return path


def published_samples(n=30, layout=PUBLISHED, seed=0, **facts) -> Samples:
    x = torch.from_numpy(make_features(n, layout, seed))
    rng = np.random.default_rng(seed)
    facts = {
        "label": torch.from_numpy(rng.uniform(0.02, 0.6, n).astype("f4")),
        "time": np.datetime64("2016-02-29", "ns") + np.arange(n) * np.timedelta64(31, "D"),
        "longitude": rng.uniform(-179, 179, n),
        "latitude": rng.uniform(-60, 80, n),
        "station": [f"station {i}" for i in range(n)],
        "network": "SCAN",
    } | facts
    return make_samples(x[:, :15], x[:, 15:].reshape(n, 3, 46), torch.arange(n), **facts)
