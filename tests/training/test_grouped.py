"""The members' branches as one network against one member after the other."""

import copy

import pytest
import torch

from smgrid.models.densesm import ConvBlock
from smgrid.training.branch import branch_features, draw_masks, steps_first
from smgrid.training.grouped import grouped_features


def made(count):
    torch.manual_seed(0)
    branches = [ConvBlock(3).double() for _ in range(count)]
    for branch in branches:
        for norm in (branch.bn1, branch.bn2, branch.bn3):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(norm.weight, 0.5, 2)
    return branches


@pytest.mark.parametrize("statistics", ["batch", "running", "update"])
@pytest.mark.parametrize("steps", [46, 23])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_members_as_groups_are_members_one_by_one(statistics, steps, dropout):
    ours, theirs = made(4), made(4)
    for branch in (*ours, *theirs):
        branch.dropout.p = dropout
    series = torch.rand(20, 3, steps, dtype=torch.float64)
    padded = steps_first(series)
    masks = [draw_masks(b, 20, steps=steps, seed=(k,), device="cpu") for k, b in enumerate(ours)]
    grouped = grouped_features(ours, padded, masks=masks, statistics=statistics)
    single = torch.stack(
        [
            branch_features(b, padded, masks=m, statistics=statistics)
            for b, m in zip(theirs, masks, strict=True)
        ]
    )
    torch.testing.assert_close(grouped, single)
    weights = torch.rand_like(single)
    for features in (grouped, single):
        (features * weights).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, msg=name)
        for (name, a), b in zip(one.named_buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(a, b, msg=name)


def test_nothing_is_remembered_of_a_batch():
    branches = made(2)
    before = copy.deepcopy(branches)
    padded = steps_first(torch.rand(20, 3, 46, dtype=torch.float64))
    grouped_features(branches, padded, masks=[(None,) * 3] * 2, statistics="batch")
    for one, other in zip(branches, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))
