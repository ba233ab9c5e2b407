import copy

import pytest
import torch
from torch import nn

from smgrid.models.densesm import DenseSM
from smgrid.training.branch import branch_features, draw_masks, steps_first
from smgrid.training.stack import MemberStack, make_rows, stack_by_width

NONE = (None, None, None)


def batch(n=50, seed=0, series=3):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.rand(n, 15, generator=g, dtype=torch.float64),
        torch.rand(n, series, 46, generator=g, dtype=torch.float64),
    )


def members(*sizes, dropout=0.0, series=3):
    torch.manual_seed(3)
    networks = [DenseSM(depth, width, n_series=series).double() for depth, width in sizes]
    for network in networks:
        network.conv_block.dropout.p = dropout
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):  # as of a trained network
                nn.init.uniform_(module.running_mean, -0.1, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return networks


def run(stack, snapshot, series, *, statistics, masks=None):
    rows = make_rows(snapshot, series)
    features = stack.series_features(rows.series, masks=masks, statistics=statistics)
    return stack(rows.inputs, features, statistics=statistics)


def assert_same_state(one, other):
    for key, value in one.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-9, atol=1e-12)


SIZES = [(2, 8), (1, 8), (3, 8), (2, 8)]


@pytest.mark.parametrize("count", [3, 0])
def test_a_stack_predicts_what_its_members_do(count):
    networks = members(*SIZES, series=count)
    snapshot, series = batch(series=count)
    out = run(MemberStack(networks), snapshot, series, statistics="running")
    x = torch.cat([snapshot, series.flatten(1)], dim=1)
    order = MemberStack(networks).order
    for place, number in enumerate(order):
        network = networks[number].eval()
        torch.testing.assert_close(out.prediction[place], network(x))
        torch.testing.assert_close(out.features[place], network.features(x))


@pytest.mark.parametrize("count", [3, 0])
def test_members_come_back_as_they_went_in(count):
    networks = members(*SIZES, dropout=0.3, series=count)
    for one, other in zip(networks, MemberStack(networks).networks(), strict=True):
        assert one.depth == other.depth
        assert other.conv_block.dropout.p == 0.3
        for key, value in one.state_dict().items():
            assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize("count", [3, 0])
@pytest.mark.parametrize("statistics", ["update", "running"])
def test_a_step_of_the_stack_is_the_step_of_each_member(statistics, count):
    """Gradients, running statistics and weights after Adam, against autograd of the modules."""
    networks = members(*SIZES, series=count)
    stack = MemberStack(networks)
    snapshot, series = batch(series=count)
    label = torch.rand(50, dtype=torch.float64)
    x = torch.cat([snapshot, series.flatten(1)], dim=1)
    optimiser = torch.optim.Adam(stack.parameters(), lr=1e-2)
    for _ in range(2):
        optimiser.zero_grad()
        out = run(stack, snapshot, series, statistics=statistics)
        ((out.prediction - label) ** 2).mean(dim=1).sum().backward()
        optimiser.step()
    for network, trained in zip(networks, stack.networks(), strict=True):
        network.train(statistics == "update")
        own = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(2):
            own.zero_grad()
            ((network(x) - label) ** 2).mean().backward()
            own.step()
        # Adam divides by the gradient's size: where that is rounding, so is the step.
        for key, value in network.state_dict().items():
            if not key.endswith(("num_batches_tracked", "conv1.bias", "conv2.bias", "conv3.bias")):
                torch.testing.assert_close(
                    trained.state_dict()[key], value, rtol=1e-6, atol=1e-6, msg=key
                )


def test_statistics_of_the_batch_leave_the_running_ones_alone():
    networks = members((2, 8), (1, 8))
    stack = MemberStack(networks)
    snapshot, series = batch()
    batched = run(stack, snapshot, series, statistics="batch").prediction
    for one, other in zip(networks, stack.networks(), strict=True):
        assert_same_state(one, other)
    assert torch.equal(batched, run(stack, snapshot, series, statistics="update").prediction)
    assert not torch.equal(stack.networks()[0].norm.running_mean, networks[0].norm.running_mean)


def test_dropout_of_a_member_does_not_depend_on_the_others():
    networks = members(*SIZES, dropout=0.5)
    snapshot, series = batch()
    together = MemberStack(networks)
    masks = together.draw_masks(50, seed=(7, 1, 2))
    out = run(together, snapshot, series, statistics="batch", masks=masks)
    for number, network in enumerate(networks):
        alone = MemberStack([network], numbers=[number])
        own = alone.draw_masks(50, seed=(7, 1, 2))
        single = run(alone, snapshot, series, statistics="batch", masks=own)
        torch.testing.assert_close(
            out.prediction[together.order.index(number)], single.prediction[0]
        )
    assert not torch.equal(masks[0][0], masks[1][0])
    other = together.draw_masks(50, seed=(7, 1, 3))
    assert not torch.equal(masks[0][0], other[0][0])


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_masks_silence_their_share_and_keep_the_mean(p):
    (network,) = members((1, 8), dropout=p)
    masks = draw_masks(network.conv_block, 64, steps=46, seed=(1,), device="cpu")
    assert [tuple(m.shape) for m in masks] == [(46, 32, 64), (23, 16, 64), (11, 4, 64)]
    for mask in masks:
        values = mask.unique().tolist()
        assert values == pytest.approx([0, 1 / (1 - p)])
        assert float(mask.mean()) == pytest.approx(1, abs=0.06)


def test_the_branch_with_dropout_equals_the_module_with_the_same_masks(monkeypatch):
    (network,) = members((1, 8), dropout=0.5)
    block = network.conv_block.train()
    _, series = batch()
    masks = [m.double() for m in draw_masks(block, 50, steps=46, seed=(5,), device="cpu")]
    queue = iter([m.permute(2, 1, 0) for m in masks])
    reference = copy.deepcopy(block)
    monkeypatch.setattr(type(reference.dropout), "forward", lambda _, y: y * next(queue))
    expected = reference(series)
    found = branch_features(block, steps_first(series), masks=masks, statistics="update")
    torch.testing.assert_close(found.t(), expected)
    weights = torch.rand_like(expected)
    (expected * weights).sum().backward()
    (found.t() * weights).sum().backward()
    for (name, one), other in zip(block.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    assert_same_state(reference, block)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_without_series_there_is_nothing_to_silence(dropout):
    stack = MemberStack(members((1, 8), (2, 8), dropout=dropout, series=0))
    assert stack.draw_masks(50, seed=(1,)) == [(), ()]
    snapshot, series = batch(series=0)
    masks = stack.draw_masks(50, seed=(1,))
    silenced = run(stack, snapshot, series, statistics="batch", masks=masks)
    assert torch.equal(
        silenced.prediction, run(stack, snapshot, series, statistics="batch").prediction
    )


def test_gradients_with_respect_to_the_series():
    (network,) = members((1, 8))
    _, series = batch(6)
    series.requires_grad_()
    loss = (
        branch_features(network.conv_block, steps_first(series), masks=NONE, statistics="batch")
        ** 2
    ).sum()
    (found,) = torch.autograd.grad(loss, series)
    network.conv_block.train()
    (expected,) = torch.autograd.grad((network.conv_block(series) ** 2).sum(), series)
    torch.testing.assert_close(found, expected)


def test_stacks_hold_the_members_of_one_width():
    networks = members((1, 8), (2, 16), (3, 8))
    stacks = stack_by_width(networks)
    assert [stack.numbers for stack in stacks] == [[2, 0], [1]]
