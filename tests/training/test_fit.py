import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from smgrid.errors import ConfigError
from smgrid.features.layout import get_layout
from smgrid.models.densesm import DenseSM
from smgrid.models.ensemble import predict_samples
from smgrid.training import fit as fit_module
from smgrid.training.batches import Batch, Step
from smgrid.training.fit import fit
from smgrid.training.loop import Domains, Job
from smgrid.training.plan import FitPlan
from smgrid.training.step import Scaling, make_part
from smgrid.training.table import make_samples
from tests.training.tables import random_samples

LAYOUT = get_layout("smgrid-1")
SIZES = ((1, 8), (2, 8))
PLAN = FitPlan(epochs=25, batch_size=32)


STILL = FitPlan(dropout=0.0, series="plain", average="none")


def networks(count):
    torch.manual_seed(5)
    return [DenseSM(1, 8) for _ in range(count)]


def gradient(job, samples):
    """Gradient of the last layer after one step on all samples at once."""
    rows = torch.arange(len(samples))
    job.state.optimisers[0].param_groups[0]["lr"] = 0.0
    job.state.optimisers[0].param_groups[0]["weight_decay"] = 0.0
    job._one_step(Step(Batch(samples, rows), None, None), (0, 0, 0))
    return job.state.stacks[0].out.weight.grad.clone()


def table(n, seed):
    """A label that follows two columns, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.random((n, LAYOUT.n_columns), dtype=np.float32))
    return make_samples(
        x[:, :15],
        x[:, 15:].reshape(n, 3, 46),
        torch.arange(n),
        label=0.05 + 0.3 * x[:, 0] + 0.1 * x[:, 7],
        time="2021-01-01",
        longitude=rng.random(n),
        latitude=50.0,
    )


def test_training_learns_and_keeps_the_best_epoch():
    events = []
    training, validation = table(600, 0), table(200, 1)
    ensemble = fit(
        training, validation, layout=LAYOUT, sizes=SIZES, plan=PLAN, on_epoch=events.append
    )
    unseen = table(200, 2)
    error = predict_samples(ensemble, unseen.features).mean(axis=0) - unseen.label.numpy()
    assert np.sqrt((error**2).mean()) < 0.5 * float(unseen.label.std())
    for number, member in enumerate(ensemble.card["training"]["members"]):
        best = min(e.members[number]["rmse"] for e in events)
        assert member["rmse"] == best
        rmse = predict_samples(ensemble, validation.features)[number] - validation.label.numpy()
        assert np.sqrt((rmse**2).mean()) == pytest.approx(best, rel=1e-4)


def test_same_seed_same_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, two = (
        fit(table(100, 0), table(50, 1), layout=LAYOUT, sizes=SIZES, plan=FitPlan(epochs=2))
        for _ in range(2)
    )
    assert one.digest == two.digest
    assert torch.equal(before, torch.random.get_rng_state())


def test_early_stopping_stops():
    events = []
    plan = FitPlan(epochs=50, patience=2, learning_rate=0.5, batch_size=64, averaging=0.0)
    options = {"layout": LAYOUT, "sizes": ((1, 8),), "plan": plan}
    fit(table(100, 0), table(50, 1), **options, on_epoch=events.append)
    best = min(events, key=lambda e: e.members[0]["rmse"])
    assert len(events) < 50
    assert events[-1].epoch == best.epoch + 2


def newest_rain(n, seed):
    """A label that follows the last step of one series alone, and stations in few places."""
    samples = table(n, seed)
    place = np.random.default_rng(seed).integers(0, 12, n).astype(float)
    last = 0.05 + 0.3 * samples.series[:, -1, -1]
    return replace(samples, label=last, longitude=place, latitude=place)


def newest_share(plan):
    """Share of an untrained branch's response, in its last pooled features, to the last 4 steps."""
    torch.manual_seed(0)
    network = fit_module._untrained((1, 8), plan, 0, table(50, 0), LAYOUT)
    branch = network.conv_block.eval()
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
    network = fit_module._untrained((1, 8), FitPlan(), 0, samples, LAYOUT)
    assert network.out.bias.item() == pytest.approx(float(samples.label.mean()))


