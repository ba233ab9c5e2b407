from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.train import _join, _replace_ensemble
from smgrid.errors import ConfigError
from smgrid.features.layout import get_layout
from smgrid.models.bundle import load_ensemble, save_ensemble
from smgrid.models.calibration import LARGEST_SEASON, fit_season, season_columns
from smgrid.models.densesm import DenseSM
from smgrid.models.ensemble import Ensemble, mean_and_std, predict_samples
from smgrid.training.splits import Split
from smgrid.training.table import join_samples
from smgrid.training.uncertainty import (
    COVERAGES,
    _importance,
    calibrate,
    fit_calibration,
    summarise_training,
    with_uncertainty,
)
from smgrid.windows import day_of_year
from tests.networks import make_ensemble
from tests.training.tables import random_samples

LAYOUT = get_layout("released-9km")


def stations(groups, rows, seed, *, shared=0.0, first=0, season=(0.0, 0.0)):
    """Labels around the members' mean, with errors that follow their spread and the season.

    A share of their variance is the same for all rows of a station.
    """
    n = groups * rows
    place = np.repeat(np.arange(groups), rows)
    samples = random_samples(
        n, n, seed=seed, longitude=first + place.astype(float), latitude=50.0, station=""
    )
    mean, spread = prediction(samples)
    rng = np.random.default_rng([seed, 7])
    noise = np.sqrt(shared) * rng.standard_normal(groups)[place]
    noise = noise + np.sqrt(1 - shared) * rng.standard_normal(n)
    angle = 2 * np.pi * day_of_year(samples.time) / 365.25
    noise = noise * np.exp((season[0] * np.cos(angle) + season[1] * np.sin(angle)) / 2)
    label = mean + scale(spread) * noise
    return replace(samples, label=torch.from_numpy(label.astype(np.float32)))


def prediction(samples):
    return mean_and_std(predict_samples(ENSEMBLE, samples.features).astype(float))


def scale(spread):
    return np.hypot(0.002, 2 * spread)


def spread_out():
    """Members whose mean is a soil moisture, and whose spread differs from row to row."""
    ensemble = make_ensemble(card={"title": "x"})
    for _, network in ensemble.members:
        with torch.no_grad():
            network.out.weight *= 0.3
    x = random_samples(500, seed=1).features
    for (_, network), mean in zip(ensemble.members, predict_samples(ensemble, x), strict=True):
        with torch.no_grad():
            network.out.bias += 0.5 - float(mean.mean())
    return Ensemble(ensemble.members, ensemble.layout, ensemble.card)


ENSEMBLE = spread_out()


def observed(calibration, samples, level):
    mean, spread = prediction(samples)
    values, day = (mean.astype("f4"), spread.astype("f4"), level), day_of_year(samples.time)
    lower, upper = calibration.bounds(*values, day)
    label = samples.label.numpy()
    return float(((label >= lower) & (label <= upper)).mean())


def test_intervals_hold_as_often_as_they_say():
    calibration = fit_calibration(ENSEMBLE, stations(60, 30, 0, shared=0.1))
    fresh = stations(120, 30, 1, shared=0.1)
    for level in COVERAGES:
        assert observed(calibration, fresh, level) == pytest.approx(level, abs=0.03)


def test_the_scale_is_that_of_the_errors():
    calibration = fit_calibration(ENSEMBLE, stations(50, 100, 0))
    assert calibration.a == pytest.approx(0.002, rel=0.1)
    assert calibration.b == pytest.approx(2, rel=0.1)
    # Scores are then those of a standard normal variable.
    assert calibration.factor(0.8) == pytest.approx(1.2816, rel=0.05)


def test_intervals_are_wide_where_the_members_disagree():
    """Each fifth of the spread holds as much as the whole: the interval knows its place."""
    calibration = fit_calibration(ENSEMBLE, stations(50, 100, 0))
    fresh = stations(50, 100, 1)
    _, spread = prediction(fresh)
    edges = np.quantile(spread, np.linspace(0, 1, 6)[1:-1])
    fifth = np.searchsorted(edges, spread)
    assert scale(edges[-1]) > 2 * scale(edges[0])
    for part in range(5):
        assert observed(calibration, fresh.take(fifth == part), 0.8) == pytest.approx(0.8, abs=0.05)


