import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smgrid.errors import ConfigError, LayoutError
from smgrid.inference import engine as engine_module
from smgrid.inference.engine import compile_ensemble
from smgrid.models.bundle import load_ensemble
from smgrid.models.ensemble import Ensemble, predict_samples
from tests.networks import make_ensemble, make_network


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "reference" / "golden" / "densesm_golden.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def released(shared):
    return load_ensemble(shared / "data" / "densesm_9km")


def inputs(n, m, seed=0):
    rng = np.random.default_rng(seed)
    snapshot = rng.random((n, 15), dtype=np.float32)
    series = rng.random((m, 3, 46), dtype=np.float32)
    return snapshot, series, rng.integers(0, m, n)


def rows(snapshot, series, index):
    return np.concatenate([snapshot, series.reshape(len(series), -1)[index]], axis=1)


def split(x):
    """Vectors as the engine takes them, each with a series of its own."""
    return x[:, :15], x[:, 15:].reshape(-1, 3, 46), np.arange(len(x))


@pytest.fixture(params=["kernel", "matrix products"], autouse=True)
def way(request):
    """Run every test with the compiled kernel, and as where numba is not installed."""
    if request.param == "kernel":
        pytest.importorskip("numba")
    engine_module._compiled_kernel.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "kernel":
            patch.setitem(sys.modules, "smgrid.inference.kernels", None)
        yield request.param
    engine_module._compiled_kernel.cache_clear()


def test_without_numba_a_line_in_the_log_says_so(way, caplog):
    engine = compile_ensemble(make_ensemble())
    with caplog.at_level("INFO", logger="smgrid"):
        engine.predict(*inputs(20, 4))
        engine.predict(*inputs(20, 4))
    lines = [record.message for record in caplog.records]
    assert len(lines) == (0 if way == "kernel" else 1)
    assert all("pip install 'smgrid[numba]'" in line for line in lines)


class Broken(ModuleType):
    """What importing the kernel comes to where numba does not fit the NumPy that is there."""

    def __getattr__(self, name):
        raise RuntimeError("Numba needs NumPy 2.3 or less")


def test_with_a_broken_numba_a_line_in_the_log_says_so(monkeypatch, caplog):
    expected = compile_ensemble(make_ensemble()).predict(*inputs(20, 4))
    engine_module._compiled_kernel.cache_clear()
    monkeypatch.setitem(sys.modules, "smgrid.inference.kernels", Broken("kernels"))
    found = compile_ensemble(make_ensemble()).predict(*inputs(20, 4))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert "numba cannot be used (RuntimeError: Numba needs NumPy 2.3 or less)" in caplog.text


sizes = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([1, 4, 7])), min_size=1, max_size=4, unique=True
)


