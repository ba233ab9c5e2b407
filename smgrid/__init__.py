"""Field-scale soil moisture: aligned datacubes, deep ensembles and maps that can be trusted.

Every public name is here and nowhere else; each is imported when it is first used, so that
``import smgrid`` stays quick and touches neither torch nor the network.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from smgrid.catalog import open_catalog
    from smgrid.cube.build import load_cube
    from smgrid.cube.icechunk_store import list_snapshots, open_icechunk, write_icechunk
    from smgrid.cube.inspect import inspect
    from smgrid.cube.store import open_cube, open_map, write_cube
    from smgrid.cube.update import update_cube
    from smgrid.cube.verify import verify
    from smgrid.features.layout import FeatureLayout, get_layout
    from smgrid.grid import ease_grid, make_grid
    from smgrid.inference.predict import predict
    from smgrid.models.bundle import load_ensemble, save_ensemble
    from smgrid.models.ensemble import Ensemble, predict_samples
    from smgrid.simulate import simulate_world
    from smgrid.sources.bridge import fit_bridge
    from smgrid.sources.gaps import find_gaps
    from smgrid.sources.stations import open_stations
    from smgrid.training.fit import FitPlan, fit
    from smgrid.training.labels import station_labels
    from smgrid.training.samples import Samples, collect_samples, split_by_block, stream_samples
    from smgrid.validation.metrics import Scores, score

_HOME = {
    "smgrid.catalog": ("open_catalog",),
    "smgrid.cube.build": ("load_cube",),
    "smgrid.cube.icechunk_store": ("list_snapshots", "open_icechunk", "write_icechunk"),
    "smgrid.cube.inspect": ("inspect",),
    "smgrid.cube.store": ("open_cube", "open_map", "write_cube"),
    "smgrid.cube.update": ("update_cube",),
    "smgrid.cube.verify": ("verify",),
    "smgrid.features.layout": ("FeatureLayout", "get_layout"),
    "smgrid.grid": ("ease_grid", "make_grid"),
    "smgrid.inference.predict": ("predict",),
    "smgrid.models.bundle": ("load_ensemble", "save_ensemble"),
    "smgrid.models.ensemble": ("Ensemble", "predict_samples"),
    "smgrid.simulate": ("simulate_world",),
    "smgrid.sources.bridge": ("fit_bridge",),
    "smgrid.sources.gaps": ("find_gaps",),
    "smgrid.sources.stations": ("open_stations",),
    "smgrid.training.fit": ("FitPlan", "fit"),
    "smgrid.training.labels": ("station_labels",),
    "smgrid.training.samples": ("Samples", "collect_samples", "split_by_block", "stream_samples"),
    "smgrid.validation.metrics": ("Scores", "score"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [  # noqa: RUF022
    "FeatureLayout",
    "Ensemble",
    "FitPlan",
    "Samples",
    "Scores",
    "collect_samples",
    "ease_grid",
    "find_gaps",
    "fit",
    "fit_bridge",
    "get_layout",
    "inspect",
    "list_snapshots",
    "load_cube",
    "load_ensemble",
    "make_grid",
    "open_catalog",
    "open_cube",
    "open_icechunk",
    "open_map",
    "open_stations",
    "predict",
    "predict_samples",
    "save_ensemble",
    "score",
    "simulate_world",
    "split_by_block",
    "station_labels",
    "stream_samples",
    "update_cube",
    "verify",
    "write_cube",
    "write_icechunk",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'smgrid' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
