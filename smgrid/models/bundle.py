"""The model bundle: a folder with weights, layout and card, written at once or not at all.

Calibration and applicability, if the ensemble has them, lie beside the weights; the card says so.
"""

import hashlib
import json
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import safetensors.numpy
import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from smgrid import __version__
from smgrid.errors import BundleError, LayoutError
from smgrid.features.layout import FeatureLayout, LayoutName, get_layout
from smgrid.models.applicability import Applicability
from smgrid.models.calibration import Calibration
from smgrid.models.checkpoints import (
    has_repeats,
    is_checkpoint_folder,
    load_checkpoints,
    load_repeats,
)
from smgrid.models.densesm import DenseSM, network_from_state
from smgrid.models.ensemble import Ensemble, Origin
from smgrid.models.published import PUBLISHED_NAME, published_folder

# 1: weights, layout and card. 2: calibration and applicability beside them, if there are any.
BUNDLE_FORMAT = 2
CARD_NAME = "card.json"
CALIBRATION_NAME: Final = "calibration.json"
APPLICABILITY_NAME: Final = "applicability.safetensors"

_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Member(BaseModel):
    """One line of the card per member; the file is ``<name>.safetensors``."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    depth: int
    width: int
    sha256: _Sha256

    @property
    def file(self) -> str:
        return f"{self.name}.safetensors"


class _Card(BaseModel):
    """What ``card.json`` holds."""

    model_config = ConfigDict(extra="forbid")

    smgrid_bundle: int
    smgrid_version: str
    network: Literal["densesm"]
    digest: _Sha256
    layout: dict[str, Any]
    members: list[_Member]
    files: dict[Literal["calibration.json", "applicability.safetensors"], _Sha256] = {}
    """Of what comes with the weights."""
    card: dict[str, Any]


def save_ensemble(ensemble: Ensemble, path: Path | str) -> Path:
    """Write an ensemble as a bundle.

    Parameters
    ----------
    ensemble
        The ensemble; its card must be JSON-ready and free of NaN.
    path
        Folder to make. It appears complete or not at all.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    BundleError
        The path is taken by a file or a folder that is not empty, or the card is not JSON-ready.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and next(path.iterdir(), None) is None):
        raise BundleError(f"{path} exists already and is not empty; choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex}.partial"
    partial.mkdir()
    try:
        _write(ensemble, partial)
        if path.exists():
            path.rmdir()
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial)
        raise
    return path


def load_ensemble(
    name_or_path: Path | str, *, layout: FeatureLayout | LayoutName | None = None
) -> Ensemble:
    """Load an ensemble by name, from a bundle, or from checkpoints in the published form.

    Parameters
    ----------
    name_or_path
        ``"densesm-9km"`` for the released weights (see
        `smgrid.models.published.published_folder`), else a folder: a bundle; checkpoints, such as
        ``a70_bauto_r0`` with ``m_<depth>_<width>.pt``; or several such repeats
        (``a70_bauto_r0``, ``a70_bauto_r1``, ...), which become one ensemble with members
        ``r0_m_1_8``, ... in the order of the repeats.
    layout
        For checkpoints: the layout they were trained on, if they are not the published ones. A
        bundle has its own; giving another is refused.

    Raises
    ------
    BundleError
        Nothing of that name, or the files are damaged, incomplete, of a newer format, or come
        without a layout; or repeats have different members, or other folders beside them.
    """
    wanted = get_layout(layout) if isinstance(layout, str) else layout
    ensemble = _load(name_or_path, wanted)
    is_name = name_or_path == PUBLISHED_NAME
    path = PUBLISHED_NAME if is_name else str(Path(name_or_path).resolve())
    return replace(ensemble, origin=Origin(path, wanted, ensemble.digest))


def _load(name_or_path: Path | str, wanted: FeatureLayout | None) -> Ensemble:
    if name_or_path == PUBLISHED_NAME:
        return load_checkpoints(published_folder(), layout=wanted)
    folder = Path(name_or_path)
    if not folder.is_dir():
        raise BundleError(
            f"{name_or_path} is neither a folder nor a known ensemble ({PUBLISHED_NAME})"
        )
    if (folder / CARD_NAME).exists():
        return _load_bundle(folder, wanted)
    if is_checkpoint_folder(folder):
        return load_checkpoints(folder, layout=wanted)
    if has_repeats(folder):
        return load_repeats(folder, layout=wanted)
    raise BundleError(
        f"{folder} is no bundle of smgrid: it has no {CARD_NAME}. Nor does it hold checkpoints "
        "(*.pt), or folders of repeats that do, such as a70_bauto_r0"
    )