@settings(max_examples=25, deadline=None)
@given(sizes=sizes, n=st.integers(0, 40), m=st.integers(1, 12), seed=st.integers(0, 99))
def test_engine_equals_the_members_forward_passes(sizes, n, m, seed):
    ensemble = make_ensemble(sizes)
    snapshot, series, index = inputs(n, m, seed)
    found = compile_ensemble(ensemble).predict(snapshot, series, index)
    expected = predict_samples(ensemble, rows(snapshot, series, index))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_blocks_join_seamlessly(monkeypatch):
    """More rows and series than one block holds, and no multiple of it."""
    monkeypatch.setitem(engine_module._ROWS, "cpu", 16)
    monkeypatch.setitem(engine_module._SERIES, "cpu", 5)
    ensemble = make_ensemble()
    arrays = inputs(75, 23)
    found = compile_ensemble(ensemble).predict(*arrays)
    np.testing.assert_allclose(found, predict_samples(ensemble, rows(*arrays)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [16, 21, 46, 53])
def test_other_lengths_of_series(steps):
    """Odd lengths drop a step in the first poolings and keep a partial window in the last."""
    network = make_network(3, 6, n_snapshot=4, n_series=2, n_steps=steps)
    layout = make_ensemble().layout
    layout = type(layout).from_dict(
        layout.to_dict()
        | {"steps": steps}
        | {k: layout.to_dict()[k][:n] for k, n in (("snapshot", 4), ("series", 2))}
    )
    ensemble = Ensemble((("a", network),), layout)
    x = np.random.default_rng(0).random((9, layout.n_columns), dtype=np.float32)
    series = x[:, 4:].reshape(9, 2, steps)
    found = compile_ensemble(ensemble).predict(x[:, :4], series, np.arange(9))
    np.testing.assert_allclose(found, predict_samples(ensemble, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_incomplete_inputs_give_nan_for_their_rows_alone(value):
    engine = compile_ensemble(make_ensemble())
    snapshot, series, index = inputs(30, 6)
    whole = engine.predict(snapshot, series, index)
    snapshot[3, 14], series[2, 1, 45] = value, value
    missing = (np.arange(30) == 3) | (index == 2)
    assert 1 < missing.sum() < 30
    found = engine.predict(snapshot, series, index)
    assert np.isnan(found[:, missing]).all()
    np.testing.assert_allclose(found[:, ~missing], whole[:, ~missing], rtol=0, atol=1e-6)


def test_nothing_complete_gives_nan():
    engine = compile_ensemble(make_ensemble())
    snapshot, series, index = inputs(4, 2)
    assert np.isnan(engine.predict(snapshot, np.full_like(series, np.nan), index)).all()
    assert engine.predict(snapshot[:0], series[:0], index[:0]).shape == (3, 0)


def test_series_branch_runs_once_per_distinct_series(monkeypatch):
    engine = compile_ensemble(make_ensemble())
    seen = []
    original = engine_module.Engine._branch_sums

    def spy(self, series):
        seen.append(len(series))
        return original(self, series)

    monkeypatch.setattr(engine_module.Engine, "_branch_sums", spy)
    snapshot, series, index = inputs(50, 7)
    expected = engine.predict(snapshot, series, index)
    assert seen == [7]

    # Equal series count once, also where one cell borders on the other in the same native pixel.
    twice = np.concatenate([series, series[::-1]])
    flipped = np.where(np.arange(50) % 2, index, 13 - index)
    np.testing.assert_array_equal(engine.predict(snapshot, twice, flipped), expected)
    assert seen == [7, 7]


def test_series_with_one_fingerprint_are_still_told_apart(monkeypatch):
    engine = compile_ensemble(make_ensemble())
    snapshot, series, index = inputs(30, 6)
    expected = engine.predict(snapshot, series, index)

    class Zeros:
        def random(self, n):
            return np.zeros(n)

    monkeypatch.setattr(engine_module.np.random, "default_rng", lambda seed: Zeros())
    np.testing.assert_array_equal(engine.predict(snapshot, series, index), expected)


def test_dates_share_what_was_read_of_their_series():
    engine = compile_ensemble(make_ensemble())
    snapshot, series, index = inputs(40, 9)
    read = engine.read_series(series)
    for rows in (slice(0, 20), slice(20, 40)):
        alone = engine.predict(snapshot[rows], series, index[rows])
        shared = engine.predict_rows(snapshot[rows], read, index[rows])
        np.testing.assert_array_equal(shared, alone)


def test_series_that_are_not_wanted_are_not_read():
    engine = compile_ensemble(make_ensemble())
    snapshot, series, index = inputs(40, 9)
    read = engine.read_series(series, wanted=np.arange(9) != 4)
    found = engine.predict_rows(snapshot, read, index)
    np.testing.assert_array_equal(np.isnan(found[0]), index == 4)
    assert read.sums.shape[-1] == 8


def test_compiled_code_without_a_place_on_disk():
    """As in a container with a read-only file system: it is compiled, and not kept."""
    code = (
        "import numpy as np, numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from smgrid.inference.kernels import _replicate_edges\n"
        "y = np.zeros((6, 1, 16), np.float32); y[2] = 1; y[3] = 2\n"
        "_replicate_edges(y)\n"
        "assert y[:, 0, 0].tolist() == [1, 1, 1, 2, 2, 2], y[:, 0, 0]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_inputs_stay_as_they_were():
    arrays = inputs(20, 4)
    copies = [a.copy() for a in arrays]
    for array in arrays:
        array.flags.writeable = False
    compile_ensemble(make_ensemble()).predict(*arrays)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same():
    ensemble = make_ensemble()
    arrays = inputs(75, 23)
    found = compile_ensemble(ensemble, device="cuda").predict(*arrays)
    np.testing.assert_allclose(found, predict_samples(ensemble, rows(*arrays)), rtol=0, atol=1e-6)


def test_devices_that_are_not_there_are_refused():
    for device in ("gpu", "cuda:99", "cpu:", "cuda:", "cpu:1"):
        with pytest.raises(ConfigError, match=device):
            compile_ensemble(make_ensemble(), device=device)


def test_one_thread_is_used_and_the_number_restored(monkeypatch):
    engine = compile_ensemble(make_ensemble())
    inside = []
    original = engine_module._dense

    def spy(*arguments):
        inside.append(torch.get_num_threads())
        return original(*arguments)

    monkeypatch.setattr(engine_module, "_dense", spy)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda seed: engine.predict(*inputs(50, 9, seed)), range(4)))
        assert inside == [1, 1, 1, 1]
        engine.predict(*inputs(50, 9))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_share_an_engine():
    engine = compile_ensemble(make_ensemble())
    tasks = [inputs(200, 40, seed) for seed in range(6)]
    expected = [engine.predict(*task) for task in tasks]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda task: engine.predict(*task), tasks))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_wrong_shapes_and_indices_are_refused():
    engine = compile_ensemble(make_ensemble())
    snapshot, series, index = inputs(4, 2)
    with pytest.raises(LayoutError, match=r"\(4, 14\), expected \(n, 15\)"):
        engine.predict(snapshot[:, 1:], series, index)
    with pytest.raises(LayoutError, match=r"\(2, 46, 3\)"):
        engine.predict(snapshot, series.swapaxes(1, 2), index)
    with pytest.raises(LayoutError, match=r"expected \(4,\)"):
        engine.predict(snapshot, series, index[:3])
    with pytest.raises(LayoutError, match=r"must lie in 0\.\.1.*runs from -1 to 0"):
        engine.predict(snapshot, series, np.array([0, 0, -1, 0]))
    with pytest.raises(LayoutError, match="runs from 0 to 2"):
        engine.predict(snapshot, series, np.array([0, 0, 2, 0]))