SEASON = (0.6, -0.5)


def quarter(samples):
    return samples.time.astype("datetime64[M]").astype(int) % 12 // 3


def test_the_season_of_the_errors_is_found():
    calibration = fit_calibration(ENSEMBLE, stations(50, 100, 0, season=SEASON))
    assert calibration.season == pytest.approx(SEASON, abs=0.1)
    assert calibration.a == pytest.approx(0.002, rel=0.1)
    assert calibration.b == pytest.approx(2, rel=0.1)
    assert calibration.factor(0.8) == pytest.approx(1.2816, rel=0.05)


def test_intervals_hold_as_often_as_they_say_in_each_season():
    calibration = fit_calibration(ENSEMBLE, stations(50, 100, 0, season=SEASON))
    fresh = stations(80, 100, 1, season=SEASON)
    mean, spread = (values.astype("f4") for values in prediction(fresh))
    for level in COVERAGES:
        lower, upper = calibration.bounds(mean, spread, level, day_of_year(fresh.time))
        inside = (fresh.label.numpy() >= lower) & (fresh.label.numpy() <= upper)
        shares = [inside[quarter(fresh) == part].mean() for part in range(4)]
        assert shares == pytest.approx([level] * 4, abs=0.03)


def test_a_test_in_one_season_is_judged_by_that_season():
    fresh = stations(50, 100, 1, season=SEASON)
    winter, summer = (fresh.take(quarter(fresh) == part) for part in (0, 2))
    for test in (winter, summer):
        found = fit_calibration(ENSEMBLE, stations(50, 60, 0, season=SEASON), test=test)
        assert found.coverage["test"]["0.8"] == pytest.approx(0.8, abs=0.03)
        assert found.coverage["validation"]["0.8"] == pytest.approx(0.8, abs=0.03)


def without_a_quarter(samples):
    """All but four stations miss the summer."""
    return samples.take((quarter(samples) != 2) | (samples.longitude < 4))


def unknown_times(samples):
    times = samples.time.copy()
    times[7] = np.datetime64("NaT")
    return replace(samples, time=times)


def both_sides(samples):
    return replace(samples, latitude=np.where(samples.longitude < 10, -50.0, 50.0))


@pytest.mark.parametrize("change", [without_a_quarter, unknown_times, both_sides])
def test_where_samples_cannot_tell_it_there_is_no_season(change):
    samples = stations(20, 60, 0, season=SEASON)
    assert np.hypot(*fit_calibration(ENSEMBLE, samples).season) > 0.4
    calibration = fit_calibration(ENSEMBLE, change(samples))
    assert calibration.season == (0.0, 0.0)
    assert calibration.scale(np.float32([0.01])) == calibration.scale(np.float32([0.01]), 100.0)


def test_five_stations_in_each_quarter_tell_the_season():
    samples = stations(20, 60, 0, season=SEASON)
    some = samples.take((quarter(samples) != 2) | (samples.longitude < 5))
    assert np.hypot(*fit_calibration(ENSEMBLE, some).season) > 0.4


def test_a_season_by_chance_is_shrunk():
    """Of errors that have none."""
    raw, found = [], []
    for seed in range(8):
        samples = stations(8, 30, seed)
        mean, spread = prediction(samples)
        error = (samples.label.numpy() - mean) / scale(spread)
        columns = season_columns(day_of_year(samples.time))
        raw.append(np.hypot(*fit_season(error**2, columns, np.full(240, 1 / 240))[0]))
        found.append(np.hypot(*fit_calibration(ENSEMBLE, samples).season))
    assert np.mean(found) < 0.5 * np.mean(raw)
    assert min(found) == 0


