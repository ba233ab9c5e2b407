from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smgrid.errors import ConfigError
from smgrid.models.checkpoints import load_checkpoints
from smgrid.training import losses
from smgrid.training.losses import (
    automatic_beta,
    domain_loss,
    label_loss,
    mean_absolute_percentage_error,
    mean_squared_error,
    three_loader_loss,
    two_loader_loss,
)
from smgrid.training.table import make_samples
from tests.networks import make_network
from tests.training.tables import random_samples

NAMES = {"coral": "coral", "mmd": "mmd", "mmdl": "linear_mmd"}  # published: ours
PARTS = ["beta_source", "beta_target", "joint_coarse"]  # the order of a joint batch


def table(golden, name):
    """A part of the golden data; rows of 15 snapshot columns and 3 series of 46 steps."""
    x, label = golden[f"{name}_x"], golden.get(f"{name}_y")
    series = x[:, 15:].reshape(-1, 3, 46)
    label = None if label is None else label[:, 0]
    return make_samples(x[:, :15], series, torch.arange(len(x)), label=label)


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "reference" / "golden" / "msda_golden.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def released(shared):
    return dict(load_checkpoints(shared / "data" / "densesm_9km").members)["coarse_3_32"]


@pytest.fixture
def network(released):
    return deepcopy(released)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["mse", "mape"])
def test_label_losses_are_the_published_ones(golden, name):
    prediction, label = golden["y_pred"][:, 0], golden["y_true"][:, 0]
    found = label_loss(name)(prediction, label, torch.ones_like(label))
    torch.testing.assert_close(found, golden[name], rtol=1e-14, atol=0)


@pytest.mark.shared
@pytest.mark.parametrize("domain", NAMES)
@pytest.mark.parametrize("label", ["MAPE", "MSE"])
def test_beta_is_the_published_one(golden, network, domain, label):
    beta = automatic_beta(
        network,
        table(golden, "beta_source"),
        table(golden, "beta_target"),
        alpha=0.7,
        label_loss=label_loss(label.lower()),
        domain_loss=domain_loss(NAMES[domain]),
        subset_indices=golden["beta_target_subset_index"],
    )
    assert beta == pytest.approx(golden[f"beta_{domain}_{label}"].item(), rel=1e-5)


@pytest.mark.shared
def test_joint_losses_are_the_published_ones(golden, network):
    """Only the fine and the target rows, these cut to as many, meet in the domain term."""
    fine, target, coarse = (table(golden, name) for name in PARTS)
    with torch.no_grad():
        features = [network.features(part.features) for part in (fine, target, coarse)]
        predicted = [network.out(f)[:, 0] for f in features]
    mape = label_loss("mape")
    terms = three_loader_loss(
        mape(predicted[0], fine.label, fine.weight),
        mape(predicted[2], coarse.label, coarse.weight),
        domain=domain_loss("coral", pairing="shorter")(features[0], features[1]),
        alpha=0.7,
        beta=golden["beta_coral_MAPE"].item(),
    )
    parts = torch.stack([terms.fine, terms.coarse, terms.domain])
    torch.testing.assert_close(parts, golden["joint_parts_fine_coarse_domain"], rtol=1e-5, atol=0)
    assert terms.total.item() == pytest.approx(golden["joint_three_loader"].item(), rel=1e-5)
    two = two_loader_loss(
        terms.fine, domain=terms.domain, alpha=0.7, beta=golden["beta_coral_MAPE"].item()
    )
    assert two.total.item() == pytest.approx(golden["joint_two_loader"].item(), rel=1e-5)


