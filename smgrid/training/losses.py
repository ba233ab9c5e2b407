"""What training makes small: errors against labels, gaps between domains, and sums of them.

Multi-scale domain adaptation (Zhu et al. 2025, J. Hydrology 657:133073) trains on three kinds of
samples: fine ones with a label, fine ones without (the target), and coarse ones with a label. The
batch goes through the network whole, in the order fine, target, coarse, so that batch statistics
mix the domains; the domain loss then compares the features of the fine and of the target rows, and
the coarse rows enter by their labels alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf, isfinite
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from smgrid.errors import ConfigError
from smgrid.models.densesm import DenseSM
from smgrid.training.discrepancy import Pairing, coral, linear_mmd, mmd
from smgrid.training.table import Samples

LabelLoss: TypeAlias = Literal["mse", "mape"]
DomainLoss: TypeAlias = Literal["coral", "mmd", "linear_mmd"]

LabelFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of prediction, label and weight."""
DomainFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Of source and target features."""

# The published training with two loaders divides the weight of the domain term by this.
_TWO_LOADER_DIVISOR = 2.5

# Rows that go through a network at a time; bounds the memory of its convolutions.
_ROWS = 8192

# A domain loss below this is rounding in float32, for features that end in a batch norm.
_LEAST_GAP = 1e-6

_F = TypeVar("_F")


def mean_squared_error(prediction: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of the squared error.

    Parameters
    ----------
    prediction
        (n,) or (members, n), m3 m-3.
    label
        The same, or (n,) for all members, m3 m-3. No NaN: it would spread to the loss.
    weight
        As ``label``, not negative; where all are 0, so are the loss and its gradient.

    Returns
    -------
    Tensor
        () or (members,), m6 m-6.

    Raises
    ------
    ConfigError
        The shapes do not go together.
    """
    _check_shapes(prediction, label, weight)
    return _weighted_mean((prediction - label).square(), weight)


def mean_absolute_percentage_error(
    prediction: Tensor, label: Tensor, weight: Tensor, *, floor: float = 0.0
) -> Tensor:
    """Return the weighted mean of the absolute error relative to the label, as a fraction.

    Parameters
    ----------
    prediction, label, weight
        As for `mean_squared_error`.
    floor
        Least denominator, m3 m-3. The published 0 lets the loss explode over dry soil, and makes it
        infinite or NaN where a label is 0; 0.01 guards against that.

    Returns
    -------
    Tensor
        () or (members,), 1; not multiplied by 100.

    Raises
    ------
    ConfigError
        The shapes do not go together.
    """
    _check_shapes(prediction, label, weight)
    return _weighted_mean((prediction - label).abs() / label.abs().clamp(min=floor), weight)


_DOMAIN_LOSSES = {"coral": coral, "mmd": mmd, "linear_mmd": linear_mmd}


def label_loss(name: LabelLoss, *, floor: float = 0.0) -> LabelFunction:
    """Look up a label loss.

    Parameters
    ----------
    name
        ``"mse"`` or ``"mape"``.
    floor
        Of `mean_absolute_percentage_error`.

    Raises
    ------
    ConfigError
        There is no such loss.
    """
    losses: dict[str, LabelFunction] = {
        "mse": mean_squared_error,
        "mape": partial(mean_absolute_percentage_error, floor=floor),
    }
    return _named(losses, name, "label")


def domain_loss(name: DomainLoss, *, pairing: Pairing = "all") -> DomainFunction:
    """Look up a domain loss.

    Parameters
    ----------
    name
        ``"coral"``, ``"mmd"`` or ``"linear_mmd"``; see `smgrid.training.discrepancy`.
    pairing
        Rows that are compared if the sets have different sizes; ``"shorter"`` is the published
        way.

    Raises
    ------
    ConfigError
        There is no such loss.
    """
    return partial(_named(_DOMAIN_LOSSES, name, "domain"), pairing=pairing)


class LossTerms(NamedTuple):
    """A joint loss and what it is made of; each () or (members,).

    Attributes
    ----------
    fine, coarse
        Label losses of the fine and of the coarse samples; ``coarse`` is None without these.
    domain
        Domain loss between fine and target features.
    total
        What is made small.
    """

    fine: Tensor
    coarse: Tensor | None
    domain: Tensor
    total: Tensor


def three_loader_loss(
    fine: Tensor, coarse: Tensor, *, domain: Tensor, alpha: float, beta: float | Tensor
) -> LossTerms:
    """Return alpha fine + (1 - alpha) coarse + beta domain.

    Eq. 3 of Zhu et al. (2025), J. Hydrology 657:133073.

    Parameters
    ----------
    fine, coarse
        Label losses, () or (members,).
    domain
        Domain loss between fine and target features, () or (members,).
    alpha
        Share of the fine labels, 0 to 1 (published 0.7).
    beta
        Weight of the domain term, one or one per member; see `automatic_beta`.
    """
    total = alpha * fine + (1 - alpha) * coarse + beta * domain
    return LossTerms(fine, coarse, domain, total)


