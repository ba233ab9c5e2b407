"""How networks are trained: frozen plans, recorded in the card of the ensemble that they make."""

from dataclasses import dataclass, replace
from math import isfinite
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from smgrid.errors import ConfigError
from smgrid.training.losses import DomainLoss, LabelLoss
from smgrid.yamltext import suggest

Sizes: TypeAlias = tuple[tuple[int, int], ...]
"""(depth, width) of each member."""

PUBLISHED_SIZES: Sizes = tuple(
    (depth, width) for depth in range(1, 6) for width in (8, 16, 32, 64, 128)
)
"""The 25 members of DenseSM-E (Zhu et al. 2024, Remote Sens. Environ. 301:113944)."""

SMALL_SIZES: Sizes = ((1, 16), (1, 32), (2, 16), (2, 32), (3, 16))
"""For some thousand samples of some dozen stations."""


@dataclass(frozen=True)
class FitPlan:
    """How members learn from labels.

    The defaults suit few stations seen on few dates: the newest steps of the series matter most,
    the series are scaled by their own spread, a member is the running mean of its weights and sees
    its own draw of places, so that the spread of the ensemble tells what the choice of places does.

    Attributes
    ----------
    epochs
        Passes over the training samples at most.
    patience
        Epochs without a better validation error after which a member keeps what it has; training
        ends when that holds for all. ``None``: never.
    keep
        ``"best"``: each member as it was at its best validation error. ``"last"``: as it was at the
        end, so that without patience validation samples only watch.
    batch_size
        Samples per step.
    learning_rate, weight_decay
        Of the optimiser.
    optimiser
        ``"adam"`` adds the decay to the gradient (Kingma and Ba 2015), ``"adamw"`` to the step
        (Loshchilov and Hutter 2019).
    schedule
        Of the learning rate: ``"constant"``, or ``"cosine"``: falls to 0 along half a cosine.
    label_loss, label_floor
        ``"mse"``, or ``"mape"`` with the least label to divide by [m3 m-3].
    dropout
        Share of the activations of the series branch that a step silences.
    average
        What the ensemble and validation use. ``"none"``: the weights; ``"exponential"``: their
        running mean, of which each step keeps ``averaging``, the first ones less; ``"epochs"``: the
        plain mean of the weights at the end of each epoch from ``average_from`` on, which counts
        from 0 (until then the weights). Statistics of batch norms are averaged alike.
    places
        ``"drawn"``: each member gives each place the weight of how often it comes when as many
        places as there are are drawn with replacement (bagging: Breiman 1996, Mach. Learn. 24:123);
        ``"all"``: the same for all.
    first_taps
        Factors on the taps of the random kernels of the series branch before training, oldest
        first. Edge replication lets the last tap carry the newest steps through every pooling.
    series
        ``"spread"``: members learn from series of mean 0 and spread 1, and the scaling becomes part
        of their first kernels; ``"plain"``: from the series as they are.
    frozen
        ``"series"``: the series branch stays as it is, in evaluation mode, and is run once per
        distinct series; ``"nothing"``.
    precision
        ``"float32"``; on CUDA also ``"tf32"``, or ``"bfloat16"`` for the dense part, which cost
        accuracy.
    seed
        Of the initial weights, the draw of places, the order of samples and dropout.
    """

    epochs: int = 14
    patience: int | None = None
    keep: Literal["best", "last"] = "best"
    batch_size: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    optimiser: Literal["adam", "adamw"] = "adamw"
    schedule: Literal["constant", "cosine"] = "cosine"
    label_loss: LabelLoss = "mse"
    label_floor: float = 0.0
    dropout: float = 0.1
    average: Literal["none", "exponential", "epochs"] = "exponential"
    averaging: float = 0.99
    average_from: int = 0
    places: Literal["all", "drawn"] = "drawn"
    first_taps: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.1, 2.0)
    series: Literal["plain", "spread"] = "spread"
    frozen: Literal["nothing", "series"] = "nothing"
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_types(self)
        patience = 1 if self.patience is None else self.patience
        counts = self.epochs >= 1 and patience >= 1 and self.batch_size >= 2
        shares = 0 <= self.dropout < 1 and 0 <= self.averaging < 1 and self.learning_rate > 0
        positive = min(self.weight_decay, self.label_floor, self.average_from, self.seed) >= 0
        if not (counts and shares and positive and len(self.first_taps) == 5):
            raise ConfigError(
                "a plan needs at least 1 epoch, a patience of 1, batches of 2, a positive learning "
                "rate, dropout and averaging in 0-1, without 1, five first_taps, and nothing "
                f"negative; found {self}"
            )
        if self.average == "epochs" and self.average_from >= self.epochs:
            raise ConfigError(
                f"average_from is {self.average_from}, but there are {self.epochs} epochs, counted "
                "from 0: no weights would be averaged; lower it, or take average='none'"
            )


