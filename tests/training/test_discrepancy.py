import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smgrid.errors import ConfigError
from smgrid.training import discrepancy
from smgrid.training.discrepancy import coral, linear_mmd, mmd

LOSSES = [coral, mmd, linear_mmd]


def draw(n, m, *, seed=0, d=5, shift=0.4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(n, d, generator=generator, dtype=dtype)
    target = 0.7 * torch.randn(m, d, generator=generator, dtype=dtype) + shift
    return source, target


def plain_mmd(source, target, bandwidth=None):
    """All pairs at once, one exponential for each kernel."""
    pooled = torch.cat([source, target])
    n, total = len(source), len(pooled)
    distance = (pooled[:, None] - pooled[None]).square().sum(-1)
    if bandwidth is None:
        bandwidth = distance.sum().detach() / (total**2 - total)
    kernel = sum(torch.exp(-distance / (bandwidth * 2**i / 4)) for i in range(5))
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def gradients(loss, source, target):
    inputs = [x.detach().clone().requires_grad_() for x in (source, target)]
    return torch.autograd.grad(loss(*inputs).sum(), inputs)


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "reference" / "golden" / "msda_golden.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.mark.shared
@pytest.mark.parametrize(
    ("loss", "name"), [(coral, "coral_used"), (mmd, "mmd_rbf"), (linear_mmd, "mmdl")]
)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients_are_the_published_ones(golden, loss, name, dtype, rtol):
    source, target = (golden[k].to(dtype) for k in ("source", "target"))
    torch.testing.assert_close(loss(source, target).double(), golden[name], rtol=rtol, atol=0)
    key = {"coral_used": "coral", "mmd_rbf": "mmd", "mmdl": "mmdl"}[name]
    expected = golden[f"grad_source_{key}"]
    largest = float(expected.abs().max())
    found = gradients(loss, source, target)[0].double()
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * largest)


@pytest.mark.shared
def test_all_rows_of_sets_of_different_size_count(golden):
    source, larger = golden["source"], golden["target_larger"]
    exactly = {"rtol": 1e-12, "atol": 0.0}
    torch.testing.assert_close(coral(source, larger) ** 2, golden["coral_raw_larger"], **exactly)
    torch.testing.assert_close(mmd(source, larger), golden["mmd_rbf_larger"], **exactly)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_published_pairing_takes_as_many_rows_as_the_shorter_set_has(loss):
    source, target = draw(12, 20)
    assert loss(source, target, pairing="shorter") == loss(source, target[:12])
    assert loss(target, source, pairing="shorter") == loss(target[:12], source)
    assert loss(source, target) != loss(source, target[:12])


def test_linear_mmd_is_the_mean_of_the_gram_matrix_of_differences():
    source, target = draw(12, 12)
    gap = source - target
    torch.testing.assert_close(linear_mmd(source, target), (gap @ gap.T).mean())


def test_coral_is_the_root_of_the_squared_gap_of_numpys_covariances():
    source, target = draw(12, 30)
    gap = np.cov(source.numpy().T) - np.cov(target.numpy().T)
    expected = np.sqrt((gap**2).sum() / (4 * 5**2))
    assert coral(source, target).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("pairs", [1, 300, 1000, 2**18])
@pytest.mark.parametrize(("n", "m"), [(17, 23), (40, 1), (1, 9)])
def test_mmd_is_the_sum_over_all_pairs_whatever_the_tiles(monkeypatch, pairs, n, m):
    monkeypatch.setattr(discrepancy, "_CPU_PAIRS", pairs)
    source, target = draw(n, m)
    torch.testing.assert_close(mmd(source, target), plain_mmd(source, target), rtol=1e-12, atol=0)
    found, expected = (gradients(loss, source, target) for loss in (mmd, plain_mmd))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-15)


def test_mmd_in_float32_is_exact_far_from_zero():
    source, target = draw(300, 200, d=32, shift=0.05)
    near = [x.float() + 20 for x in (source, target)]
    exact = [x.double() for x in near]
    torch.testing.assert_close(mmd(*near).double(), plain_mmd(*exact), rtol=1e-5, atol=0)
    for found, expected in zip(gradients(mmd, *near), gradients(plain_mmd, *exact), strict=True):
        assert (found - expected).norm() < 1e-5 * expected.norm()


