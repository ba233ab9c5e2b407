"""How far apart two sets of features lie: the losses that domain adaptation makes small.

Every function takes features of a source and of a target, (n, d) and (m, d), and gives one number.
Stacked features (members, n, d) and (members, m, d) give one number per member, so that an ensemble
can be trained as one job.
"""

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from smgrid.errors import ConfigError

Pairing: TypeAlias = Literal["all", "shorter"]
"""Which rows are compared when there are more of one set than of the other: ``"all"`` of both, or
as many of each, from the first on, as the ``"shorter"`` has. The published training does the
latter, although none of these losses needs it."""

# Gaussian kernels of the maximum mean discrepancy: each is twice as wide as the one before, and
# the widest has four times the mean squared distance (Zhu et al. 2025).
_KERNELS = 5
_WIDEST = 4.0

# Pairs that are worked on at a time. On a CPU three tiles of float32 have to stay in its cache; a
# GPU wants few, large launches (three tiles of 256 MiB).
_CPU_PAIRS = 2**18
_GPU_PAIRS = 2**26


def coral(source: Tensor, target: Tensor, *, pairing: Pairing = "all") -> Tensor:
    r"""Return the gap between the covariances of two sets (CORAL).

    Parameters
    ----------
    source, target
        (..., n, d) and (..., m, d) features, any unit; at least 2 rows each.
    pairing
        Rows that are compared if n and m differ.

    Returns
    -------
    Tensor
        (...) :math:`\lVert C_s - C_t \rVert_F / 2d` with unbiased covariances, in the squared unit
        of the features.

    Raises
    ------
    ConfigError
        The shapes do not go together, there are too few rows, or ``pairing`` is unknown.

    Notes
    -----
    Sun and Saenko (2016), doi:10.1007/978-3-319-49409-8_35, have the square of this,
    :math:`\lVert C_s - C_t \rVert_F^2 / 4d^2`; Zhu et al. (2025), J. Hydrology 657:133073, take
    the root. Where the covariances are equal the root has no gradient, and the one used is zero:
    the subgradient that PyTorch gives to a norm there.
    """
    source, target = _rows(source, target, pairing, least=2)
    gap = _covariance(source) - _covariance(target)
    norm: Tensor = torch.linalg.vector_norm(gap, dim=(-2, -1))
    return norm / (2 * source.shape[-1])


def linear_mmd(source: Tensor, target: Tensor, *, pairing: Pairing = "all") -> Tensor:
    """Return the squared distance between the means of two sets.

    This is the maximum mean discrepancy of a linear kernel. Row by row differences of two sets of
    one size, as in Zhu et al. (2025), J. Hydrology 657:133073, come to the same number: the mean
    over all entries of their Gram matrix is the squared norm of their mean.

    Parameters
    ----------
    source, target
        (..., n, d) and (..., m, d) features, any unit.
    pairing
        Rows that are compared if n and m differ.

    Returns
    -------
    Tensor
        (...) in the squared unit of the features.

    Raises
    ------
    ConfigError
        The shapes do not go together, a set is empty, or ``pairing`` is unknown.
    """
    source, target = _rows(source, target, pairing, least=1)
    return (source.mean(dim=-2) - target.mean(dim=-2)).square().sum(dim=-1)


def mmd(source: Tensor, target: Tensor, *, pairing: Pairing = "all") -> Tensor:
    r"""Return the squared maximum mean discrepancy with five Gaussian kernels.

    Parameters
    ----------
    source, target
        (..., n, d) and (..., m, d) features, any unit.
    pairing
        Rows that are compared if n and m differ.

    Returns
    -------
    Tensor
        (...) without unit, 0 for equal sets up to rounding. First derivatives only.

    Raises
    ------
    ConfigError
        The shapes do not go together, a set is empty, or ``pairing`` is unknown.

    Notes
    -----
    Gretton et al. (2012), JMLR 13:723, biased estimator (their eq. 5, diagonals included):
    mean :math:`k(s, s')` + mean :math:`k(t, t')` - 2 mean :math:`k(s, t)`. The kernel is a sum as
    in Long et al. (2015), PMLR 37:97: :math:`k(x, y) = \sum_{i=0}^4 \exp(-|x - y|^2 / b_i)` with
    :math:`b_i = 2^i b / 4` and b the mean squared distance over all pairs of different rows of the
    pooled sets, a constant for the gradient (Zhu et al. 2025, J. Hydrology 657:133073). If all
    rows are equal, b is 0, and so are loss and gradient.
    """
    source, target = _rows(source, target, pairing, least=1)
    with torch.no_grad():
        # Squared distances to the mean tell the sum of those between all pairs.
        spread = _centred(source, target).square().sum(dim=(-2, -1))
        bandwidth = 2 * spread / (source.shape[-2] + target.shape[-2] - 1)
    return _GaussianMmd.apply(source, target, bandwidth)  # type: ignore[no-any-return,no-untyped-call]