def test_the_scaling_of_the_series_moves_into_the_kernels_exactly():
    samples = table(300, 0)
    samples.series[:, -1] = 0.02 + 0.05 * samples.series[:, -1]
    network = fit_module._untrained((2, 8), FitPlan(), 0, samples, LAYOUT).eval()
    job = Job([copy.deepcopy(network)], Domains(samples), table(50, 1), plan=FitPlan())
    job.state.averages[0].load_state_dict(job.state.stacks[0].state_dict())
    (plain,) = job.networks()
    some = table(50, 1)
    rows = make_part(some, job.scaling, with_series=True)
    stack = job.state.stacks[0]
    with torch.inference_mode():
        learned = stack(rows.inputs, stack.series_features(rows.series)).prediction[0]
        torch.testing.assert_close(plain(some.features), learned, rtol=0, atol=2e-6)
    runs = samples.series.numpy().transpose(1, 0, 2).reshape(3, -1)
    np.testing.assert_allclose(job.scaling.mean, runs.mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(job.scaling.spread, runs.std(axis=1), rtol=1e-3)


def test_the_scaling_counts_a_series_as_often_as_it_is_used():
    samples = random_samples(60, 9)
    shared = Scaling.of(samples)
    runs = samples.series[samples.series_index].numpy().transpose(1, 0, 2).reshape(3, -1)
    np.testing.assert_allclose(shared.mean, runs.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(shared.spread, runs.std(axis=1), rtol=1e-5)


def test_each_member_draws_its_own_places():
    training = newest_rain(300, 0)
    job = Job(networks(2), Domains(training), newest_rain(50, 1), plan=FitPlan())
    one, two = job.drawn[0].numpy()
    assert (one != two).any()
    for drawn in (one, two):
        times = [set(drawn[training.longitude == p]) for p in range(12)]
        assert all(len(t) == 1 for t in times)  # a place comes whole, or not at all
        assert sum(t.pop() for t in times) == 12
    every = Job(networks(2), Domains(training), table(50, 1), plan=FitPlan(places="all"))
    assert every.drawn == [None]


def test_members_of_neighbouring_seeds_have_nothing_in_common():
    training = newest_rain(300, 0)
    jobs = [
        Job(networks(2), Domains(training), newest_rain(50, 1), plan=FitPlan(seed=seed))
        for seed in (0, 1)
    ]
    assert (jobs[0].drawn[0][1] != jobs[1].drawn[0][0]).any()
    one, other = (
        fit_module._untrained((1, 8), FitPlan(seed=seed), number, training, LAYOUT)
        for seed, number in ((0, 1), (1, 0))
    )
    assert not torch.equal(one.out.weight, other.out.weight)


def test_places_without_a_position_are_the_stations():
    rows = newest_rain(60, 0)
    nowhere = np.full(60, np.nan)
    names = np.array([f"s{k % 4}" for k in range(60)])
    named = replace(rows, longitude=nowhere, latitude=nowhere, station=names)
    job = Job(networks(2), Domains(named), newest_rain(50, 1), plan=FitPlan())
    for drawn in job.drawn[0].numpy():
        times = [set(drawn[names == name]) for name in np.unique(names)]
        assert all(len(t) == 1 for t in times)
        assert sum(t.pop() for t in times) == 4
    unknown = replace(named, station=np.full(60, ""))
    with pytest.raises(ConfigError, match="neither position nor station"):
        Job(networks(1), Domains(unknown), newest_rain(50, 1), plan=FitPlan())


def test_members_keep_their_places_whatever_their_numbers():
    plan = replace(STILL, places="all")
    given = networks(3)
    job = Job(given, Domains(table(20, 0)), table(5, 1), plan=plan, numbers=(7, 2, 5))
    for before, after in zip(given, job.networks(), strict=True):
        torch.testing.assert_close(after.out.weight, before.out.weight, rtol=0, atol=0)


def test_a_place_that_was_not_drawn_is_not_learned_from():
    """The weight of a place is in the loss: without it the gradient is that of the others."""
    training = newest_rain(64, 0)
    job = Job(networks(1), Domains(training), table(5, 1), plan=STILL)
    only = training.longitude < 6
    job.drawn = [torch.from_numpy(only.astype(np.float32))[None]]
    weighted = gradient(job, training)
    job.drawn = [None]
    zeroed = replace(training, weight=torch.from_numpy(only.astype(np.float32)))
    torch.testing.assert_close(weighted, gradient(job, zeroed))
    assert not torch.allclose(weighted, gradient(job, training))


def test_too_few_samples_or_another_layout_are_refused():
    with pytest.raises(ConfigError, match="has 1 samples, expected at least 2"):
        fit(table(1, 0), table(5, 1), layout=LAYOUT)
    short = table(5, 0)
    wrong = replace(short, snapshot=short.snapshot[:, :10])
    with pytest.raises(ConfigError, match="148 columns"):
        fit(wrong, short, layout=LAYOUT)


def test_a_batch_that_a_member_weighs_not_at_all_does_not_destroy_it():
    """With few places and a short last batch a member may have drawn none of its rows."""
    training = newest_rain(66, 0)
    ensemble = fit(training, newest_rain(40, 1), layout=LAYOUT, plan=FitPlan(epochs=6, seed=1))
    assert np.isfinite(predict_samples(ensemble, training.features)).all()
    job = Job(networks(1), Domains(training), table(5, 1), plan=STILL)
    job.drawn = [torch.zeros(1, 66)]
    assert float(gradient(job, training).abs().max()) == 0