@pytest.mark.parametrize("by", ["station", "month"])
def test_a_season_is_shrunk_by_how_stations_and_months_differ(by):
    """Oracle: the jackknife, which fits again without each station, and without each month."""
    samples = stations(12, 80, 0, season=(0.5, 0.0))
    month = samples.time.astype("datetime64[M]").astype(int)
    mean, spread = prediction(samples)
    error = samples.label.numpy() - mean
    columns = season_columns(day_of_year(samples.time))
    rng = np.random.default_rng(2)
    if by == "month":
        error *= np.exp(rng.normal(0, 0.2, 900))[month]
    else:
        own = rng.normal(0, 0.8, (12, 2))[samples.longitude.astype(int)]
        error *= np.exp((own * columns).sum(axis=1) / 2)
    label = (mean + error).astype("f4")
    calibration = fit_calibration(ENSEMBLE, replace(samples, label=torch.from_numpy(label)))

    def season(rows):
        squared = (error[rows] / np.hypot(calibration.a, calibration.b * spread[rows])) ** 2
        return fit_season(squared, columns[rows], np.full(rows.sum(), 1 / rows.sum()))[0]

    raw, variance = season(error != 0), 0.0
    for cluster in (samples.longitude, month):
        left = np.array([season(cluster != one) for one in np.unique(cluster)])
        variance += (len(left) - 1) * left.var(axis=0).sum()
    kept = 1 - variance / (raw @ raw)
    assert 0.2 < kept < 0.9
    np.testing.assert_allclose(calibration.season, kept * raw, atol=0.01)


def test_a_season_is_bounded():
    calibration = fit_calibration(ENSEMBLE, stations(20, 60, 0, season=(-2.5, 0.0)))
    size = np.hypot(*calibration.season)
    assert 0.9 * LARGEST_SEASON < size <= LARGEST_SEASON * (1 + 1e-9)


def test_on_a_new_station_intervals_hold_at_least_as_often_as_they_say():
    """The guarantee of conformal prediction, of stations of which each has one error.

    Nine stations: by chance alone the share over 300 repetitions differs by up to 3 standard
    deviations of a binomial one; without the correction (n + 1) / n it would be some 0.1 less.
    """
    n, inside = 300, 0
    for seed in range(n):
        drawn = stations(10, 1, seed)
        known = drawn.longitude < 9
        calibration = fit_calibration(ENSEMBLE, drawn.take(known))
        assert calibration.effective == pytest.approx(9)
        inside += observed(calibration, drawn.take(~known), 0.85) == 1
    assert inside / n >= 0.85 - 3 * np.sqrt(0.85 * 0.15 / n)
    assert inside / n < 0.97


def test_rows_that_come_twice_change_nothing():
    samples = stations(12, 20, 0, shared=0.3)
    one = samples.take(samples.longitude == 3)
    twice = join_samples([samples, one, one, one])
    plain, repeated = (fit_calibration(ENSEMBLE, s) for s in (samples, twice))
    assert repeated.rows == plain.rows + 60
    assert (repeated.a, repeated.b) == pytest.approx((plain.a, plain.b), rel=1e-6)
    assert repeated.effective == pytest.approx(plain.effective)
    np.testing.assert_allclose(repeated.scores, plain.scores, rtol=1e-5)
    for level, share in plain.coverage["validation"].items():
        assert repeated.coverage["validation"][level] == pytest.approx(share, abs=1e-6)


def test_errors_of_a_station_that_are_alike_are_worth_less():
    alone, alike = (fit_calibration(ENSEMBLE, stations(10, 40, 0, shared=s)) for s in (0.0, 0.95))
    assert alone.effective == 40
    assert 10 <= alike.effective < 20
    assert alike.highest_coverage < alone.highest_coverage
    with pytest.raises(ConfigError, match=r"coverage 0\.99 cannot be told from 10 held-out"):
        alone.factor(0.99)


