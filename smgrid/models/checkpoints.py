"""Read folders of checkpoints in the form that DenseSM was published in.

Such files carry weights only. Which columns they expect is known for the published ones by their
hashes; for all others the user states it.
"""

import hashlib
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from smgrid.errors import BundleError
from smgrid.features.layout import FeatureLayout, get_layout
from smgrid.models.densesm import DenseSM, network_from_state
from smgrid.models.ensemble import Ensemble, join_ensembles
from smgrid.models.published import PUBLISHED_CARD, PUBLISHED_SHA256

_NAME = re.compile(r"(?P<stage>coarse|m)_(?P<depth>\d+)_(?P<width>\d+)(?:_ave)?")

# Folders of the published adaptation, such as a70_bauto_r0: what was set, and which repeat it is.
_REPEAT = re.compile(r"(?:(?P<setting>.+)_)?r(?P<number>\d+)")

_ZIP = b"PK\x03\x04"  # how every file of torch.save begins since PyTorch 1.6


class _Checkpoint(NamedTuple):
    depth: int
    width: int
    path: Path
    stage: str


def is_checkpoint_folder(folder: Path) -> bool:
    """Whether a folder holds ``.pt`` files."""
    return next(folder.glob("*.pt"), None) is not None


def has_repeats(folder: Path) -> bool:
    """Whether folders in a folder hold ``.pt`` files."""
    return any(is_checkpoint_folder(path) for path in _folders(folder))


def load_checkpoints(folder: Path, *, layout: FeatureLayout | None = None) -> Ensemble:
    """Load the checkpoints that lie directly in a folder, in the order of depth and width.

    Parameters
    ----------
    folder
        Holds ``coarse_<depth>_<width>.pt`` (pre-trained, ``_ave`` allowed) or
        ``m_<depth>_<width>.pt`` (fine-tuned), whatever other kinds of files lie beside them. The
        narrow, deep models of the published folder ``shallow`` are an ensemble of their own.
    layout
        The layout that the weights were trained on. Default: ``released-9km`` if every file is
        one of the published ones.

    Raises
    ------
    BundleError
        A file is damaged or no DenseSM, its name contradicts its weights, pre-trained and
        fine-tuned files are mixed, or no layout is known.
    """
    contents = [(checkpoint, checkpoint.path.read_bytes()) for checkpoint in _find(folder)]
    hashes = {c.path.name: hashlib.sha256(data).hexdigest() for c, data in contents}
    released = set(hashes.values()) <= set(PUBLISHED_SHA256.values())
    if layout is None:
        if not released:
            unknown = [n for n, h in hashes.items() if h not in PUBLISHED_SHA256.values()]
            raise BundleError(
                f"{folder.name}: {', '.join(unknown[:3])} is none of the published files, so the "
                "columns it expects are not known. State the layout it was trained on, e.g. "
                "layout='published'"
            )
        layout = get_layout("released-9km")
    members = [(c.path.stem, _read(c, data, layout)) for c, data in contents]
    card = PUBLISHED_CARD if released else {"title": "Checkpoints in the published form of DenseSM"}
    return Ensemble(tuple(members), layout, {**card, "files": hashes})


def load_repeats(folder: Path, *, layout: FeatureLayout | None = None) -> Ensemble:
    """Load the repeats of one fine-tuned ensemble as one, in the order of their numbers.

    Parameters
    ----------
    folder
        Holds ``<setting>_r<k>`` (such as ``a70_bauto_r0``), each a folder for `load_checkpoints`
        with the same members. Their names here are ``r<k>_m_<depth>_<width>``.
    layout
        As for `load_checkpoints`.

    Raises
    ------
    BundleError
        As for `load_checkpoints`; also for other folders among the repeats, for repeats of several
        settings, and for repeats that lack members of others.
    """
    repeats = _find_repeats(folder)
    members = {path.name: [c.path.stem for c in _find(path)] for path in repeats.values()}
    every = dict.fromkeys(name for names in members.values() for name in names)
    lacking = {
        repeat: [name for name in every if name not in names] for repeat, names in members.items()
    }
    found = [f"{repeat} lacks {', '.join(names)}" for repeat, names in lacking.items() if names]
    if found:
        raise BundleError(
            f"{folder.name}: expected repeats with the same members; {'; '.join(found)}. Complete "
            "them, or load the repeats one by one"
        )
    return join_ensembles(
        {key: load_checkpoints(path, layout=layout) for key, path in repeats.items()}
    )


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder; the hidden ones are of editors and systems."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _find_repeats(folder: Path) -> dict[str, Path]:
    """Return the folders of repeats by ``r<k>``, in the order of their numbers."""
    names = [path.name for path in _folders(folder)]
    matches = [match for name in names if (match := _REPEAT.fullmatch(name))]
    others = sorted(set(names) - {match.string for match in matches})
    if others:
        raise BundleError(
            f"{folder.name}: expected only folders of repeats, such as a70_bauto_r0, found "
            f"{', '.join(others)}. Move them out, or give the folder of one ensemble"
        )
    settings = sorted({match["setting"] or "" for match in matches})
    if len(settings) > 1:
        raise BundleError(
            f"{folder.name}: expected repeats of one setting, found {', '.join(settings)}. Keep "
            "them in folders of their own, they are different ensembles"
        )
    matches.sort(key=lambda match: int(match["number"]))
    return {f"r{match['number']}": folder / match.string for match in matches}


def _find(folder: Path) -> list[_Checkpoint]:
    found = []
    for path in folder.glob("*.pt"):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            raise BundleError(
                f"{path.name}: expected coarse_<depth>_<width>.pt or m_<depth>_<width>.pt. Rename "
                "it, or move it out of the folder"
            )
        found.append(_Checkpoint(int(match["depth"]), int(match["width"]), path, match["stage"]))
    if not found:
        raise BundleError(f"{folder.name}: no checkpoint (*.pt) in this folder")
    if len({checkpoint.stage for checkpoint in found}) > 1:
        raise BundleError(
            f"{folder.name}: pre-trained (coarse_*) and fine-tuned (m_*) checkpoints lie in one "
            "folder; keep them apart, they are different ensembles"
        )
    return sorted(found)


def _read(checkpoint: _Checkpoint, data: bytes, layout: FeatureLayout) -> DenseSM:
    name = checkpoint.path.name
    network = network_from_state(
        _unpickle(data, name),
        n_snapshot=len(layout.snapshot),
        n_series=len(layout.series),
        n_steps=layout.steps,
        where=name,
    )
    if (network.depth, network.width) != (checkpoint.depth, checkpoint.width):
        raise BundleError(
            f"{name}: the weights have depth {network.depth} and width {network.width}, the name "
            "says otherwise. Check where the file comes from"
        )
    return network


def _unpickle(data: bytes, name: str) -> dict[str, Any]:
    try:
        if not data.startswith(_ZIP):
            raise ValueError("it is no zip archive")
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise almost anything
        raise BundleError(
            f"{name}: not a file of PyTorch weights as torch.save writes it, or truncated; nothing "
            f"in it was executed. Copy it again from its origin ({error})"
        ) from error
    if not isinstance(state, dict):
        raise BundleError(f"{name}: expected a state dict, found {type(state).__name__}")
    return state
