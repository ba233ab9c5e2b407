"""What training refuses before it begins."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from smgrid.errors import ConfigError
from smgrid.features.layout import get_layout
from smgrid.models.densesm import DenseSM
from smgrid.models.ensemble import Ensemble
from smgrid.training.checks import check_samples
from smgrid.training.fit import finetune, fit
from smgrid.training.loop import Domains, Job
from smgrid.training.plan import PUBLISHED_ADAPTATION, PUBLISHED_PRETRAINING, FitPlan
from smgrid.training.samples import stream_samples
from tests.cubes import make_cube
from tests.training.tables import random_samples

LAYOUT = get_layout("smgrid-1")
QUICK = replace(PUBLISHED_PRETRAINING, epochs=1, average_from=0)


def with_value(name, value, place):
    samples = random_samples(40, seed=1)
    getattr(samples, name)[place] = value
    return samples


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (with_value("snapshot", math.nan, (3, 2)), "1 of 40 training samples have inputs"),
        (with_value("label", math.nan, 3), "1 of 40 training samples have no label"),
        (with_value("label", 23.0, 3), "span .* to 23, expected 0 to 1 m3 m-3"),
        (with_value("label", -0.1, 3), "expected 0 to 1 m3 m-3"),
        (with_value("weight", -1.0, 3), "weights of the training samples span -1"),
        (with_value("weight", math.nan, 3), "weights of the training samples"),
        (with_value("weight", 0.0, slice(None)), "expected finite ones of at least 0 and some"),
    ],
)
def test_values_that_nothing_is_learned_from(samples, message):
    with pytest.raises(ConfigError, match=message):
        fit(samples, random_samples(20, seed=2), layout=LAYOUT, sizes=((1, 8),), plan=QUICK)


def test_a_series_counts_only_if_a_row_uses_it():
    samples = random_samples(40, 12, seed=1)
    samples.series[5] = math.nan
    with pytest.raises(ConfigError, match="have inputs that are missing"):
        check_samples("fine", samples, layout=LAYOUT, plan=QUICK)
    others = samples.take((samples.series_index != 5).numpy())
    check_samples("fine", others, layout=LAYOUT, plan=QUICK)


def test_a_label_of_zero_needs_a_floor_under_the_percentage():
    dry = with_value("label", 0.0, 3)
    with pytest.raises(ConfigError, match="labels of 0, by which 'mape' divides"):
        check_samples("fine", dry, layout=LAYOUT, plan=PUBLISHED_ADAPTATION)
    floored = replace(PUBLISHED_ADAPTATION, label_floor=0.01)
    for name, plan in (("fine", floored), ("fine", QUICK), ("test", PUBLISHED_ADAPTATION)):
        check_samples(name, dry, layout=LAYOUT, plan=plan)


def labels_of(cube):
    vv = cube["base"].to_dataset()["vv"]
    return (vv * 0 + 0.2).assign_attrs(units="m3 m-3")


def test_streams_that_cannot_play_their_part():
    cube = make_cube()
    layout = get_layout("published")
    labelled = stream_samples(cube, labels_of(cube), layout=layout)
    table = random_samples(40, seed=1)
    options = {"layout": layout, "sizes": ((1, 8),), "plan": QUICK}
    with pytest.raises(ConfigError, match="validation is a stream"):
        fit(table, labelled, **options)
    with pytest.raises(ConfigError, match="training is a stream without labels"):
        fit(stream_samples(cube, None, layout=layout), table, **options)
    with pytest.raises(ConfigError, match="streamed in the layout 'published'"):
        fit(labelled, table, **{**options, "layout": LAYOUT})
    with pytest.raises(ConfigError, match="places='drawn' needs all training samples at once"):
        fit(labelled, table, **{**options, "plan": FitPlan(epochs=1)})


@pytest.mark.parametrize("device", ["cuda:1", "cuda:x", "abacus", "meta"])
def test_a_device_that_is_not_there(device, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"device"):
        fit(
            random_samples(40, seed=1),
            random_samples(20, seed=2),
            layout=LAYOUT,
            plan=QUICK,
            device=device,
            out=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_a_card_that_cannot_be_written_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match="card must be JSON-ready"):
        fit(
            random_samples(40, seed=1),
            random_samples(20, seed=2),
            layout=LAYOUT,
            plan=QUICK,
            card={"r": np.nan},
            out=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_a_loss_that_explodes_names_the_member(tmp_path):
    samples = random_samples(40, seed=1)
    samples.weight[:] = 3e38
    with pytest.raises(ConfigError, match=r"diverged in epoch 0: .* \(member 1: "):
        fit(samples, random_samples(20, seed=2), layout=LAYOUT, sizes=((1, 8),), plan=QUICK)


def test_predictions_that_are_not_finite_are_a_divergence():
    """They would be left out of the scores, and make a member look better than it is."""
    far = random_samples(20, seed=2)
    plan = replace(QUICK, learning_rate=1e30)
    with pytest.raises(ConfigError, match="diverged in epoch 0"):
        fit(random_samples(40, seed=1), far, layout=LAYOUT, sizes=((1, 8),), plan=plan)


@pytest.mark.parametrize("sizes", [(), ((0, 8),), ((1,),)])
def test_sizes_that_are_no_network(sizes):
    table = random_samples(40, seed=1)
    with pytest.raises(ConfigError, match="a depth and a width of at least 1"):
        fit(table, table, layout=LAYOUT, sizes=sizes, plan=QUICK)


def test_a_card_of_the_start_that_cannot_be_written_is_refused_before_training(tmp_path):
    torch.manual_seed(0)
    start = Ensemble((("m", DenseSM(1, 8)),), LAYOUT, {"r": np.float32(0.5)})
    table = random_samples(40, seed=1)
    with pytest.raises(ConfigError, match="card must be JSON-ready"):
        finetune(start, table, validation=table, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_places_of_no_weight_are_not_drawn():
    rows = random_samples(60, seed=1, longitude=np.arange(60) % 3, latitude=50.0)
    weight = torch.from_numpy((rows.longitude == 1).astype("f4"))
    job = Job(
        [DenseSM(1, 8)] * 4, Domains(replace(rows, weight=weight)), rows, plan=FitPlan(epochs=1)
    )
    assert (job.drawn[0][:, torch.from_numpy(rows.longitude == 1)] == 1).all()
