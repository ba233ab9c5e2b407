import numpy as np
import pytest
import torch

from smgrid.errors import ConfigError
from smgrid.features.layout import get_layout
from smgrid.models.ensemble import predict_samples
from smgrid.training.fit import FitPlan, fit
from smgrid.training.samples import Samples

LAYOUT = get_layout("smgrid-1")
PLAN = FitPlan(members=((1, 8), (2, 8)), epochs=25, patience=25, batch_size=64)


def table(n, seed):
    """A label that follows two columns, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, LAYOUT.n_columns), dtype=np.float32)
    label = 0.05 + 0.3 * x[:, 0] + 0.1 * x[:, 7]
    place = rng.random(n)
    return Samples(x, label.astype(np.float32), np.full(n, "2021-01-01", "M8[ns]"), place, place)


def test_training_learns_and_keeps_the_best_epoch():
    events = []
    training, validation = table(600, 0), table(200, 1)
    ensemble = fit(training, validation, layout=LAYOUT, plan=PLAN, on_epoch=events.append)
    unseen = table(200, 2)
    error = predict_samples(ensemble, unseen.features).mean(axis=0) - unseen.label
    assert np.sqrt((error**2).mean()) < 0.5 * unseen.label.std()
    for number, member in enumerate(ensemble.card["training"]["members"]):
        best = min(e.validation_rmse for e in events if e.member == number)
        assert member["rmse"] == best
        rmse = predict_samples(ensemble, validation.features)[number] - validation.label
        assert np.sqrt((rmse**2).mean()) == pytest.approx(best, rel=1e-4)


def test_same_seed_same_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    plan = FitPlan(members=((1, 8),), epochs=2, batch_size=64)
    one, two = (fit(table(100, 0), table(50, 1), layout=LAYOUT, plan=plan) for _ in range(2))
    assert one.digest == two.digest
    assert torch.equal(before, torch.random.get_rng_state())


def test_early_stopping_stops():
    events = []
    plan = FitPlan(members=((1, 8),), epochs=50, patience=2, learning_rate=0.5, batch_size=64)
    fit(table(100, 0), table(50, 1), layout=LAYOUT, plan=plan, on_epoch=events.append)
    best = min(events, key=lambda e: e.validation_rmse)
    assert len(events) < 50
    assert events[-1].epoch == best.epoch + 2


def test_too_few_samples_or_another_layout_are_refused():
    with pytest.raises(ConfigError, match="at least 2 samples"):
        fit(table(1, 0), table(5, 1), layout=LAYOUT)
    short = table(5, 0)
    wrong = Samples(short.features[:, :100], short.label, short.time, short.x, short.y)
    with pytest.raises(ConfigError, match="100 columns"):
        fit(wrong, short, layout=LAYOUT)