def _write(ensemble: Ensemble, folder: Path) -> None:
    members = []
    for name, network in ensemble.members:
        state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
        data = safetensors.torch.save(state)
        sha256 = hashlib.sha256(data).hexdigest()
        member = _Member(name=name, depth=network.depth, width=network.width, sha256=sha256)
        (folder / member.file).write_bytes(data)
        members.append(member)
    card = _Card(
        smgrid_bundle=BUNDLE_FORMAT,
        smgrid_version=__version__,
        network="densesm",
        digest=ensemble.digest,
        layout=ensemble.layout.to_dict(),
        members=members,
        files=_write_extras(ensemble, folder),
        card=dict(ensemble.card),
    )
    (folder / CARD_NAME).write_text(_to_json("card", card.model_dump()), encoding="utf-8")


def _write_extras(ensemble: Ensemble, folder: Path) -> dict[Any, str]:
    """Write what an ensemble has beside its weights; returns the hashes by file."""
    found = {}
    if ensemble.calibration is not None:
        text = _to_json("calibration", ensemble.calibration.to_dict())
        found[CALIBRATION_NAME] = text.encode()
    if ensemble.applicability is not None:
        found[APPLICABILITY_NAME] = safetensors.numpy.save(ensemble.applicability.to_arrays())
    for name, data in found.items():
        (folder / name).write_bytes(data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def _to_json(what: str, value: Any) -> str:
    try:
        return json.dumps(value, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"the {what} of the ensemble must hold JSON values and no NaN: {error}"
        ) from error


def _load_bundle(folder: Path, wanted: FeatureLayout | None) -> Ensemble:
    card = _read_card(folder)
    try:
        layout = FeatureLayout.from_dict(card.layout)
    except LayoutError as error:
        raise BundleError(f"{folder / CARD_NAME}: {error}") from error
    if wanted is not None and wanted != layout:
        raise BundleError(
            f"{folder} was trained on the layout {layout.name!r} ({layout.digest[:12]}), not on "
            f"{wanted.name!r} ({wanted.digest[:12]}). Leave the layout out"
        )
    members = tuple((m.name, _read_member(folder, m, layout)) for m in card.members)
    ensemble = Ensemble(
        members,
        layout,
        card.card,
        calibration=_read_calibration(folder, card),
        applicability=_read_applicability(folder, card),
    )
    if ensemble.digest != card.digest:
        raise BundleError(
            f"{folder / CARD_NAME} was changed: layout and weights have the digest "
            f"{ensemble.digest}, the card says {card.digest}. Restore the bundle"
        )
    return ensemble


def _read_card(folder: Path) -> _Card:
    path = folder / CARD_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is damaged, it is not JSON: {error}") from error
    version = raw.get("smgrid_bundle") if isinstance(raw, dict) else None
    if not isinstance(version, int):
        raise BundleError(f"{path} is no card of smgrid: it does not state smgrid_bundle")
    if version > BUNDLE_FORMAT:
        raise BundleError(
            f"{path} has bundle format {version}, this smgrid reads up to {BUNDLE_FORMAT}. Update "
            "smgrid"
        )
    if "layout" not in raw:
        raise BundleError(
            f"{path} has no layout: without the columns they were trained on, weights mean nothing"
        )
    try:
        return _Card.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BundleError(f"{path} is damaged: {faults}") from error


def _read_member(folder: Path, member: _Member, layout: FeatureLayout) -> DenseSM:
    path = folder / member.file
    try:
        state = safetensors.torch.load(_read_file(path, member.sha256))
    except SafetensorError as error:
        raise BundleError(f"{path} is no safetensors file: {error}") from error
    network = network_from_state(
        state,
        n_snapshot=len(layout.snapshot),
        n_series=len(layout.series),
        n_steps=layout.steps,
        where=member.file,
    )
    if (network.depth, network.width) != (member.depth, member.width):
        raise BundleError(
            f"{path} has depth {network.depth} and width {network.width}, the card says "
            f"{member.depth} and {member.width}"
        )
    return network


def _read_calibration(folder: Path, card: _Card) -> Calibration | None:
    path, sha256 = folder / CALIBRATION_NAME, card.files.get(CALIBRATION_NAME)
    if sha256 is None:
        return None
    data = _read_file(path, sha256)
    try:
        return Calibration.from_dict(json.loads(data))
    except ValueError as error:  # no JSON, or a BundleError
        raise BundleError(f"{path} is damaged: {error}") from error


def _read_applicability(folder: Path, card: _Card) -> Applicability | None:
    path, sha256 = folder / APPLICABILITY_NAME, card.files.get(APPLICABILITY_NAME)
    if sha256 is None:
        return None
    data = _read_file(path, sha256)
    try:
        return Applicability.from_arrays(safetensors.numpy.load(data))
    except (SafetensorError, BundleError) as error:
        raise BundleError(f"{path} is damaged: {error}") from error


def _read_file(path: Path, sha256: str) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{path.parent} is incomplete: {path.name} is missing") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise BundleError(
            f"{path} is truncated or was changed ({len(data)} bytes): sha256 {found}, the card "
            f"says {sha256}. Copy the bundle again"
        )
    return data
