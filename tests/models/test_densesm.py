import numpy as np
import pytest
import torch

from smgrid.errors import BundleError
from smgrid.models.densesm import (
    DenseSM,
    infer_depth_width,
    network_from_state,
    plain_state,
    pooled_steps,
)
from tests.networks import make_network

PLAIN_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def documented_keys(depth):
    norm = PLAIN_KEYS
    linear = PLAIN_KEYS[:2]
    keys = []
    for i in (1, 2, 3):
        keys += [f"conv_block.conv{i}.{k}" for k in linear]
        keys += [f"conv_block.bn{i}.{k}" for k in norm]
    keys += [f"norm.{k}" for k in norm]
    for block in range(depth):
        name = f"dense_layers.{block}"
        keys += [f"{name}.linear{i}.{k}" for i in (1, 2, 3) for k in linear]
        keys += [f"{name}.bn{i}.{k}" for i in (1, 2, 3) for k in norm]
    keys += [f"fc_layers.0.linear1.{k}" for k in linear] + [f"fc_layers.0.bn1.{k}" for k in norm]
    return keys + [f"out.{k}" for k in linear]


def forms(state):
    """The forms in which published training code leaves the same weights."""
    split = {
        key.replace("out.", "mv.") if key.startswith("out.") else f"fe.{key}": value
        for key, value in state.items()
    }
    plain = {"plain": state, "split": split}
    return plain | {
        f"0.{name}": {f"0.{k}": v for k, v in form.items()} for name, form in plain.items()
    }


@pytest.mark.parametrize(
    ("depth", "width", "parameters"), [(1, 8, 5361), (1, 16, 6313), (5, 128, 377_785)]
)
def test_published_sizes(depth, width, parameters):
    network = DenseSM(depth, width)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert list(network.state_dict()) == documented_keys(depth)
    assert len(network.state_dict()) == 35 + 21 * depth


@pytest.mark.parametrize(("steps", "left"), [(46, (23, 11, 3)), (16, (8, 4, 1)), (21, (10, 5, 2))])
def test_pooling_keeps_a_partial_window_only_at_the_end(steps, left):
    assert pooled_steps(steps) == left
    network = make_network(n_steps=steps)
    with torch.no_grad():
        assert network.conv_block(torch.rand(2, 3, steps)).shape == (2, 4 * left[-1])


def test_series_branch_against_a_plain_loop():
    """Edge replication, floor and ceil pooling, channel-major features: written out in NumPy."""
    network = make_network(seed=3).double()
    state = {k: v.numpy() for k, v in network.conv_block.state_dict().items()}
    y = np.random.default_rng(0).random((3, 46))
    with torch.no_grad():
        found = network.conv_block(torch.from_numpy(y)[None])[0].numpy()
    for i, pool in ((1, 2), (2, 2), (3, 4)):
        padded = np.pad(y, ((0, 0), (2, 2)), mode="edge")
        windows = np.stack([padded[:, k : k + 5] for k in range(y.shape[1])], axis=1)
        z = np.einsum("ock,ctk->ot", state[f"conv{i}.weight"], windows)
        z += state[f"conv{i}.bias"][:, None]
        spread = np.sqrt(state[f"bn{i}.running_var"] + 1e-5)
        z = (z - state[f"bn{i}.running_mean"][:, None]) / spread[:, None]
        z = np.maximum(z * state[f"bn{i}.weight"][:, None] + state[f"bn{i}.bias"][:, None], 0)
        last = z.shape[1] if i == 3 else z.shape[1] - z.shape[1] % pool
        y = np.stack([z[:, j : min(j + pool, last)].mean(axis=1) for j in range(0, last, pool)], 1)
    np.testing.assert_allclose(found, y.ravel(), atol=1e-12)


def test_forward_inserts_the_means():
    network = make_network(seed=1)
    x = torch.rand(5, 153)
    series = x[:, 15:].reshape(5, 3, 46)
    with torch.no_grad():
        features = network.head(x[:, :15], series.mean(dim=2), network.conv_block(series))
        assert features.shape == (5, 32)
        torch.testing.assert_close(network.features(x), features)
        torch.testing.assert_close(network(x), network.out(features)[:, 0])