def two_loader_loss(
    fine: Tensor, *, domain: Tensor, alpha: float, beta: float | Tensor
) -> LossTerms:
    """Return alpha fine + beta domain / 2.5, the published loss without coarse samples.

    Parameters
    ----------
    fine, domain, alpha, beta
        As for `three_loader_loss`.
    """
    return LossTerms(fine, None, domain, alpha * fine + beta * domain / _TWO_LOADER_DIVISOR)


def automatic_beta(
    network: DenseSM,
    source: Samples,
    target: Samples,
    *,
    alpha: float,
    label_loss: LabelFunction,
    domain_loss: DomainFunction,
    subsets: int = 50,
    seed: int = 0,
    subset_indices: Tensor | None = None,
) -> float:
    r"""Return the weight that makes the domain term as large as that of the fine labels.

    Eq. 4 of Zhu et al. (2025), J. Hydrology 657:133073, before training and in evaluation mode:
    :math:`\beta = \alpha L_{fine} / \overline{L_{domain}}`, the mean over random subsets of the
    target that are as large as the source.

    Parameters
    ----------
    network
        As training starts from it; left as it is, with its random state and modes.
    source
        Fine samples with labels.
    target
        Fine samples of the domain to adapt to; their labels are not looked at. If there are no
        more of them than of the source, all of them are the one subset.
    alpha
        Share of the fine labels in the joint loss.
    label_loss, domain_loss
        Those of the training, e.g. ``label_loss("mape", floor=0.01)`` and ``domain_loss("coral")``.
    subsets
        Number of subsets, each drawn without replacement.
    seed
        Of the generator that draws them.
    subset_indices
        (subsets, rows) positions in ``target`` to use instead of drawn ones.

    Raises
    ------
    ConfigError
        ``subsets`` is not positive, the label loss is not finite, or the domain loss is 0 up to
        rounding.
    """
    if subset_indices is None:
        subset_indices = _draw_subsets(len(source), len(target), subsets, seed)
    with _evaluation(network), torch.no_grad():
        features, others = _features(network, source), _features(network, target)
        prediction = network.out(features).squeeze(1)
        fine = label_loss(prediction, source.label.to(features), source.weight.to(features))
        domain = torch.stack(
            [domain_loss(features, others[i]) for i in subset_indices.to(others.device)]
        )
    return alpha * _ratio(float(fine), float(domain.double().mean()))


def _ratio(error: float, gap: float) -> float:
    if not (isfinite(error) and _LEAST_GAP < gap < inf):
        raise ConfigError(
            "beta = alpha * label loss / domain loss needs a finite label loss and a positive "
            f"domain loss, found {error:g} and {gap:g}. If the label loss is not finite, drop "
            "samples without label and give MAPE a floor above 0; if the domain loss is 0 but for "
            "rounding, source and target are the same to the network: give beta as a number, e.g. 0"
        )
    return error / gap


def _check_shapes(prediction: Tensor, label: Tensor, weight: Tensor) -> None:
    shapes = [tuple(t.shape) for t in (prediction, label, weight)]
    if any(s[-1:] != shapes[0][-1:] or len(s) > len(shapes[0]) for s in shapes) or not shapes[0]:
        raise ConfigError(
            "prediction, label and weight must be (n,) or (members, n) with one n, found "
            f"{', '.join(map(str, shapes))}; squeeze a last dimension of 1"
        )


def _weighted_mean(error: Tensor, weight: Tensor) -> Tensor:
    total = weight.to(error).expand_as(error).sum(dim=-1)
    # A batch may hold no sample that a member weighs at all: it then learns nothing from it.
    return (weight * error).sum(dim=-1) / total.clamp(min=torch.finfo(total.dtype).tiny)


def _named(losses: dict[str, _F], name: str, kind: str) -> _F:
    if name not in losses:
        raise ConfigError(f"{kind} loss: expected one of {', '.join(losses)}, found {name!r}")
    return losses[name]


def _draw_subsets(n_source: int, n_target: int, subsets: int, seed: int) -> Tensor:
    """(subsets, rows) positions; the whole target once if it is no larger than the source."""
    if subsets < 1:
        raise ConfigError(f"subsets: expected at least 1, found {subsets}")
    if n_target <= n_source:
        return torch.arange(n_target)[None]
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randperm(n_target, generator=generator)[:n_source] for _ in range(subsets)]
    return torch.stack(draws)


def _features(network: DenseSM, samples: Samples) -> Tensor:
    device = network.out.weight.device
    parts = (part.features.to(device) for part in samples.split(_ROWS))
    return torch.cat([network.features(x) for x in parts])


@contextmanager
def _evaluation(network: DenseSM) -> Iterator[None]:
    """Put a network in evaluation mode for a while; parts of it may have been there before."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
