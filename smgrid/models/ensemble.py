"""An ensemble of DenseSM networks as a value, and its plain member-by-member prediction.

The prediction here is the reference: it runs every member as it was trained. Maps use the compiled
form of `smgrid.inference.engine`, which is held against this one.
"""

import copy
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from smgrid.errors import BundleError, LayoutError
from smgrid.features.layout import FeatureLayout
from smgrid.models.applicability import Applicability
from smgrid.models.calibration import Calibration
from smgrid.models.densesm import DenseSM

FloatArray: TypeAlias = npt.NDArray[np.float32]

# Names of members become names of files.
_MEMBER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Origin:
    """Where an ensemble was loaded from, for processes that load it again."""

    path: str
    """Absolute path, or the name of a released ensemble."""
    layout: FeatureLayout | None
    """The layout that was given."""
    digest: str
    """Digest of what was loaded: an ensemble that was changed since has another one."""


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Trained networks with the layout they were trained on.

    The networks are copied, in evaluation mode: training on with the originals changes nothing
    here. Two ensembles are the same if their digests are.

    Attributes
    ----------
    members
        Distinct names and networks; predictions keep this order.
    layout
        Columns, scalings and conventions that the members were trained with.
    card
        What people should know, JSON-ready: origin, licence, ``training`` facts, ``metrics``.
    calibration
        How wide intervals around the mean have to be; `None` where nobody has found out, see
        `smgrid.training.uncertainty.calibrate`.
    applicability
        A summary of the training samples that tells pixels unlike them; `None` where there is none.
    origin
        Where it was loaded from; `None` for one that exists in memory only.
    """

    members: tuple[tuple[str, DenseSM], ...]
    layout: FeatureLayout
    card: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    applicability: Applicability | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        names = [name for name, _ in self.members]
        bad = [name for name in names if not _MEMBER_NAME.fullmatch(name)]
        if not names or bad or len(set(names)) < len(names):
            raise BundleError(
                "an ensemble needs members with distinct names of letters, digits, '_', '-' and "
                f"'.', got {names}"
            )
        for name, network in self.members:
            _check_fit(name, network, self.layout)
        members = tuple((name, copy.deepcopy(network).eval()) for name, network in self.members)
        object.__setattr__(self, "members", members)
        object.__setattr__(self, "card", copy.deepcopy(dict(self.card)))
        if self.applicability is not None:
            _check_summary(len(self.applicability.low), self.layout)
        if self.calibration is not None and self.calibration.ensemble != self.digest:
            raise BundleError(
                f"the calibration is that of another ensemble ({self.calibration.ensemble[:12]}, "
                f"not {self.digest[:12]}): members, order and layout decide on the errors. "
                "Calibrate again, or set calibration=None"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the members."""
        return tuple(name for name, _ in self.members)

    @cached_property
    def digest(self) -> str:
        """sha256 of layout, names and weights; card, calibration and the like are no part."""
        digest = hashlib.sha256(self.layout.digest.encode())
        for name, network in self.members:
            for key, tensor in network.state_dict().items():
                digest.update(f"{name}/{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def join_ensembles(ensembles: Mapping[str, Ensemble]) -> Ensemble:
    """Return the members of several ensembles as one, such as repeats with different seeds.

    Parameters
    ----------
    ensembles
        Ensembles of one layout by a key. Members are called ``<key>_<member>``.

    Returns
    -------
    Ensemble
        All members in the order of the mapping. The card holds those of the parts by their keys
        under ``joined``, and the title if they share one. It has neither calibration nor
        applicability: errors and spread are others than those of the parts, which may have learned
        from different samples. Use `smgrid.training.uncertainty.calibrate` and
        `smgrid.training.uncertainty.summarise_training`.

    Raises
    ------
    LayoutError
        The layouts differ.
    BundleError
        Nothing to join, or the keys make no distinct names.
    """
    layouts = {key: ensemble.layout for key, ensemble in ensembles.items()}
    if not layouts:
        raise BundleError("there is no ensemble to join; give at least one")
    if len({layout.digest for layout in layouts.values()}) > 1:
        found = ", ".join(f"{k}: {v.name!r} ({v.digest[:12]})" for k, v in layouts.items())
        raise LayoutError(
            f"only ensembles of one layout can be joined, found {found}. Train them on the same "
            "layout, or map each on its own"
        )
    titles = [ensemble.card.get("title") for ensemble in ensembles.values()]
    shared = titles[0] is not None and all(title == titles[0] for title in titles)
    members = tuple(
        (f"{key}_{name}", network)
        for key, ensemble in ensembles.items()
        for name, network in ensemble.members
    )
    card = {
        **({"title": titles[0]} if shared else {}),
        "joined": {key: dict(ensemble.card) for key, ensemble in ensembles.items()},
    }
    return Ensemble(members, next(iter(layouts.values())), card)


def predict_samples(
    ensemble: Ensemble, x: FloatArray | torch.Tensor, *, batch: int = 1024
) -> FloatArray:
    """Predict every member on plain arrays.

    Parameters
    ----------
    ensemble
        The networks.
    x
        (n, columns) scaled vectors in the columns of ``ensemble.layout``.
    batch
        Rows that go through a network at once.

    Returns
    -------
    array
        (members, n) in m3 m-3; NaN for a row with any value that is not finite.

    Raises
    ------
    LayoutError
        ``x`` does not have the layout's columns.
    """
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[1] != ensemble.layout.n_columns:
        raise LayoutError(
            f"expected (n, {ensemble.layout.n_columns}) columns of the layout "
            f"{ensemble.layout.name!r}, got an array of shape {x.shape}"
        )
    predictions = np.full((len(ensemble.members), len(x)), np.nan, np.float32)
    complete = np.flatnonzero(np.isfinite(x).all(axis=1))
    with torch.inference_mode():
        for start in range(0, len(complete), batch):
            rows = complete[start : start + batch]
            block = torch.from_numpy(np.ascontiguousarray(x[rows], np.float32))
            for i, (_, network) in enumerate(ensemble.members):
                predictions[i, rows] = network(block).numpy()
    return predictions


def mean_and_std(samples: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the unweighted mean and the spread of (members, n) predictions.

    The spread is the population form: the standard deviation of the members' equally weighted
    mixture (Lakshminarayanan, Pritzel and Blundell 2017, Adv. Neural Inf. Process. Syst. 30).
    """
    return samples.mean(axis=0), samples.std(axis=0)


def _check_summary(features: int, layout: FeatureLayout) -> None:
    expected = len(layout.snapshot) + 2 * len(layout.series)
    if features != expected:
        raise LayoutError(
            f"the training summary is of {features} features, the layout {layout.name!r} gives "
            f"{expected}; summarise samples of this layout"
        )


def _check_fit(name: str, network: DenseSM, layout: FeatureLayout) -> None:
    sizes = (network.n_snapshot, network.n_series, network.n_steps)
    expected = (len(layout.snapshot), len(layout.series), layout.steps)
    if sizes != expected:
        raise LayoutError(
            f"member {name!r} takes {sizes[0]} snapshot columns and {sizes[1]} series of "
            f"{sizes[2]} steps; the layout {layout.name!r} has {expected[0]}, {expected[1]} and "
            f"{expected[2]}"
        )
