from dataclasses import replace

import numpy as np
import pytest
import torch

from smgrid.errors import ConfigError
from smgrid.features.layout import get_layout
from smgrid.models.ensemble import predict_samples
from smgrid.training import fit as fit_module
from smgrid.training.fit import FitPlan, fit
from smgrid.training.samples import Samples

LAYOUT = get_layout("smgrid-1")
PLAN = FitPlan(members=((1, 8), (2, 8)), epochs=25, batch_size=32)


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
    plan = FitPlan(members=((1, 8),), epochs=2)
    one, two = (fit(table(100, 0), table(50, 1), layout=LAYOUT, plan=plan) for _ in range(2))
    assert one.digest == two.digest
    assert torch.equal(before, torch.random.get_rng_state())


def test_early_stopping_stops():
    events = []
    plan = FitPlan(
        members=((1, 8),), epochs=50, patience=2, learning_rate=0.5, batch_size=64, averaging=0.0
    )
    fit(table(100, 0), table(50, 1), layout=LAYOUT, plan=plan, on_epoch=events.append)
    best = min(events, key=lambda e: e.validation_rmse)
    assert len(events) < 50
    assert events[-1].epoch == best.epoch + 2


def newest_rain(n, seed):
    """A label that follows the last step of one series alone, and stations in few places."""
    samples = table(n, seed)
    last = 0.05 + 0.3 * samples.features[:, -1]
    place = np.random.default_rng(seed).integers(0, 12, n).astype(float)
    return replace(samples, label=last.astype(np.float32), x=place, y=place)


def newest_share(plan):
    """Share of an untrained branch's response, in its last pooled features, to the last 4 steps."""
    torch.manual_seed(0)
    branch = fit_module._untrained(1, 8, table(50, 0), plan).network.conv_block.eval()
    series = torch.rand(20, 3, LAYOUT.steps, requires_grad=True)
    last = branch(series).reshape(20, 4, 3)[:, :, -1]
    (response,) = torch.autograd.grad(last.sum(), series)
    return float(response[..., -4:].abs().sum() / response.abs().sum())


def test_untrained_members_look_at_the_newest_steps():
    even = FitPlan(first_taps=(1.0, 1.0, 1.0, 1.0, 1.0))
    assert newest_share(FitPlan()) > 0.8
    assert newest_share(even) < 0.5


def test_untrained_members_predict_around_the_mean_label():
    samples = table(300, 0)
    network = fit_module._untrained(1, 8, samples, FitPlan())
    assert network.network.out.bias.item() == pytest.approx(samples.label.mean())
    assert network.network.conv_block.dropout.p == FitPlan().dropout


def test_the_scaling_of_the_series_moves_into_the_kernels_exactly():
    samples = table(300, 0)
    samples.features[:, -LAYOUT.steps :] = 0.02 + 0.05 * samples.features[:, -LAYOUT.steps :]
    torch.manual_seed(0)
    scaled = fit_module._untrained(2, 8, samples, FitPlan()).eval()
    x = torch.from_numpy(table(50, 1).features)
    with torch.inference_mode():
        torch.testing.assert_close(scaled.plain()(x), scaled(x), rtol=0, atol=2e-6)
        series = scaled.network.split(torch.from_numpy(samples.features))[1]
    runs = series.numpy().transpose(1, 0, 2).reshape(3, -1)
    np.testing.assert_allclose(scaled.mean, runs.mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(scaled.spread, runs.std(axis=1), rtol=1e-3)


def test_each_member_draws_its_own_places(monkeypatch):
    seen = []
    real = fit_module._fit_member

    def noting(network, samples, *rest):
        seen.append(samples)
        return real(network, samples, *rest)

    monkeypatch.setattr(fit_module, "_fit_member", noting)
    training, plan = newest_rain(300, 0), FitPlan(members=((1, 8), (1, 8)), epochs=1)
    fit(training, newest_rain(50, 1), layout=LAYOUT, plan=plan)
    one, two = ({p: int((s.x == p).sum()) for p in range(12)} for s in seen)
    there = {p: int((training.x == p).sum()) for p in range(12)}
    assert one != two
    for drawn in (one, two):
        times = [drawn[p] / there[p] for p in range(12)]
        assert all(t == int(t) for t in times)  # a place comes whole, or not at all
        assert sum(times) == 12
    fit(training, newest_rain(50, 1), layout=LAYOUT, plan=replace(plan, places="all"))
    assert seen[-1] is training


def test_too_few_samples_or_another_layout_are_refused():
    with pytest.raises(ConfigError, match="at least 2 samples"):
        fit(table(1, 0), table(5, 1), layout=LAYOUT)
    short = table(5, 0)
    wrong = Samples(short.features[:, :100], short.label, short.time, short.x, short.y)
    with pytest.raises(ConfigError, match="100 columns"):
        fit(wrong, short, layout=LAYOUT)