def test_observed_coverage_is_told_of_the_samples_and_of_a_test():
    samples, test = stations(20, 30, 0), stations(15, 30, 1, first=100)
    calibration = fit_calibration(ENSEMBLE, samples, test=test, name="stations")
    assert calibration.fitted_on == "stations"
    assert (calibration.rows, calibration.groups) == (600, 20)
    assert list(calibration.coverage) == ["stations", "test"]
    for level in COVERAGES:
        share = calibration.coverage["test"][f"{level:g}"]
        assert share == pytest.approx(observed(calibration, test, level), abs=1e-6)
        assert calibration.coverage["stations"][f"{level:g}"] == pytest.approx(level, abs=0.04)


def test_stations_are_judged_by_what_the_others_tell():
    """One of thirty has large errors: the fit covers them, but the others could not know."""
    samples = stations(30, 30, 0)
    mean, _ = prediction(samples)
    error = np.random.default_rng(0).uniform(0.001, 0.002, 900) + 0.05 * (samples.longitude == 0)
    label = torch.from_numpy((mean + error).astype(np.float32))
    calibration = fit_calibration(ENSEMBLE, replace(samples, label=label))
    assert observed(calibration, replace(samples, label=label), 0.95) > 29 / 30 + 0.01
    assert 0.94 < calibration.coverage["validation"]["0.95"] <= 29 / 30 + 1e-6


def test_levels_that_few_stations_cannot_tell_are_left_out():
    few = fit_calibration(ENSEMBLE, stations(5, 10, 0, shared=0.9))
    assert "0.95" not in few.coverage["validation"]
    assert "0.5" in few.coverage["validation"]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (lambda: stations(4, 10, 0), "are of 4 stations or places, calibration needs at least 5"),
        (lambda: random_samples(20, longitude=np.nan, station=""), "neither position nor station"),
        (lambda: random_samples(20, label=None), "20 of 20 validation samples have no label"),
        (lambda: random_samples(20, columns=14), "152 columns, the layout 'released-9km' has 153"),
    ],
)
def test_samples_that_nothing_can_be_calibrated_on(samples, message):
    with pytest.raises(ConfigError, match=message):
        fit_calibration(ENSEMBLE, samples())


def test_labels_that_are_reproduced_are_refused():
    samples = random_samples(20)
    only = Ensemble(ENSEMBLE.members[:1], LAYOUT)
    label = torch.from_numpy(predict_samples(only, samples.features)[0])
    with pytest.raises(ConfigError, match="reproduces the validation labels exactly"):
        fit_calibration(only, replace(samples, label=label))


def test_one_member_has_no_spread_to_go_by():
    only = Ensemble(ENSEMBLE.members[:1], LAYOUT)
    samples = random_samples(60, 60)
    mean = predict_samples(only, samples.features)[0]
    error = samples.label.numpy() - mean
    calibration = fit_calibration(only, samples)
    assert calibration.b == 0
    assert calibration.a == pytest.approx(np.sqrt((error.astype(float) ** 2).mean()), rel=1e-5)


def test_an_ensemble_is_calibrated_on_stations_of_ones_own():
    calibrated = calibrate(ENSEMBLE, stations(10, 10, 0), test=stations(5, 10, 1))
    assert calibrated.digest == ENSEMBLE.digest
    assert calibrated.card == ENSEMBLE.card
    assert calibrated.calibration.ensemble == ENSEMBLE.digest
    assert set(calibrated.calibration.coverage) == {"validation", "test"}


def clouds(n, groups, seed, *, away=0.0):
    """Stations in one corner of the first columns, or away from it."""
    rng = np.random.default_rng(seed)
    place = rng.integers(0, groups, n)
    centres = np.random.default_rng(3).uniform(0.2, 0.4, (groups, 15))[place]
    samples = random_samples(n, 5, seed=seed, longitude=place.astype(float), latitude=50.0)
    snapshot = np.clip(centres + rng.normal(0, 0.02, (n, 15)) + away, 0, 1)
    return replace(samples, snapshot=torch.from_numpy(snapshot).float())


def as_rows(samples):
    return samples.snapshot.numpy(), samples.series.numpy(), samples.series_index.numpy()


