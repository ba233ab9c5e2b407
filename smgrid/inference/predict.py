"""Map an ensemble over a cube: lazy soil moisture, how sure it is, and quality flags."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from odc.geo.xr import xr_coords

from smgrid.errors import ConfigError, LayoutError
from smgrid.features.inputs import AsOf, Cube, ModelInputs, model_inputs
from smgrid.features.layout import FeatureLayout
from smgrid.inference.graph import lazy_outputs
from smgrid.inference.quality import FLAGS, HELPFUL, undetermined
from smgrid.inference.units import Recipe
from smgrid.inference.weights import send
from smgrid.models.applicability import Applicability
from smgrid.models.calibration import Calibration
from smgrid.models.ensemble import Ensemble
from smgrid.schema import describe

# Coverage of the interval of a calibrated ensemble, unless another one is asked for: the first that
# its held-out errors support.
INTERVALS = (0.9, 0.8, 0.5)


def predict(
    cube: Cube,
    ensemble: Ensemble,
    *,
    as_of: AsOf | None = None,
    window: Literal["causal", "published"] | None = None,
    interval: float | None = None,
    quantiles: Sequence[float] = (),
    device: str = "cpu",
) -> xr.Dataset:
    """Predict soil moisture for every acquisition with a full year of series behind it.

    Parameters
    ----------
    cube
        Cube as made by `load_cube` or `open_cube`.
    ensemble
        Trained networks with their layout.
    as_of
        Use only composites that had ended by this date, or by each ``"acquisition"``; default:
        composites that had begun (an archive run).
    window
        Replace the layout's window rule. ``"published"`` reads weather up to ten days after the
        acquisition and exists for parity with the published code only.
    interval
        Share of the truth that the calibrated interval shall hold, such as 0.5 or 0.95; default:
        0.9 where the ensemble is calibrated (less where its calibration does not support that),
        else no interval.
    quantiles
        Quantiles of the members to add, in whole per cent: ``(0.05, 0.5)`` gives
        ``soil_moisture_q05`` and ``soil_moisture_q50``. They tell how the members differ, not how
        far from the truth they are.
    device
        Where the networks run: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Returns
    -------
    xr.Dataset
        Lazy, dims (time, y, x), in m3 m-3: ``soil_moisture`` and ``soil_moisture_std`` (mean and
        spread of the members), their quantiles, and ``soil_moisture_lower`` and ``_upper`` of the
        calibrated interval. ``dissimilarity`` tells how far an input is from all that the ensemble
        was trained on, ``flags`` (CF flag_masks, see `smgrid.inference.quality`) where to be
        careful. NaN wherever a required input is missing. The layout, window rule and digest of
        the ensemble are attributes.

    Raises
    ------
    LayoutError
        The cube cannot provide what the ensemble was trained with, or an interval is wanted of an
        ensemble without calibration.
    WindowError
        No acquisition has a full year of series behind it.
    ConfigError
        A quantile or an interval that there cannot be, or a device that there is not.
    """
    layout = ensemble.layout if window is None else ensemble.layout.with_window(window)
    inputs = model_inputs(cube, layout, as_of=as_of)
    recipe = Recipe(
        engine=send(ensemble, device=device),
        layout=layout,
        quantiles=_check_quantiles(quantiles),
        interval=_interval(ensemble, interval),
        calibration=ensemble.calibration,
        applicability=ensemble.applicability,
        flags=_common_flags(inputs),
    )
    ds = _lazy_map(inputs, recipe, _helpful(cube, inputs))
    ds.attrs = _provenance(ensemble, layout, inputs, as_of)
    return ds


def _lazy_map(
    inputs: ModelInputs, recipe: Recipe, helpful: Mapping[str, xr.DataArray]
) -> xr.Dataset:
    acquisitions = np.flatnonzero(inputs.windows.complete)
    arrays = lazy_outputs(inputs, recipe, acquisitions, helpful=helpful)
    scenes = inputs.pixels["vv"].isel(time=acquisitions)
    coords = {
        **xr_coords(inputs.grid),
        **{name: c for name, c in scenes.coords.items() if c.dims == ("time",)},
    }
    ds = xr.Dataset(
        {
            name: describe(xr.DataArray(array, dims=("time", "y", "x"), name=name), name)
            for name, array in arrays.items()
        },
        coords=coords,
    )
    _describe_more(ds, recipe, [*inputs.pixels, *inputs.series, *helpful])
    return ds


def _check_quantiles(quantiles: Sequence[float]) -> tuple[float, ...]:
    if np.ndim(quantiles) != 1 or not all(isinstance(q, (int, float)) for q in quantiles):
        raise ConfigError(f"quantiles: expected a list such as [0.05, 0.95], got {quantiles!r}")
    bad = [q for q in quantiles if not (0 < q < 1 and abs(100 * q - round(100 * q)) < 1e-9)]
    if bad or len({round(100 * q) for q in quantiles}) < len(quantiles):
        raise ConfigError(
            f"quantiles: expected different ones of 0.01, 0.02, ..., 0.99, got {list(quantiles)}"
        )
    return tuple(sorted(quantiles))


def _interval(ensemble: Ensemble, wanted: float | None) -> float | None:
    if wanted is not None and not 0 < wanted < 1:
        raise ConfigError(f"interval: expected a share between 0 and 1, such as 0.9, got {wanted}")
    if ensemble.calibration is None:
        if wanted is None:
            return None
        raise LayoutError(
            "the ensemble has no calibration, without which the spread of its members says little "
            "about errors. Calibrate it with labels that it was not trained on: "
            "calibrate(ensemble, samples); or leave the interval out"
        )
    if wanted is None:
        highest = ensemble.calibration.highest_coverage
        return next((share for share in INTERVALS if share <= highest), None)
    ensemble.calibration.factor(wanted)  # raises now rather than in every unit
    return wanted


def _helpful(cube: Cube, inputs: ModelInputs) -> dict[str, xr.DataArray]:
    """Variables that only flags need, where a cube has them on the grids of its inputs."""
    nodes = [cube] if isinstance(cube, xr.Dataset) else [n.to_dataset() for n in cube.subtree]
    ndvi = inputs.series["ndvi"]
    found = {}
    for ds in nodes:
        for name in (*HELPFUL, "ndvi_filled"):
            if name not in ds.data_vars or name in inputs.pixels:
                continue
            grid = inputs.grid if name in HELPFUL else ndvi.odc.geobox
            dims = ("y", "x") if name in HELPFUL else ndvi.dims
            if ds[name].dims == dims and ds[name].odc.geobox == grid:
                found[name] = ds[name]
    if "ndvi_filled" in found and not found["ndvi_filled"]["date"].equals(ndvi["date"]):
        del found["ndvi_filled"]
    return found


def _describe_more(ds: xr.Dataset, recipe: Recipe, variables: Sequence[str]) -> None:
    ds["flags"].attrs |= {
        "flag_masks": np.array(list(FLAGS.values()), np.uint16),
        "flag_meanings": " ".join(FLAGS),
    }
    orbits = {str(orbit) for orbit in ds["orbit_state"].values} if "orbit_state" in ds else {""}
    known = [*variables, *(["orbit_state"] if orbits <= {"ascending", "descending"} else [])]
    unknown = undetermined(known)
    if recipe.applicability is None:
        unknown += ["outside_training_range", "outside_applicability"]
    else:
        ds["dissimilarity"].attrs["threshold"] = float(recipe.applicability.threshold)
    if unknown:
        ds["flags"].attrs["not_determined"] = " ".join(unknown)
    if recipe.interval is not None:
        for name in ("soil_moisture_lower", "soil_moisture_upper"):
            ds[name].attrs["coverage"] = recipe.interval


def _digest_of(part: Calibration | Applicability | None) -> str:
    """Tell one calibration or training summary of an ensemble from another."""
    return "" if part is None else part.digest


def _provenance(
    ensemble: Ensemble, layout: FeatureLayout, inputs: ModelInputs, as_of: AsOf | None
) -> dict[str, Any]:
    return {
        "title": "Surface soil moisture",
        "smgrid_layout": layout.name,
        "smgrid_layout_digest": layout.digest,
        "smgrid_window": layout.window,
        "smgrid_as_of": "archive" if as_of is None else str(as_of),
        "smgrid_convention": layout.convention,
        "smgrid_ensemble": ensemble.digest,
        "smgrid_members": len(ensemble.members),
        "smgrid_calibration": _digest_of(ensemble.calibration),
        "smgrid_applicability": _digest_of(ensemble.applicability),
        "smgrid_assumed": " ".join(inputs.assumed),
    }


def _common_flags(inputs: ModelInputs) -> int:
    """Combine the flags that hold for every pixel: they follow from the origin of the inputs."""
    approximate = any(inputs.pixels[n].attrs.get("approximate") for n in ("vv", "vh"))
    return (FLAGS["assumed_input"] if inputs.assumed else 0) | (
        FLAGS["approximate_convention"] if approximate else 0
    )