@pytest.mark.parametrize("steps", [1, 46])
def test_without_series_the_dense_part_reads_the_snapshot_alone(steps):
    """Layer by layer in NumPy; the length of series that are not there does not matter."""
    network = make_network(2, 4, n_snapshot=5, n_series=0, n_steps=steps).double()
    assert list(network.state_dict()) == [k for k in documented_keys(2) if "conv_block" not in k]
    state = {k: v.numpy() for k, v in network.state_dict().items()}

    def linear(y, name):
        return y @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(y, name):
        spread = np.sqrt(state[f"{name}.running_var"] + 1e-5)
        y = (y - state[f"{name}.running_mean"]) / spread
        return y * state[f"{name}.weight"] + state[f"{name}.bias"]

    x = np.random.default_rng(0).random((7, 5))
    given = norm(x, "norm")
    for block in ("dense_layers.0", "dense_layers.1"):
        y = given
        for k in (1, 2, 3):
            y = np.maximum(norm(linear(y, f"{block}.linear{k}"), f"{block}.bn{k}"), 0)
        given = np.concatenate([y, given], axis=1)
    features = norm(np.maximum(linear(given, "fc_layers.0.linear1"), 0), "fc_layers.0.bn1")
    with torch.no_grad():
        np.testing.assert_allclose(network.features(torch.from_numpy(x)), features, atol=1e-12)
        np.testing.assert_allclose(
            network(torch.from_numpy(x)), linear(features, "out")[:, 0], atol=1e-12
        )
        assert network(torch.empty(0, 5, dtype=torch.float64)).shape == (0,)


def test_weights_without_series_load_only_as_such():
    network = make_network(2, 4, n_snapshot=5, n_series=0)
    loaded = network_from_state(network.state_dict(), n_snapshot=5, n_series=0)
    x = torch.rand(4, 5)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))
    with pytest.raises(BundleError, match="conv_block"):
        network_from_state(network.state_dict(), n_snapshot=5)
    with pytest.raises(BundleError, match=r"0 series.*conv_block"):
        network_from_state(make_network().state_dict(), n_series=0)


@pytest.mark.parametrize("form", ["plain", "split", "0.plain", "0.split"])
def test_every_form_of_weights_loads(form):
    network = make_network(3, 6)
    state = forms(network.state_dict())[form]
    assert form == "plain" or list(state) != documented_keys(3)
    loaded = network_from_state(state)
    x = torch.rand(4, 153)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))
    assert not loaded.training


def test_averaged_counters_become_integers():
    state = make_network().state_dict() | {"norm.num_batches_tracked": torch.tensor(128829.5)}
    counter = network_from_state(state).norm.num_batches_tracked
    assert counter.dtype == torch.int64
    assert counter == 128829


def test_loading_copies_the_weights_and_leaves_random_numbers_alone():
    state = make_network().state_dict()
    before = torch.get_rng_state()
    loaded = network_from_state(state)
    assert torch.equal(torch.get_rng_state(), before)
    state["out.bias"] += 1
    assert not torch.equal(loaded.out.bias, state["out.bias"])


def test_loaded_network_can_be_trained():
    network = network_from_state(make_network().state_dict()).train()
    network(torch.rand(8, 153)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_depth_and_width_come_from_the_weights():
    assert infer_depth_width(make_network(8, 6).state_dict()) == (8, 6)
    with pytest.raises(BundleError, match="no dense block"):
        infer_depth_width({"weight": torch.zeros(2)}, where="x.pt")


def test_other_weights_are_refused():
    state = make_network().state_dict()
    missing = {k: v for k, v in state.items() if k != "norm.bias"}
    with pytest.raises(BundleError, match=r"x\.pt: the weights do not fit.*norm\.bias"):
        network_from_state(missing, where="x.pt")
    with pytest.raises(BundleError, match="do not fit"):
        network_from_state(state | {"extra.weight": torch.zeros(1)})
    with pytest.raises(BundleError, match="14 snapshot columns"):
        network_from_state(state, n_snapshot=14)
    with pytest.raises(BundleError, match=r"out\.bias has values that are not finite"):
        plain_state(state | {"out.bias": torch.tensor([np.nan])})
    with pytest.raises(BundleError, match="expected tensors by name, found 'epoch'"):
        plain_state(state | {"epoch": 3})