def _rows(source: Tensor, target: Tensor, pairing: Pairing, *, least: int) -> tuple[Tensor, Tensor]:
    """Return the rows that are compared, after a check that they can be."""
    found = f"{tuple(source.shape)} and {tuple(target.shape)}"
    apart = source.shape[:-2] != target.shape[:-2] or source.shape[-1:] != target.shape[-1:]
    if min(source.ndim, target.ndim) < 2 or apart:
        raise ConfigError(
            "source and target features must be (n, d) and (m, d), or stacked (members, n, d) and "
            f"(members, m, d), with the same d; found {found}"
        )
    if min(source.shape[-2], target.shape[-2]) < least:
        raise ConfigError(
            f"source and target features need at least {least} rows each, found {found}; use "
            "larger batches, or leave out the last one if it is this small"
        )
    if pairing not in ("all", "shorter"):
        raise ConfigError(f"pairing: expected 'all' or 'shorter', found {pairing!r}")
    if pairing == "shorter":
        n = min(source.shape[-2], target.shape[-2])
        return source[..., :n, :], target[..., :n, :]
    return source, target


def _centred(source: Tensor, target: Tensor) -> Tensor:
    """Pool two sets, as distances from the mean of all rows, in float64."""
    pooled = torch.cat([source, target], dim=-2).double()
    return pooled - pooled.mean(dim=-2, keepdim=True)


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-2, keepdim=True)
    return centred.mT @ centred / (x.shape[-2] - 1)


class _GaussianMmd(torch.autograd.Function):
    """The discrepancy for given bandwidths (...), and its gradient in closed form.

    With u = 1/n for rows of the source, -1/m for rows of the target, and K^i the matrix of kernel
    i, the loss is the sum of u_p u_q K^i_pq. Its gradient at row p is
    -4 u_p sum_q u_q (x_p - x_q) sum_i K^i_pq / b_i. Both are taken from a tile of pairs while
    it is in the cache, so the gradient is ready before it is asked for, and no matrix is kept.
    """

    @staticmethod
    def forward(ctx: Any, source: Tensor, target: Tensor, bandwidth: Tensor) -> Tensor:
        n, m = source.shape[-2], target.shape[-2]
        # Centred and in units of the widest kernel, squares neither leave the range of float32 nor
        # hide small distances behind a large mean.
        scale = torch.where(bandwidth > 0, (_WIDEST * bandwidth).rsqrt(), 0)[..., None, None]
        scaled = (_centred(source, target) * scale).to(source.dtype)
        sign = torch.cat([source.new_full((n,), 1 / n), source.new_full((m,), -1 / m)])
        loss, pull = _pair_sums(scaled.reshape(-1, n + m, source.shape[-1]), sign)
        pull = pull.reshape(*scaled.shape[:-1], -1)
        gradient = -4 * sign[:, None] * (scaled * pull[..., -1:] - pull[..., :-1])
        ctx.n = n
        ctx.save_for_backward((gradient * scale).to(source.dtype))
        return loss.reshape(bandwidth.shape).to(source.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        both = upstream[..., None, None] * gradient
        return both[..., : ctx.n, :], both[..., ctx.n :, :], None


def _pair_sums(z: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over all pairs of rows, tile by tile.

    Parameters
    ----------
    z
        (members, rows, d) features in units of the widest kernel.
    sign
        (rows,) factor of each row in the loss.

    Returns
    -------
    loss, pull
        (members,) float64, and (members, rows, d + 1): the sum over q of
        u_q [z_q, 1] sum_i 2^i E_pq^(2^i), with E the widest kernel.
    """
    members, n, _ = z.shape
    pairs = _CPU_PAIRS if z.device.type == "cpu" else _GPU_PAIRS
    at_once, height = max(1, pairs // n**2), max(1, min(n, pairs // n))
    squares, one = z.square().sum(dim=-1, keepdim=True), z.new_ones(members, n, 1)
    # The product of a row of `left` and one of `right` is minus their squared distance.
    left = torch.cat([2 * z, -squares, one], dim=-1)
    right = torch.cat([z, one, -squares], dim=-1).mT
    signed = torch.cat([z, one], dim=-1) * sign[:, None]
    loss, pull = z.new_zeros(members, dtype=torch.float64), torch.zeros_like(signed)
    for begin in range(0, members, at_once):
        group = slice(begin, begin + at_once)
        for first in range(0, n, height):
            last = min(first + height, n)
            values, slopes = _kernels(left[group, first:last] @ right[group, :, first:])
            # Pairs right of the tile on the diagonal stand for their mirror images too.
            twice = sign[first:].clone()
            twice[last - first :] *= 2
            loss[group] += ((values @ twice) * sign[first:last]).sum(dim=-1, dtype=torch.float64)
            pull[group, first:last] += slopes @ signed[group, first:]
            pull[group, last:] += slopes[..., last - first :].mT @ signed[group, first:last]
    return loss, pull


def _kernels(exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum E^(2^i) and sum 2^i E^(2^i) of the widest kernel E, from its exponent (reused).

    Squaring a kernel halves its bandwidth, so one exponential makes all of them.
    """
    kernel = exponent.exp_()
    values, slopes = kernel.clone(), kernel.clone()
    for i in range(1, _KERNELS):
        kernel.mul_(kernel)
        values.add_(kernel)
        slopes.add_(kernel, alpha=2**i)
    return values, slopes
