import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from smgrid import __version__
from smgrid.errors import BundleError
from smgrid.models.bundle import load_ensemble, save_ensemble
from smgrid.models.ensemble import join_ensembles, predict_samples
from tests.models.uncertainties import make_applicability, make_calibration
from tests.networks import make_ensemble

CARD = {"training": {"seed": 7, "epochs": 2}, "metrics": {"rmse": 0.04}}


@pytest.fixture
def bundle(tmp_path):
    return save_ensemble(make_ensemble(card=CARD), tmp_path / "model")


def complete():
    plain = make_ensemble(card=CARD)
    calibration = make_calibration(ensemble=plain.digest)
    return replace(plain, calibration=calibration, applicability=make_applicability())


@pytest.fixture
def full(tmp_path):
    return save_ensemble(complete(), tmp_path / "full")


def edit_card(bundle, **changes):
    path = bundle / "card.json"
    card = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del card[key]
        else:
            card[key] = value
    path.write_text(json.dumps(card))


def test_bundle_round_trips(bundle):
    ensemble, loaded = make_ensemble(card=CARD), load_ensemble(bundle)
    assert loaded.names == ensemble.names
    assert loaded.layout == ensemble.layout
    assert loaded.card == CARD
    assert loaded.digest == ensemble.digest
    x = np.random.default_rng(0).random((5, 153), dtype=np.float32)
    np.testing.assert_array_equal(predict_samples(loaded, x), predict_samples(ensemble, x))
    assert load_ensemble(str(bundle), layout="released-9km").digest == ensemble.digest


def test_calibration_and_applicability_round_trip(full):
    ensemble, loaded = complete(), load_ensemble(full)
    assert loaded.digest == make_ensemble().digest
    assert loaded.calibration == ensemble.calibration
    for name, array in ensemble.applicability.to_arrays().items():
        np.testing.assert_array_equal(loaded.applicability.to_arrays()[name], array)
    assert type(loaded.applicability.rows) is int
    files = json.loads((full / "card.json").read_text())["files"]
    assert files == {
        name: hashlib.sha256((full / name).read_bytes()).hexdigest()
        for name in ("calibration.json", "applicability.safetensors")
    }


@pytest.mark.parametrize("name", ["calibration.json", "applicability.safetensors"])
def test_damaged_or_missing_files_beside_the_weights_are_refused(full, name):
    data = (full / name).read_bytes()
    (full / name).write_bytes(data[:-9])
    with pytest.raises(BundleError, match=f"{name} is truncated or was changed"):
        load_ensemble(full)
    digest = hashlib.sha256(data[:-9]).hexdigest()
    files = json.loads((full / "card.json").read_text())["files"]
    edit_card(full, files=files | {name: digest})
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        load_ensemble(full)
    (full / name).unlink()
    with pytest.raises(BundleError, match=f"incomplete: {name} is missing"):
        load_ensemble(full)


def test_a_calibration_that_makes_no_sense_is_refused(full):
    plain = json.loads((full / "calibration.json").read_text())
    data = json.dumps(plain | {"scores": [2.0, 1.0]}).encode()
    (full / "calibration.json").write_bytes(data)
    files = json.loads((full / "card.json").read_text())["files"]
    edit_card(full, files=files | {"calibration.json": hashlib.sha256(data).hexdigest()})
    with pytest.raises(BundleError, match=r"calibration\.json is damaged.*must not decrease"):
        load_ensemble(full)


def test_bundles_of_the_first_format_load(bundle):
    edit_card(bundle, smgrid_bundle=1, files=None)
    loaded = load_ensemble(bundle)
    assert loaded.digest == make_ensemble().digest
    assert loaded.calibration is None
    assert loaded.applicability is None


def test_a_file_that_the_format_does_not_know_is_refused(bundle):
    edit_card(bundle, files={"../secret": "0" * 64})
    with pytest.raises(BundleError, match=r"card\.json is damaged: files"):
        load_ensemble(bundle)


def test_joined_ensemble_round_trips(tmp_path):
    joined = join_ensembles({"r0": make_ensemble(card=CARD), "r1": make_ensemble(card=CARD)})
    loaded = load_ensemble(save_ensemble(joined, tmp_path / "model"))
    assert loaded.digest == joined.digest
    assert loaded.card == {"joined": {"r0": CARD, "r1": CARD}}


def test_card_says_what_is_inside(bundle):
    card = json.loads((bundle / "card.json").read_text())
    assert card["smgrid_bundle"] == 2
    assert card["files"] == {}
    assert card["smgrid_version"] == __version__
    assert card["layout"]["name"] == "released-9km"
    assert [(m["name"], m["depth"], m["width"]) for m in card["members"]] == [
        ("m_2_4", 2, 4),
        ("m_1_4", 1, 4),
        ("m_3_6", 3, 6),
    ]
    assert card["card"] == CARD
    files = {p.name for p in bundle.iterdir()}
    assert files == {"card.json", *(f"{m['name']}.safetensors" for m in card["members"])}