def test_gradient_of_mmd_takes_the_bandwidth_as_a_constant():
    inputs = [x.requires_grad_() for x in draw(5, 4, d=3)]
    bandwidth = torch.tensor(2.5, dtype=torch.float64)

    def fixed(source, target):
        return discrepancy._GaussianMmd.apply(source, target, bandwidth)

    torch.testing.assert_close(fixed(*inputs), plain_mmd(*inputs, bandwidth=2.5))
    assert torch.autograd.gradcheck(fixed, inputs)


@pytest.mark.parametrize("loss", [coral, linear_mmd])
def test_gradients_of_the_other_losses(loss):
    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in draw(5, 4, d=3)])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("constant", [False, True])
def test_equal_sets_have_neither_loss_nor_gradient(loss, constant):
    source = torch.full((6, 5), 3.0) if constant else draw(6, 6, dtype=torch.float32)[0]
    assert abs(loss(source, source.clone()).item()) < 1e-6
    for gradient in gradients(loss, source, source.clone()):
        assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_mmd_does_not_depend_on_the_scale_even_where_squares_leave_float32(scale):
    source, target = draw(8, 9, dtype=torch.float32)
    expected = mmd(source, target)
    torch.testing.assert_close(mmd(source * scale, target * scale), expected, rtol=1e-5, atol=0)
    rescaled, reference = (gradients(mmd, *(x * k for x in (source, target))) for k in (scale, 1))
    torch.testing.assert_close(rescaled[0] * scale, reference[0], rtol=1e-4, atol=1e-7)


def test_an_outlier_does_not_spoil_mmd():
    source, target = draw(50, 50, dtype=torch.float32)
    source[0] += 1e4
    inputs = source.double(), target.double()
    torch.testing.assert_close(mmd(source, target).double(), plain_mmd(*inputs), rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("pairs", [1, 200, 2**18])
def test_stacked_members_are_taken_one_by_one(monkeypatch, loss, pairs):
    monkeypatch.setattr(discrepancy, "_CPU_PAIRS", pairs)
    drawn = [draw(6, 4, seed=seed, shift=seed / 4) for seed in range(7)]
    source, target = (torch.stack(x) for x in zip(*drawn, strict=True))
    torch.testing.assert_close(loss(source, target), torch.stack([loss(s, t) for s, t in drawn]))
    single = [gradients(loss, s, t) for s, t in drawn]
    expected = tuple(torch.stack(x) for x in zip(*single, strict=True))
    torch.testing.assert_close(gradients(loss, source, target), expected)


@pytest.mark.parametrize("loss", LOSSES)
@given(n=st.integers(2, 12), m=st.integers(2, 12), seed=st.integers(0, 1000))
def test_losses_are_distances_between_sets(loss, n, m, seed):
    source, target = draw(n, m, seed=seed, shift=seed % 3)
    value = loss(source, target)
    assert value > 0
    torch.testing.assert_close(loss(target, source), value)
    generator = torch.Generator().manual_seed(seed)
    shuffled = [x[torch.randperm(len(x), generator=generator)] for x in (source, target)]
    torch.testing.assert_close(loss(*shuffled), value)
    torch.testing.assert_close(loss(source + 2, target + 2), value)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 5), (4, 6)), "with the same d"),
        (((2, 4, 5), (4, 5)), "stacked"),
        (((5,), (5,)), r"found \(5,\)"),
        (((0, 5), (4, 5)), "at least . rows"),
    ],
)
@pytest.mark.parametrize("loss", LOSSES)
def test_shapes_that_do_not_go_together_are_refused(loss, shapes, message):
    with pytest.raises(ConfigError, match=message):
        loss(*map(torch.zeros, shapes))


def test_one_row_has_no_covariance_and_unknown_pairings_are_refused():
    with pytest.raises(ConfigError, match="at least 2 rows"):
        coral(torch.zeros(1, 5), torch.zeros(4, 5))
    with pytest.raises(ConfigError, match="'all' or 'shorter', found 'longer'"):
        mmd(*draw(4, 5), pairing="longer")