@pytest.mark.shared
def test_a_joint_batch_shares_its_statistics_as_published(golden, network):
    network.train()
    network.conv_block.dropout.p = 0.0
    batch = torch.cat([golden[f"{name}_x"][:40] for name in PARTS])
    with torch.no_grad():
        found = network(batch)
    torch.testing.assert_close(
        found, golden["joint_trainmode_nodropout_pred"], rtol=1e-5, atol=1e-6
    )
    state, prefix = network.state_dict(), "joint_trainmode_after_"
    after = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    assert len(after) == 3
    for name, expected in after.items():
        torch.testing.assert_close(state[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [mean_squared_error, mean_absolute_percentage_error])
@given(n=st.integers(1, 20), seed=st.integers(0, 1000))
def test_a_weight_is_the_number_of_times_that_a_sample_counts(loss, n, seed):
    rng = np.random.default_rng(seed)
    prediction, label = (torch.from_numpy(rng.uniform(0.05, 0.6, n)) for _ in range(2))
    times = torch.from_numpy(rng.integers(0, 4, n))
    times[0] += 1
    often = [x.repeat_interleave(times) for x in (prediction, label)]
    ones = torch.ones_like(often[0])
    torch.testing.assert_close(loss(prediction, label, times), loss(*often, ones))


def test_label_losses_by_hand():
    prediction, label = torch.tensor([0.2, 0.3]), torch.tensor([0.1, 0.4])
    weight = torch.tensor([3.0, 1.0])
    assert mean_squared_error(prediction, label, weight) == pytest.approx(0.01)
    relative = mean_absolute_percentage_error(prediction, label, weight)
    assert relative == pytest.approx((3 * 1 + 0.25) / 4)
    floored = label_loss("mape", floor=0.2)(prediction, label, weight)
    assert floored == pytest.approx((3 * 0.5 + 0.25) / 4)


def test_a_floor_keeps_the_relative_error_of_dry_soil_finite():
    prediction, dry = torch.tensor([0.1], requires_grad=True), torch.tensor([0.0])
    loss = label_loss("mape", floor=0.01)(prediction, dry, torch.ones(1))
    loss.backward()
    assert loss.detach() == pytest.approx(10)
    assert prediction.grad == pytest.approx(100)
    assert label_loss("mape")(prediction.detach(), dry, torch.ones(1)) == float("inf")


@pytest.mark.parametrize("loss", [mean_squared_error, mean_absolute_percentage_error])
def test_members_share_labels_and_weights_or_have_their_own(loss):
    generator = torch.Generator().manual_seed(0)
    prediction, label, weight = (torch.rand(3, 8, generator=generator) + 0.1 for _ in range(3))
    shared = torch.stack([loss(p, label[0], weight[0]) for p in prediction])
    torch.testing.assert_close(loss(prediction, label[0], weight[0]), shared)
    own = [loss(*rows) for rows in zip(prediction, label, weight, strict=True)]
    torch.testing.assert_close(loss(prediction, label, weight), torch.stack(own))


def test_columns_against_rows_and_unknown_names_are_refused():
    column, row = torch.rand(4, 1), torch.rand(4)
    for arguments in [(column, row, row), (row, column, row), (row, row, column)]:
        with pytest.raises(ConfigError, match="with one n, found"):
            mean_squared_error(*arguments)
    with pytest.raises(ConfigError, match="label loss: expected one of mse, mape, found 'mae'"):
        label_loss("mae")
    with pytest.raises(ConfigError, match="coral, mmd, linear_mmd, found 'mmdl'"):
        domain_loss("mmdl")


def test_joint_losses_of_several_members_with_their_own_beta():
    fine, coarse, domain, beta = torch.rand(4, 5)
    three = three_loader_loss(fine, coarse, domain=domain, alpha=0.6, beta=beta)
    torch.testing.assert_close(three.total, 0.6 * fine + 0.4 * coarse + beta * domain)
    two = two_loader_loss(fine, domain=domain, alpha=0.6, beta=beta)
    torch.testing.assert_close(two.total, 0.6 * fine + beta * domain / 2.5)
    assert two.coarse is None


def beta_of(network, source, target, **options):
    chosen = {
        "alpha": 0.7,
        "label_loss": label_loss("mse"),
        "domain_loss": domain_loss("coral"),
    } | options
    return automatic_beta(network, source, target, **chosen)


def test_beta_uses_weights_and_drawn_subsets_as_large_as_the_source():
    network = make_network(1, 4)
    source, target = random_samples(20), random_samples(60, seed=1)
    sizes, seen = [], []

    def noting(features, others):
        sizes.append((len(features), len(others)))
        assert len(others.unique(dim=0)) == len(others)
        seen.append(others[0])
        return domain_loss("coral")(features, others)

    beta = beta_of(network, source, target, subsets=7, domain_loss=noting)
    assert sizes == [(20, 20)] * 7
    assert len(torch.stack(seen).unique(dim=0)) > 1
    assert beta == beta_of(network, source, target, subsets=7)
    assert beta != beta_of(network, source, target, subsets=7, seed=1)
    assert beta == pytest.approx(2 * beta_of(network, source, target, subsets=7, alpha=0.35))
    even = replace(source, weight=torch.ones(20))
    assert beta != pytest.approx(beta_of(network, even, target, subsets=7), rel=1e-4)


def test_beta_without_subsets_to_draw_is_that_of_the_whole_target(monkeypatch):
    monkeypatch.setattr(losses, "_ROWS", 7)
    network = make_network(1, 4)
    source, target = random_samples(20), random_samples(9, seed=1)
    with torch.no_grad():
        fine = mean_squared_error(network(source.features), source.label, source.weight)
        gap = domain_loss("coral")(*(network.features(s.features) for s in (source, target)))
    sizes = []

    def noting(features, others):
        sizes.append((len(features), len(others)))
        return domain_loss("coral")(features, others)

    beta = beta_of(network, source, target, domain_loss=noting)
    assert beta == pytest.approx(float(0.7 * fine / gap), rel=1e-5)
    assert sizes == [(20, 9)]  # one look at the whole target is enough


def test_beta_leaves_the_network_and_the_random_numbers_alone():
    network = make_network(1, 4).train()
    network.norm.eval()
    modes = [module.training for module in network.modules()]
    before = {k: v.clone() for k, v in network.state_dict().items()}
    random = torch.random.get_rng_state()
    source, target = random_samples(20), random_samples(30, seed=1)
    beta = beta_of(network, source, target)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    assert beta == beta_of(network.eval(), source, target)


@pytest.mark.parametrize("name", NAMES.values())
def test_there_is_no_beta_for_equal_domains(name):
    network = make_network(1, 4).train()
    source = random_samples(20)
    shuffled = source.take(np.random.default_rng(0).permutation(20))
    with pytest.raises(ConfigError, match="give beta as a number"):
        beta_of(network, source, shuffled, domain_loss=domain_loss(name))
    assert network.training


def test_there_is_no_beta_without_labels_or_subsets():
    network, source = make_network(1, 4), random_samples(20)
    unlabelled = replace(source, label=torch.full((20,), torch.nan))
    with pytest.raises(ConfigError, match="drop samples without label"):
        beta_of(network, unlabelled, random_samples(30, seed=1))
    with pytest.raises(ConfigError, match="at least 1, found 0"):
        beta_of(network, source, source, subsets=0)


def test_a_failure_gives_the_network_back_as_it_was():
    network = make_network(1, 4).train()
    with pytest.raises(ConfigError, match="at least 2 rows"):
        beta_of(network, random_samples(1), random_samples(30, seed=1))
    assert network.training
