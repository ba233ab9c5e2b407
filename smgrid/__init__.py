"""Field-scale soil moisture: aligned datacubes, deep ensembles and maps that can be trusted.

Every public name is here and nowhere else; each is imported when it is first used, so that
``import smgrid`` stays quick and touches neither torch nor the network.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from smgrid.catalog import open_catalog
    from smgrid.cluster import open_scheduler
    from smgrid.cube.build import load_cube
    from smgrid.cube.extend_map import extend_map
    from smgrid.cube.icechunk_store import list_snapshots, open_icechunk, write_icechunk
    from smgrid.cube.inspect import inspect
    from smgrid.cube.overviews import write_overviews
    from smgrid.cube.store import open_cube, open_map, write_cube
    from smgrid.cube.update import update_cube
    from smgrid.cube.verify import drop_damaged, verify
    from smgrid.export.cog import write_cogs
    from smgrid.export.manifest import map_manifest
    from smgrid.export.netcdf import write_netcdf
    from smgrid.export.page import write_page
    from smgrid.export.plot import plot_maps, plot_overview, plot_point, plot_scatter, plot_series
    from smgrid.export.replay import replay
    from smgrid.export.stac import write_stac
    from smgrid.export.zarr2 import write_zarr2
    from smgrid.features.layout import FeatureLayout, get_layout
    from smgrid.grid import ease_grid, make_grid
    from smgrid.inference.predict import predict
    from smgrid.inference.regular import regular_product
    from smgrid.metrics import Scores, score
    from smgrid.models.applicability import Applicability
    from smgrid.models.bundle import load_ensemble, save_ensemble
    from smgrid.models.calibration import Calibration
    from smgrid.models.ensemble import Ensemble, join_ensembles, predict_samples
    from smgrid.simulate import simulate_world
    from smgrid.sources.bridge import fit_bridge
    from smgrid.sources.gaps import find_gaps
    from smgrid.sources.stations import open_stations
    from smgrid.training.balance import balance_by_moisture
    from smgrid.training.collocation import at_sites, collocate_labels
    from smgrid.training.fit import finetune, fit, pretrain
    from smgrid.training.labels import station_labels
    from smgrid.training.leakage import check_leakage, drop_leaks
    from smgrid.training.plan import MSDA, FitPlan
    from smgrid.training.progress import call_each, epoch_bar, log_to_tensorboard
    from smgrid.training.published_table import read_published_csv, write_published_csv
    from smgrid.training.samples import collect_samples, stream_samples
    from smgrid.training.sites import merge_sites, select_sites
    from smgrid.training.splits import Split, SplitReport, split_samples
    from smgrid.training.table import Samples
    from smgrid.training.tablestore import open_samples, write_samples
    from smgrid.training.uncertainty import calibrate, fit_calibration, summarise_training

_HOME = {
    "smgrid.catalog": ("open_catalog",),
    "smgrid.cube.build": ("load_cube",),
    "smgrid.cube.icechunk_store": ("list_snapshots", "open_icechunk", "write_icechunk"),
    "smgrid.cube.inspect": ("inspect",),
    "smgrid.cluster": ("open_scheduler",),
    "smgrid.cube.extend_map": ("extend_map",),
    "smgrid.cube.overviews": ("write_overviews",),
    "smgrid.cube.store": ("open_cube", "open_map", "write_cube"),
    "smgrid.cube.update": ("update_cube",),
    "smgrid.cube.verify": ("drop_damaged", "verify"),
    "smgrid.export.cog": ("write_cogs",),
    "smgrid.export.manifest": ("map_manifest",),
    "smgrid.export.netcdf": ("write_netcdf",),
    "smgrid.export.page": ("write_page",),
    "smgrid.export.plot": (
        "plot_maps",
        "plot_overview",
        "plot_point",
        "plot_scatter",
        "plot_series",
    ),
    "smgrid.export.replay": ("replay",),
    "smgrid.export.stac": ("write_stac",),
    "smgrid.export.zarr2": ("write_zarr2",),
    "smgrid.features.layout": ("FeatureLayout", "get_layout"),
    "smgrid.grid": ("ease_grid", "make_grid"),
    "smgrid.inference.predict": ("predict",),
    "smgrid.inference.regular": ("regular_product",),
    "smgrid.models.applicability": ("Applicability",),
    "smgrid.models.calibration": ("Calibration",),
    "smgrid.models.bundle": ("load_ensemble", "save_ensemble"),
    "smgrid.models.ensemble": ("Ensemble", "join_ensembles", "predict_samples"),
    "smgrid.simulate": ("simulate_world",),
    "smgrid.sources.bridge": ("fit_bridge",),
    "smgrid.sources.gaps": ("find_gaps",),
    "smgrid.sources.stations": ("open_stations",),
    "smgrid.training.balance": ("balance_by_moisture",),
    "smgrid.training.collocation": ("at_sites", "collocate_labels"),
    "smgrid.training.fit": ("finetune", "fit", "pretrain"),
    "smgrid.training.labels": ("station_labels",),
    "smgrid.training.leakage": ("check_leakage", "drop_leaks"),
    "smgrid.training.plan": ("FitPlan", "MSDA"),
    "smgrid.training.progress": ("call_each", "epoch_bar", "log_to_tensorboard"),
    "smgrid.training.published_table": ("read_published_csv", "write_published_csv"),
    "smgrid.training.samples": ("collect_samples", "stream_samples"),
    "smgrid.training.sites": ("merge_sites", "select_sites"),
    "smgrid.training.splits": ("Split", "SplitReport", "split_samples"),
    "smgrid.training.table": ("Samples",),
    "smgrid.training.tablestore": ("open_samples", "write_samples"),
    "smgrid.training.uncertainty": ("calibrate", "fit_calibration", "summarise_training"),
    "smgrid.metrics": ("Scores", "score"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [  # noqa: RUF022
    "Applicability",
    "Calibration",
    "Ensemble",
    "FeatureLayout",
    "FitPlan",
    "MSDA",
    "Samples",
    "Scores",
    "Split",
    "SplitReport",
    "at_sites",
    "balance_by_moisture",
    "calibrate",
    "call_each",
    "check_leakage",
    "collect_samples",
    "collocate_labels",
    "drop_damaged",
    "drop_leaks",
    "ease_grid",
    "epoch_bar",
    "extend_map",
    "find_gaps",
    "finetune",
    "fit",
    "fit_bridge",
    "fit_calibration",
    "get_layout",
    "inspect",
    "join_ensembles",
    "list_snapshots",
    "load_cube",
    "load_ensemble",
    "log_to_tensorboard",
    "make_grid",
    "map_manifest",
    "merge_sites",
    "open_catalog",
    "open_cube",
    "open_icechunk",
    "open_map",
    "open_samples",
    "open_scheduler",
    "open_stations",
    "plot_maps",
    "plot_overview",
    "plot_point",
    "plot_scatter",
    "plot_series",
    "predict",
    "predict_samples",
    "pretrain",
    "read_published_csv",
    "regular_product",
    "replay",
    "save_ensemble",
    "score",
    "select_sites",
    "simulate_world",
    "split_samples",
    "station_labels",
    "stream_samples",
    "summarise_training",
    "update_cube",
    "verify",
    "write_cogs",
    "write_cube",
    "write_icechunk",
    "write_netcdf",
    "write_overviews",
    "write_page",
    "write_published_csv",
    "write_samples",
    "write_stac",
    "write_zarr2",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'smgrid' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
