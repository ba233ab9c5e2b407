"""What prediction costs: the compiled engine beside the members' own forward pass, and the graph.

    python benchmarks/inference.py [--quick]

Both paths get the same pixels on one thread, interleaved, and the median of the repeats counts. The
geometry is that of a 100 m grid: 5.2 pixels share one series. CPU seconds, so that other work on
the machine matters less. The last line is one JSON object.
"""

import argparse
import json
import pickle
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from smgrid.features.layout import get_layout
from smgrid.inference.engine import compile_ensemble
from smgrid.models.densesm import DenseSM
from smgrid.models.ensemble import Ensemble, predict_samples

PIXELS_PER_SERIES = 5.2  # 100 m pixels, 231 m NDVI, 0.1 degree weather


def make_ensemble() -> Ensemble:
    """25 networks of the published sizes with random weights: speed does not depend on them."""
    torch.manual_seed(0)
    members = [(f"m_{d}_{w}", DenseSM(d, w)) for d in range(1, 6) for w in (8, 16, 32, 64, 128)]
    return Ensemble(members=tuple(members), layout=get_layout("released-9km"))


def cpu_seconds(function: Callable[[], object]) -> float:
    """Time one call in CPU seconds of this process."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(pixels: int, repeats: int) -> dict[str, float]:
    """Compare both paths on the same pixels."""
    rng = np.random.default_rng(0)
    distinct = int(pixels / PIXELS_PER_SERIES)
    snapshot = rng.random((pixels, 15), dtype=np.float32)
    series = rng.random((distinct, 3, 46), dtype=np.float32)
    index = rng.integers(0, distinct, pixels)
    rows = np.concatenate([snapshot, series[index].reshape(pixels, -1)], axis=1)
    ensemble = make_ensemble()
    engine = compile_ensemble(ensemble)
    plain, fast = [], []
    for _ in range(repeats):
        plain.append(cpu_seconds(lambda: predict_samples(ensemble, rows)))
        fast.append(cpu_seconds(lambda: engine.predict(snapshot, series, index)))
    difference = engine.predict(snapshot, series, index) - predict_samples(ensemble, rows)
    return {
        "plain_px_date_per_cpu_second": pixels / statistics.median(plain),
        "engine_px_date_per_cpu_second": pixels / statistics.median(fast),
        "engine_speedup": statistics.median(plain) / statistics.median(fast),
        "largest_difference": float(np.abs(difference).max()),
        "engine_megabytes": len(pickle.dumps(engine)) / 1e6,
    }


def main() -> None:
    """Print a table for people, then the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pixels, within a minute")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    figures = measure(pixels=8_000 if quick else 40_000, repeats=3 if quick else 7)
    for name, value in figures.items():
        print(f"{name:32s} {value:12.4g}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