def test_engine_is_a_value_of_its_ensemble():
    ensemble = make_ensemble()
    engine = compile_ensemble(ensemble)
    assert engine.digest == ensemble.digest
    arrays = inputs(10, 3)
    before = engine.predict(*arrays)
    with torch.no_grad():
        ensemble.members[0][1].out.bias += 1
    np.testing.assert_array_equal(engine.predict(*arrays), before)
    again = pickle.loads(pickle.dumps(engine))
    np.testing.assert_array_equal(again.predict(*arrays), before)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("x", "predictions"),
    [
        ("random_x", "random_pred_main"),
        ("real_x_published_order", "real_pred_main_published_order"),
        ("real_x_weights_layout", "real_pred_main_weights_layout"),
        ("mean_input_x", "mean_input_pred_main"),
    ],
)
def test_released_ensemble_reproduces_the_golden_vectors(released, golden, x, predictions):
    found = compile_ensemble(released).predict(*split(golden[x]))
    np.testing.assert_allclose(found, golden[predictions], rtol=0, atol=2e-6)
    plain = predict_samples(released, golden[x])
    np.testing.assert_allclose(found, plain, rtol=0, atol=1e-6)


@pytest.mark.shared
def test_narrow_deep_models_reproduce_the_golden_vectors(shared, golden):
    ensemble = load_ensemble(shared / "data" / "densesm_9km" / "shallow")
    found = compile_ensemble(ensemble).predict(*split(golden["random_x"]))
    np.testing.assert_allclose(found, golden["random_pred_shallow"], rtol=0, atol=2e-6)


@pytest.mark.shared
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_released_ensemble_equals_its_forward_passes(released, seed):
    """Single precision alone moves one value in 100,000 by more than 1e-6; the mean by 2e-7."""
    arrays = inputs(60, 20, seed)
    found = compile_ensemble(released).predict(*arrays)
    expected = predict_samples(released, rows(*arrays))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(found.mean(axis=0), expected.mean(axis=0), rtol=0, atol=5e-7)