def _check_types(plan: Any) -> None:
    """Bring every field to the type that it is declared with, or raise ConfigError."""
    for name, hint in get_type_hints(type(plan)).items():
        object.__setattr__(plan, name, _checked(name, getattr(plan, name), hint))


def _checked(name: str, value: Any, hint: Any) -> Any:
    options = (
        get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)
    )
    words = [word for one in options if get_origin(one) is Literal for word in get_args(one)]
    if (isinstance(value, str) and value in words) or (value is None and NoneType in options):
        return value
    number = isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
    if number and float in options:
        return float(value)
    if number and int in options and isinstance(value, Integral):
        return int(value)
    if get_origin(hint) is tuple and isinstance(value, (tuple, list)):
        return tuple(_checked(name, one, float) for one in value)
    if words and isinstance(value, str):
        raise ConfigError(f"{name}: {value!r} is unknown; {suggest(value, words)}")
    kinds = [word for word, kind in _KINDS.items() if kind in options]
    wanted = ", ".join([*map(repr, words), *kinds]) or "five finite numbers"
    raise ConfigError(f"{name}: expected {wanted}, found {value!r}")


_KINDS = {"a finite number": float, "a whole number": int, "nothing": NoneType}


PRETRAINING = replace(
    FitPlan(),
    epochs=25,
    keep="last",
    batch_size=256,
    average="epochs",
    average_from=20,
    places="all",
)
"""For coarse labels. Chosen, as `ADAPTATION`, on a simulated world (benchmarks/adaptation.py), on
which it leaves less error than the published plan, on coarse and on fine scale."""

ADAPTATION = FitPlan(
    epochs=20,
    keep="last",
    batch_size=128,
    learning_rate=5e-4,
    weight_decay=0.0,
    optimiser="adam",
    schedule="constant",
    dropout=0.1,
    average="epochs",
    average_from=15,
    places="all",
    first_taps=(1.0, 1.0, 1.0, 1.0, 1.0),
    series="plain",
)
"""For the labels of the fine scale. Compared with the published plan: less dropout, fewer epochs,
and squared errors, so that dry soil does not outweigh the rest."""

PUBLISHED_PRETRAINING = replace(
    ADAPTATION, epochs=100, batch_size=256, dropout=0.5, average_from=90
)
"""As the released 9 km weights seem to have been made: their batch counters and histories tell the
epochs, the size of the batches and the mean of the last ten; the learning rate is that of the
published adaptation."""

PUBLISHED_ADAPTATION = replace(
    ADAPTATION, epochs=50, dropout=0.5, average_from=40, label_loss="mape"
)
"""The published adaptation to fine scale (Zhu et al. 2025, J. Hydrol. 657:133073); with
``MSDA(batch_norm="joint")`` for parity."""


@dataclass(frozen=True)
class MSDA:
    """Multi-scale domain adaptation: what joins the labels of the fine scale (ibid.).

    Attributes
    ----------
    alpha
        Weight of the fine labels; the coarse ones, if there are any, weigh ``1 - alpha``.
    beta
        Weight of the distance between the features of labelled and of unlabelled samples;
        ``"auto"`` makes both terms equal before training (eq. 4), for each member.
    domain_loss
        That distance: ``"coral"``, ``"mmd"`` or ``"linear_mmd"``.
    batch_norm
        ``"target"`` (default): each domain is normalised by its own statistics, and those of the
        unlabelled samples, which maps are like, enter the running ones (as in Li et al. 2018,
        Pattern Recognit. 80:109); without unlabelled samples those of the fine ones.
        ``"separate"``: the same, but statistics of the fine samples enter as well. ``"joint"``, as
        published: the domains go through the network together, and batch norms mix their
        statistics, coarse cells among those that maps are normalised by later. ``"frozen"``: all
        are normalised by the running statistics of the pre-trained network, which stay. A series
        branch that is frozen keeps its statistics in any case.
    ratio
        Unlabelled and coarse samples in a step per labelled fine one.
    """

    alpha: float = 0.7
    beta: float | Literal["auto"] = "auto"
    domain_loss: DomainLoss = "coral"
    batch_norm: Literal["target", "separate", "joint", "frozen"] = "target"
    ratio: int = 1

    def __post_init__(self) -> None:
        _check_types(self)
        beta = 0.0 if isinstance(self.beta, str) else self.beta
        if not (0 < self.alpha <= 1 and self.ratio >= 1 and 0 <= beta < float("inf")):
            raise ConfigError(
                "adaptation needs alpha in 0-1 (without 0), beta 'auto' or at least 0 and a ratio "
                f"of at least 1; found {self}"
            )
