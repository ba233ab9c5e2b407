"""Calibrations and training summaries for tests, without an ensemble that they are of."""

import numpy as np

from smgrid.models.applicability import Applicability, feature_vectors
from smgrid.models.calibration import Calibration


def make_calibration(**changes) -> Calibration:
    facts = {
        "a": 0.03,
        "b": 0.5,
        "scores": tuple(np.linspace(0, 4, 201).tolist()),
        "rows": 400,
        "groups": 20,
        "effective": 80.0,
        "fitted_on": "validation",
        "ensemble": "",
        "coverage": {"validation": {"0.5": 0.48, "0.8": 0.81}},
    } | changes
    return Calibration(**facts)


def make_rows(n=50, m=9, *, columns=15, series=3, steps=46, seed=0):
    """Rows as the engine gets them: snapshot, series and series_index."""
    rng = np.random.default_rng(seed)
    snapshot = rng.random((n, columns), dtype=np.float32)
    runs = rng.random((m, series, steps), dtype=np.float32)
    return snapshot, runs, rng.integers(0, m, n)


def make_applicability(rows=None, **changes) -> Applicability:
    """All rows as the coreset, features of different importance."""
    vectors = feature_vectors(*(rows or make_rows()))
    weight = np.linspace(0, 2, vectors.shape[1], dtype=np.float32)
    weighted = vectors * weight
    centre = weighted.mean(axis=0)
    facts = {
        "low": vectors.min(axis=0),
        "high": vectors.max(axis=0),
        "weight": weight,
        "coreset": weighted - centre,
        "centre": centre,
        "mean_distance": 1.5,
        "threshold": 0.5,
        "radius": 0.0,
        "rows": len(vectors),
        "groups": 4,
    } | changes
    return Applicability(**facts)