def test_window_rule_is_kept(tmp_path):
    ensemble = make_ensemble()
    layout = ensemble.layout.with_window("published")
    saved = save_ensemble(type(ensemble)(ensemble.members, layout), tmp_path / "model")
    assert load_ensemble(saved).layout.window == "published"


def test_saving_takes_an_empty_folder_and_refuses_a_full_one(bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    save_ensemble(make_ensemble(), tmp_path / "empty")
    assert load_ensemble(tmp_path / "empty").names
    before = (bundle / "card.json").read_bytes()
    with pytest.raises(BundleError, match="exists already and is not empty"):
        save_ensemble(make_ensemble(), bundle)
    assert (bundle / "card.json").read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="exists already"):
        save_ensemble(make_ensemble(), tmp_path / "file")


@pytest.mark.parametrize("card", [{"rmse": float("nan")}, {"network": object()}])
def test_card_that_is_no_json_leaves_nothing_behind(card, tmp_path):
    with pytest.raises(BundleError, match="must hold JSON values and no NaN"):
        save_ensemble(make_ensemble(card=card), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_bundle_without_layout_is_refused(bundle):
    edit_card(bundle, layout=None)
    with pytest.raises(BundleError, match="no layout"):
        load_ensemble(bundle)


def test_bad_layout_is_refused(bundle):
    edit_card(bundle, layout={"name": "mine"})
    with pytest.raises(BundleError, match=r"card\.json: the description of a layout is not valid"):
        load_ensemble(bundle)


def test_another_layout_is_refused(bundle):
    with pytest.raises(BundleError, match=r"'released-9km'.*not on 'published'"):
        load_ensemble(bundle, layout="published")


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b[:-1] + b"\x01", lambda b: b""])
def test_truncated_or_changed_member_is_refused(bundle, damage):
    path = bundle / "m_1_4.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleError, match=r"m_1_4\.safetensors is truncated or was changed"):
        load_ensemble(bundle)


def test_wrong_hash_in_the_card_is_refused(bundle):
    members = json.loads((bundle / "card.json").read_text())["members"]
    members[0]["sha256"] = "0" * 64
    edit_card(bundle, members=members)
    with pytest.raises(BundleError, match="sha256"):
        load_ensemble(bundle)


def test_missing_member_is_refused(bundle):
    (bundle / "m_3_6.safetensors").unlink()
    with pytest.raises(BundleError, match=r"incomplete: m_3_6\.safetensors is missing"):
        load_ensemble(bundle)


def test_dropping_a_member_from_the_card_is_noticed(bundle):
    members = json.loads((bundle / "card.json").read_text())["members"]
    edit_card(bundle, members=members[1:])
    with pytest.raises(BundleError, match="was changed"):
        load_ensemble(bundle)


def test_editing_the_layout_is_noticed(bundle):
    layout = json.loads((bundle / "card.json").read_text())["layout"]
    edit_card(bundle, layout=layout | {"window": "published"})
    with pytest.raises(BundleError, match="was changed"):
        load_ensemble(bundle)


def test_newer_format_is_refused(bundle):
    edit_card(bundle, smgrid_bundle=3, unheard_of={})
    with pytest.raises(BundleError, match="bundle format 3, this smgrid reads up to 2"):
        load_ensemble(bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"smgrid_bundle": 1', "is not JSON"),
        ("[]", "no card of smgrid"),
        ('{"title": "x"}', "no card of smgrid"),
        ('{"smgrid_bundle": 1, "layout": {}}', "digest: Field required"),
    ],
)
def test_damaged_card_is_refused(bundle, text, message):
    (bundle / "card.json").write_text(text)
    with pytest.raises(BundleError, match=message):
        load_ensemble(bundle)


def test_member_name_cannot_leave_the_folder(bundle):
    members = json.loads((bundle / "card.json").read_text())["members"]
    members[0]["name"] = "../m_2_4"
    edit_card(bundle, members=members)
    with pytest.raises(BundleError, match=r"members\.0\.name"):
        load_ensemble(bundle)


def test_weights_of_another_network_are_refused(bundle):
    data = safetensors.torch.save({"weight": torch.zeros(3)})
    (bundle / "m_1_4.safetensors").write_bytes(data)
    members = json.loads((bundle / "card.json").read_text())["members"]
    members[1]["sha256"] = hashlib.sha256(data).hexdigest()
    edit_card(bundle, members=members)
    with pytest.raises(BundleError, match="no dense block"):
        load_ensemble(bundle)


def test_unknown_name_and_foreign_folder_are_refused(tmp_path):
    with pytest.raises(BundleError, match=r"neither a folder nor a known ensemble \(densesm-9km\)"):
        load_ensemble("densesm-1km")
    (tmp_path / "n_5" / "a70_bauto_r0").mkdir(parents=True)
    with pytest.raises(
        BundleError, match=r"no bundle of smgrid: it has no card\.json.*\(\*\.pt\), or folders"
    ):
        load_ensemble(tmp_path)
