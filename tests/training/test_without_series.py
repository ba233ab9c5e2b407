"""Layouts of snapshot columns alone, from the table to the bundle."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import smgrid
from smgrid.errors import LayoutError
from smgrid.features.layout import FeatureLayout, get_layout
from smgrid.inference.engine import compile_ensemble
from smgrid.training.loop import Domains, Job
from smgrid.training.plan import ADAPTATION, MSDA, FitPlan
from smgrid.training.table import join_samples, make_samples
from tests.cubes import make_cube
from tests.networks import make_network
from tests.training.tables import random_samples

FULL = get_layout("smgrid-1")
LAYOUT = replace(FULL, name="snapshot", snapshot=FULL.snapshot[:4], series=())
SIZES = ((1, 8), (2, 8))
PLAN = FitPlan(epochs=40, batch_size=32, averaging=0.8)


def table(n=200, seed=0):
    """A label that follows two columns."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.random((n, 4), dtype="f4"))
    facts = {"longitude": rng.integers(0, 30, n), "latitude": 50.0, "station": "s"}
    return make_samples(x, label=0.05 + 0.3 * x[:, 0] + 0.1 * x[:, 2], **facts)


def in_double(samples):
    names = ("snapshot", "series", "label", "weight")
    return replace(samples, **{name: getattr(samples, name).double() for name in names})


def test_a_layout_without_series_is_described_and_read():
    assert LAYOUT.n_columns == 4
    assert LAYOUT.column_names == ("vv", "vh", "angle", "sand")
    assert FeatureLayout.from_dict(LAYOUT.to_dict()) == LAYOUT


@pytest.mark.parametrize("series", [None, torch.empty(0, 0, 46), torch.empty(7, 0, 46)])
def test_tables_do_without_series(series):
    x = torch.rand(5, 4)
    samples = make_samples(x, series, torch.arange(5))
    assert samples.series.shape == (1, 0, 46)
    assert torch.equal(samples.features, x)
    assert torch.equal(samples.take(np.array([3, 1])).compact().features, x[[3, 1]])
    assert torch.equal(join_samples([samples, samples]).features, torch.cat([x, x]))


def test_series_without_an_index_are_not_dropped():
    with pytest.raises(LayoutError, match="series_index"):
        make_samples(torch.rand(5, 4), torch.rand(5, 3, 46))


@pytest.mark.parametrize("batches", [1, 3])
def test_tables_without_series_are_written_and_read(tmp_path, batches):
    samples = table(30)
    parts = [samples.take(rows) for rows in np.array_split(np.arange(30), batches)]
    smgrid.write_samples(samples if batches == 1 else parts, tmp_path / "table", layout=LAYOUT)
    read = smgrid.open_samples(tmp_path / "table", layout=LAYOUT)
    assert torch.equal(read.features, samples.features)
    assert torch.equal(read.label, samples.label)


def test_training_learns_from_the_snapshot(tmp_path):
    """With the defaults, but for fewer and smaller members and more passes over fewer rows."""
    options = {"layout": LAYOUT, "sizes": SIZES, "plan": PLAN}
    ensemble = smgrid.fit(table(), table(50, 1), **options, out=tmp_path / "run")
    unseen = table(100, 2)
    prediction = smgrid.predict_samples(ensemble, unseen.features)
    rmse = np.sqrt(np.mean((prediction.mean(axis=0) - unseen.label.numpy()) ** 2))
    assert rmse < 0.3 * float(unseen.label.std())
    loaded = smgrid.load_ensemble(tmp_path / "run" / "ensemble")
    assert loaded.digest == ensemble.digest
    np.testing.assert_array_equal(smgrid.predict_samples(loaded, unseen.features), prediction)


@pytest.mark.parametrize("frozen", ["nothing", "series"])
def test_members_together_are_members_alone(frozen):
    """Adaptation with three domains, in double precision so that only the order of sums differs."""
    networks = [
        make_network(d, w, seed=d, n_snapshot=4, n_series=0).double() for d, w in (*SIZES, (1, 4))
    ]
    domains = Domains(*(in_double(table(n, n)) for n in (90, 60, 50)))
    validation = in_double(table(20, 1))
    plan = replace(ADAPTATION, epochs=3, average_from=1, frozen=frozen)
    together = Job(networks, domains, validation, plan=plan, msda=MSDA(), betas=[0.1] * 3)
    together.run()
    for number, network in enumerate(networks):
        options = {"plan": plan, "msda": MSDA(), "betas": [0.1], "numbers": [number]}
        alone = Job([network], domains, validation, **options)
        alone.run()
        x = validation.features
        with torch.no_grad():
            one, other = alone.networks()[0](x), together.networks()[number](x)
            torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
            assert float((one - network(x)).abs().max()) > 1e-3


def test_the_engine_equals_the_members_forward_passes():
    sizes = (*SIZES, (3, 4))
    members = tuple(
        (f"m{k}", make_network(d, w, seed=k, n_snapshot=4, n_series=0))
        for k, (d, w) in enumerate(sizes)
    )
    ensemble = smgrid.Ensemble(members, LAYOUT)
    samples = table(70)
    x = samples.snapshot.numpy()
    x[3, 1] = np.nan
    found = compile_ensemble(ensemble).predict(
        x, samples.series.numpy(), samples.series_index.numpy()
    )
    expected = smgrid.predict_samples(ensemble, x)
    assert np.isnan(expected[:, 3]).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_samples_with_series_are_refused():
    with pytest.raises(LayoutError, match="0 series"):
        smgrid.write_samples(random_samples(columns=4), "unused", layout=LAYOUT)


def test_a_cube_is_not_read_by_a_layout_without_series():
    members = (("m", make_network(1, 4, n_snapshot=4, n_series=0)),)
    with pytest.raises(LayoutError, match="'snapshot' has no series of ndvi, t2m, tp"):
        smgrid.predict(make_cube(), smgrid.Ensemble(members, LAYOUT))