def test_training_rows_are_near_themselves_and_the_threshold_tells_others():
    training = clouds(300, 12, 0)
    summary = summarise_training(ENSEMBLE, training, points=5000)
    assert summary.radius == 0
    assert (summary.rows, summary.groups) == (300, 12)
    np.testing.assert_allclose(summary.dissimilarity(*as_rows(training)), 0, atol=2e-3)
    assert not summary.outside_range(*as_rows(training)).any()
    alike = summary.dissimilarity(*as_rows(clouds(300, 12, 1)))
    away = summary.dissimilarity(*as_rows(clouds(300, 12, 1, away=0.5)))
    assert (alike > summary.threshold).mean() < 0.05
    assert (away > summary.threshold).all()
    assert summary.outside_range(*as_rows(clouds(300, 12, 1, away=0.5))).all()


def test_threshold_and_mean_distance_are_those_of_the_paper():
    """Against the definition, in plain NumPy, where every row is looked at once."""
    training = clouds(60, 60, 0)
    training = replace(training, longitude=np.arange(60.0) // 6)
    summary = summarise_training(ENSEMBLE, training)
    weighted = summary.coreset.astype(float)  # all rows, in another order
    assert len(weighted) == 60
    distance = np.linalg.norm(weighted[:, None] - weighted[None], axis=2)
    mean = distance.sum() / (60 * 59)
    assert summary.mean_distance == pytest.approx(mean, rel=0.1)  # of rows drawn with replacement
    vectors = (weighted + summary.centre) / summary.weight
    snapshot = training.snapshot.numpy()
    order = [int(np.abs(snapshot - v[:15]).sum(axis=1).argmin()) for v in vectors]
    group = training.longitude[order]
    other = np.where(group[:, None] == group, np.inf, distance).min(axis=1) / summary.mean_distance
    q1, q3 = np.quantile(other, [0.25, 0.75])
    expected = min(q3 + 1.5 * (q3 - q1), other.max())
    assert summary.threshold == pytest.approx(expected, rel=0.15)
    own = (distance + 1e9 * np.eye(60)).min(axis=1) / summary.mean_distance
    assert summary.threshold > 1.1 * np.quantile(own, 0.75)


def test_importance_is_what_a_feature_does_to_the_mean():
    """Against differences in double precision."""
    samples = random_samples(40, 8, seed=4)
    found = _importance(ENSEMBLE, samples)
    x, step = samples.features.double(), 1e-6
    members = [network.double() for _, network in spread_out().members]

    def mean(x):
        with torch.no_grad():
            return torch.stack([network(x) for network in members]).mean(dim=0)

    changes = []
    runs = [[15 + 46 * k + j for j in range(42)] for k in range(3)]
    newest = [[15 + 46 * k + j for j in range(42, 46)] for k in range(3)]
    for columns in [*([k] for k in range(15)), *runs, *newest]:
        moved = x.clone()
        moved[:, columns] += step
        changes.append(((mean(moved) - mean(x)) / step).abs())
    expected = torch.stack(changes).mean(dim=1).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    summary = summarise_training(ENSEMBLE, samples)  # of rows drawn from them
    np.testing.assert_allclose(summary.weight, expected, rtol=0.4)


def test_a_coreset_covers_all_rows_within_its_radius():
    training = clouds(400, 20, 0)
    small, whole = (summarise_training(ENSEMBLE, training, points=k) for k in (40, 5000))
    assert small.coreset.shape == (40, 21)
    assert small.mean_distance == whole.mean_distance
    fresh = as_rows(clouds(500, 20, 1, away=0.05))
    excess = small.dissimilarity(*fresh) - whole.dissimilarity(*fresh)
    assert excess.min() > -1e-3
    assert 0 < excess.max() <= small.radius + 1e-3
    own = small.dissimilarity(*as_rows(training))
    assert own.max() == pytest.approx(small.radius, rel=1e-3)
    again = summarise_training(ENSEMBLE, training, points=40)
    np.testing.assert_array_equal(again.coreset, small.coreset)


def test_errors_grow_with_the_index_where_inputs_shift():
    """Networks that learned a curve in one corner are the more wrong the farther from it."""
    torch.manual_seed(0)
    layout = LAYOUT

    def truth(samples):
        return 0.1 + 0.3 * (samples.snapshot[:, :3].sum(dim=1) - 0.9).square()

    training = clouds(400, 20, 0)
    network = DenseSM(1, 16).eval()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        (network(training.features) - truth(training)).square().mean().backward()
        optimiser.step()
    ensemble = Ensemble((("a", network),), layout)
    summary = summarise_training(ensemble, training)
    away = np.random.default_rng(5).uniform(0, 0.5, 2000)[:, None]
    fresh = clouds(2000, 20, 6)
    moved = torch.from_numpy(np.clip(fresh.snapshot.numpy() + away, 0, 1)).float()
    fresh = replace(fresh, snapshot=moved)
    error = np.abs(predict_samples(ensemble, fresh.features)[0] - truth(fresh).numpy())
    index = summary.dissimilarity(*as_rows(fresh))
    quarter = np.searchsorted(np.quantile(index, [0.25, 0.5, 0.75]), index)
    means = [error[quarter == k].mean() for k in range(4)]
    assert means == sorted(means)
    inside = index <= summary.threshold
    assert error[~inside].mean() > 2 * error[inside].mean()


@pytest.mark.parametrize("longitude", [4.0, np.nan])
def test_training_samples_of_one_place_tell_nothing_of_others(longitude):
    samples = random_samples(20, longitude=longitude, latitude=50.0, station="a", network="n")
    with pytest.raises(ConfigError, match=r"1 stations or places .* tell nothing of other places"):
        summarise_training(ENSEMBLE, samples)


def test_what_samples_do_not_suffice_for_is_missing_and_the_card_says_why():
    parts = {"fine": clouds(30, 3, 0), "validation": stations(3, 5, 0)}
    found, notes = with_uncertainty(ENSEMBLE, parts, learned="fine")
    assert found.calibration is None
    assert "of 3 stations or places" in notes["calibration"]["none"]
    assert found.applicability.threshold == notes["applicability"]["threshold"]
    parts = {"fine": clouds(30, 1, 0), "validation": stations(6, 5, 0)}
    found, notes = with_uncertainty(ENSEMBLE, parts, learned="fine")
    assert found.applicability is None
    assert "1 stations or places" in notes["applicability"]["none"]
    assert notes["calibration"]["coverage"] == found.calibration.coverage


def test_repeats_that_are_joined_are_calibrated_together(tmp_path):
    """Of stations that any of them learned from, and once more where that was not done yet."""
    data = replace(stations(12, 10, 0), network=np.full(120, "n"))
    data = replace(data, station=np.array([f"s{k:.0f}" for k in data.longitude]))
    parts = [data.take((data.longitude >= low) & (data.longitude < low + 6)) for low in (0, 6)]
    split = Split(parts[0], parts[1], stations(5, 10, 1, first=20), None)
    adapted = {
        "r0": replace(ENSEMBLE, card={"stations": ["n/s0", "n/s1"]}),
        "r1": replace(ENSEMBLE, card={"stations": ["n/s1", "n/s3"]}),
    }
    joined = _join(adapted, split)
    assert joined.calibration == fit_calibration(joined, split.validation, test=split.test)
    assert joined.calibration.ensemble == joined.digest != ENSEMBLE.digest
    assert (joined.applicability.rows, joined.applicability.groups) == (30, 3)
    assert joined.card["calibration"]["coverage"] == joined.calibration.coverage
    assert set(joined.card["joined"]) == {"r0", "r1"}
    save_ensemble(replace(joined, calibration=None), tmp_path / "ensemble")
    _replace_ensemble(joined, tmp_path / "ensemble")
    assert load_ensemble(tmp_path / "ensemble").calibration == joined.calibration
