"""How a compiled ensemble reaches the tasks of a map.

An ensemble that was loaded from a file goes into the graph as a path and a digest, and each process
compiles it once. One that exists in memory only goes along as it is.
"""

from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

from smgrid.errors import BundleError
from smgrid.features.layout import FeatureLayout
from smgrid.inference.engine import Engine, compile_ensemble
from smgrid.models.bundle import load_ensemble
from smgrid.models.devices import check_device
from smgrid.models.ensemble import Ensemble

_lock = Lock()


@dataclass(frozen=True)
class EngineFile:
    """An engine by the file of its ensemble."""

    path: str
    layout: FeatureLayout | None
    digest: str
    device: str


def send(ensemble: Ensemble, *, device: str = "cpu") -> Engine | EngineFile:
    """Return what tasks need to run an ensemble: where it lies, or itself.

    Raises
    ------
    ConfigError
        There is no such device here.
    """
    origin = ensemble.origin
    if origin is None or origin.digest != ensemble.digest:
        return compile_ensemble(ensemble, device=device)
    check_device(device)
    return EngineFile(origin.path, origin.layout, origin.digest, device)


def receive(engine: Engine | EngineFile) -> Engine:
    """Return the engine; one of a file is compiled at its first use in a process.

    Raises
    ------
    BundleError
        This process cannot read the file, or another ensemble is in its place.
    """
    if isinstance(engine, Engine):
        return engine
    with _lock:  # one compiles, the other threads wait
        return _compile(engine)


@lru_cache(maxsize=4)
def _compile(engine: EngineFile) -> Engine:
    try:
        ensemble = load_ensemble(engine.path, layout=engine.layout)
    except BundleError as error:
        raise BundleError(
            f"a worker cannot read the ensemble: {error}. Put it where all workers find it at the "
            "same path, load it from there and map again"
        ) from error
    if ensemble.digest != engine.digest:
        raise BundleError(
            f"{engine.path} holds another ensemble ({ensemble.digest[:12]}) than the one that is "
            f"mapped ({engine.digest[:12]}): it was replaced. Load it again and map again"
        )
    return compile_ensemble(ensemble, device=engine.device)
