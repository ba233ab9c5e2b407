"""An ensemble as a STAC Item of the Machine Learning Model extension."""

from datetime import datetime
from typing import Any, Literal

import pandas as pd
import pystac
import torch
from pystac.extensions.mlm import (
    AssetGeneralMLMExtension,
    Hyperparameters,
    InputStructure,
    MLMExtension,
    ModelInput,
    ModelOutput,
    ProcessingExpression,
    ResultStructure,
    TaskType,
    ValueScaling,
    ValueScalingType,
)
from pystac.extensions.raster import DataType, RasterBand, RasterExtension

from smgrid.features.layout import Column, FeatureLayout, SeriesColumn
from smgrid.models.bundle import CARD_NAME
from smgrid.models.ensemble import Ensemble

_ARCHITECTURE = "DenseSM"
_REFERENCE = "Zhu, Dai, Liu, Yuan and Walker (2024), Remote Sens. Environ. 301:113944"
_FEATURES = "smgrid.features.assemble:block_features"


def model_collection(
    ensemble: Ensemble,
    href: str,
    name: str,
    *,
    form: Literal["bundle", "checkpoints"],
    geometry: dict[str, Any],
    bbox: list[float],
    period: tuple[datetime, datetime],
) -> pystac.Collection:
    """Return a Collection with one Item that describes an ensemble.

    Parameters
    ----------
    ensemble
        The networks with their layout and card.
    href
        Link to the files.
    name
        Of the Collection; the Item is called by it and the digest.
    form
        What the files are.
    geometry, bbox, period
        Where (GeoJSON, degrees) and when the model was applied; the Item has the period of the
        training samples if the card tells it.
    """
    licence = str(ensemble.card.get("licence", "other"))
    collection = pystac.Collection(
        name,
        "Ensemble of neural networks that estimate surface soil moisture.",
        pystac.Extent(pystac.SpatialExtent([bbox]), pystac.TemporalExtent([list(period)])),
        title="Soil moisture model",
        # STAC wants an SPDX identifier; a sentence is none.
        license="other" if " " in licence else licence,
        extra_fields={"smgrid_licence": licence},
    )
    item = _model_item(ensemble, name, geometry, bbox, period)
    _add_assets(item, href, form)
    RasterExtension.ext(item.assets["model"], add_if_missing=True).apply(_bands(ensemble.layout))
    collection.add_item(item)
    return collection


def _model_item(
    ensemble: Ensemble,
    name: str,
    geometry: dict[str, Any],
    bbox: list[float],
    period: tuple[datetime, datetime],
) -> pystac.Item:
    start, end = _training_period(ensemble) or period
    item = pystac.Item(
        f"{name}-{ensemble.digest[:12]}",
        geometry,
        bbox,
        None,
        {
            "title": f"{_ARCHITECTURE} ensemble of {len(ensemble.members)}",
            "smgrid_ensemble": ensemble.digest,
            "smgrid_layout": ensemble.layout.name,
            "smgrid_layout_digest": ensemble.layout.digest,
            "smgrid_references": _REFERENCE,
        },
        start_datetime=start,
        end_datetime=end,
    )
    if "training" in ensemble.card:
        item.properties["smgrid_training"] = ensemble.card["training"]
    _describe_model(item, ensemble)
    return item


def _training_period(ensemble: Ensemble) -> tuple[datetime, datetime] | None:
    samples = ensemble.card.get("training", {}).get("samples", {})
    periods = [part.get("period") for part in samples.values() if isinstance(part, dict)]
    days = [pd.Timestamp(day, tz="UTC") for period in periods if period for day in period]
    return (min(days).to_pydatetime(), max(days).to_pydatetime()) if days else None


def _bands(layout: FeatureLayout) -> list[RasterBand]:
    """Return what the inputs' bands refer to."""
    columns = layout.column_names[: len(layout.snapshot)]
    bands = []
    for name in (*columns, *(column.feature for column in layout.series)):
        band = RasterBand.create(data_type=DataType.FLOAT32)
        band.properties["name"] = name
        bands.append(band)
    return bands


def _describe_model(item: pystac.Item, ensemble: Ensemble) -> None:
    networks = [network for _, network in ensemble.members]
    sizes = [sum(p.numel() for p in n.parameters()) for n in networks]
    MLMExtension.ext(item, add_if_missing=True).apply(
        name=item.id,
        architecture=_ARCHITECTURE,
        tasks=[TaskType.REGRESSION],
        input=_inputs(ensemble.layout),
        output=[_output()],
        framework="PyTorch",
        framework_version=torch.__version__,
        total_parameters=sum(sizes),
        memory_size=4 * sum(sizes),
        hyperparameters=_hyperparameters(ensemble),
    )


def _inputs(layout: FeatureLayout) -> list[ModelInput]:
    columns = list(layout.column_names[: len(layout.snapshot)])
    found = [_input("snapshot", columns, layout.snapshot, steps=None)]
    if layout.series:
        names: list[str] = [column.feature for column in layout.series]
        found.append(_input("series", names, layout.series, steps=layout.steps))
    return found


def _input(
    name: str,
    bands: list[str],
    columns: tuple[Column, ...] | tuple[SeriesColumn, ...],
    *,
    steps: int | None,
) -> ModelInput:
    shape, order = [-1, len(bands)], ["batch", "bands"]
    if steps is not None:
        shape, order = [*shape, steps], [*order, "time"]
    made = ModelInput.create(
        name=name,
        bands=bands,
        input=InputStructure.create(shape=shape, dim_order=order, data_type=DataType.FLOAT32),
        pre_processing_function=ProcessingExpression.create(format="python", expression=_FEATURES),
    )
    # One object per band, which pystac's own setter does not take.
    made.properties["value_scaling"] = [
        ValueScaling.create(
            type=ValueScalingType.MIN_MAX, minimum=float(c.low), maximum=float(c.high)
        ).to_dict()
        for c in columns
    ]
    return made


def _output() -> ModelOutput:
    result = ResultStructure.create(
        shape=[-1, 1], dim_order=["batch", "value"], data_type=DataType.FLOAT32
    )
    return ModelOutput.create(
        name="soil_moisture",
        tasks=[TaskType.REGRESSION],
        result=result,
        description="Surface soil moisture, m3 m-3: the mean of the members",
        classes=[],
    )


def _hyperparameters(ensemble: Ensemble) -> Hyperparameters:
    networks = [network for _, network in ensemble.members]
    plan = ensemble.card.get("training", {}).get("plan", {})
    return Hyperparameters.create(
        members=len(networks),
        depths=[network.depth for network in networks],
        widths=[network.width for network in networks],
        **plan,
    )


def _add_assets(item: pystac.Item, href: str, form: Literal["bundle", "checkpoints"]) -> None:
    model = pystac.Asset(href, title="Weights of all members", roles=["mlm:model"])
    item.add_asset("model", model)
    kind = {"bundle": "safetensors.torch.save", "checkpoints": "torch.save"}[form]
    AssetGeneralMLMExtension.ext(model).apply(artifact_type=kind)
    if form == "bundle":
        card = pystac.Asset(
            f"{href.rstrip('/')}/{CARD_NAME}",
            title="Card: layout, training and metrics",
            media_type="application/json",
            roles=["metadata"],
        )
        item.add_asset("card", card)
