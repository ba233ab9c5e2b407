import pickle

import numpy as np
import pytest
import torch

from smgrid.errors import BundleError
from smgrid.models.bundle import load_ensemble
from smgrid.models.ensemble import mean_and_std, predict_samples
from tests.networks import make_network


class Bomb:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "reference" / "golden" / "densesm_golden.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def released(shared):
    return load_ensemble(shared / "data" / "densesm_9km")


def plain_form(network):
    return network.state_dict()


def split_form(network):
    """As fine-tuned files are: features and output apart, everything an average in float32."""
    return {
        (f"mv.{key.removeprefix('out.')}" if key.startswith("out.") else f"fe.{key}"): (
            torch.tensor(128829.5) if key.endswith("num_batches_tracked") else value.float()
        )
        for key, value in network.state_dict().items()
    }


def prefixed(form):
    return lambda network: {f"0.{key}": value for key, value in form(network).items()}


def save_run(folder, *sizes, form=split_form, seed=0):
    """One fine-tuned ensemble as published: weights, history and picture of each member."""
    folder.mkdir(parents=True)
    for depth, width in sizes:
        network = make_network(depth, width, seed=100 * seed + 10 * depth + width)
        torch.save(form(network), folder / f"m_{depth}_{width}.pt")
        (folder / f"m_{depth}_{width}.csv").write_text("epoch,jloss\n0,0.1\n")
        (folder / f"m_{depth}_{width}.jpg").write_bytes(b"\xff\xd8")
    return folder


def save(folder, *sizes, stage="m"):
    for depth, width in sizes:
        network = make_network(depth, width, seed=depth)
        torch.save(network.state_dict(), folder / f"{stage}_{depth}_{width}.pt")
    return folder


@pytest.mark.parametrize(("stage", "suffix"), [("coarse", ""), ("coarse", "_ave"), ("m", "")])
def test_folder_of_checkpoints_loads_in_order_of_depth(tmp_path, stage, suffix):
    for depth, width in ((10, 4), (2, 16), (2, 4)):
        path = tmp_path / f"{stage}_{depth}_{width}{suffix}.pt"
        torch.save(make_network(depth, width).state_dict(), path)
    ensemble = load_ensemble(tmp_path, layout="published")
    assert [(n.depth, n.width) for _, n in ensemble.members] == [(2, 4), (2, 16), (10, 4)]
    assert ensemble.names[0] == f"{stage}_2_4{suffix}"
    assert ensemble.layout.name == "published"
    assert set(ensemble.card["files"]) == {f"{name}.pt" for name in ensemble.names}


@pytest.mark.parametrize(
    "form", [plain_form, split_form, prefixed(plain_form), prefixed(split_form)]
)
def test_fine_tuned_run_loads_in_every_form_of_its_keys(tmp_path, form):
    sizes = ((1, 8), (2, 4))
    folder = save_run(tmp_path / "n_5" / "a70_bauto_r1", *sizes, form=form)
    ensemble = load_ensemble(folder, layout="published")
    assert ensemble.names == ("m_1_8", "m_2_4")
    assert all(n.norm.num_batches_tracked.dtype == torch.int64 for _, n in ensemble.members)
    x = np.random.default_rng(0).random((6, 153), dtype=np.float32)
    with torch.no_grad():
        expected = [make_network(d, w, seed=10 * d + w)(torch.from_numpy(x)) for d, w in sizes]
    np.testing.assert_allclose(predict_samples(ensemble, x), torch.stack(expected), atol=1e-6)


def test_repeats_load_as_one_ensemble_in_the_order_of_their_numbers(tmp_path):
    parent = tmp_path / "n_5"
    for number in (10, 0, 2):
        save_run(parent / f"a70_bauto_r{number}", (1, 8), (1, 16), seed=number)
    (parent / "scores.csv").touch()
    (parent / ".ipynb_checkpoints").mkdir()
    joined = load_ensemble(str(parent), layout="published")
    assert joined.names == tuple(f"r{k}_m_1_{width}" for k in (0, 2, 10) for width in (8, 16))
    assert joined.layout.name == "published"
    x = np.random.default_rng(0).random((4, 153), dtype=np.float32)
    parts = [load_ensemble(parent / f"a70_bauto_r{k}", layout="published") for k in (0, 2, 10)]
    expected = np.concatenate([predict_samples(part, x) for part in parts])
    np.testing.assert_array_equal(predict_samples(joined, x), expected)
    assert len(np.unique(expected[:, 0])) == 6
    assert joined.card["joined"] == {
        f"r{k}": part.card for k, part in zip((0, 2, 10), parts, strict=True)
    }


def test_repeats_with_different_members_are_refused(tmp_path):
    save_run(tmp_path / "a70_bauto_r0", (1, 4), (1, 8))
    save_run(tmp_path / "a70_bauto_r1", (1, 8), (2, 4), (10, 4))
    save_run(tmp_path / "a70_bauto_r2", (1, 4), (1, 8), (2, 4), (10, 4))
    missing = "same members; a70_bauto_r0 lacks m_2_4, m_10_4; a70_bauto_r1 lacks m_1_4. Complete"
    with pytest.raises(BundleError, match=missing):
        load_ensemble(tmp_path, layout="published")


def test_repeat_without_weights_is_refused(tmp_path):
    save_run(tmp_path / "a70_bauto_r0", (1, 4))
    (tmp_path / "a70_bauto_r1").mkdir()
    with pytest.raises(BundleError, match="a70_bauto_r1: no checkpoint"):
        load_ensemble(tmp_path, layout="published")


@pytest.mark.parametrize("others", [["shallow"], ["figures", "a70_bauto_rx"]])
def test_other_folders_among_repeats_are_refused(tmp_path, others):
    save_run(tmp_path / "a70_bauto_r0", (1, 4))
    save_run(tmp_path / others[0], (1, 4))
    for name in others[1:]:
        (tmp_path / name).mkdir()
    found = f"only folders of repeats, such as a70_bauto_r0, found {', '.join(sorted(others))}"
    with pytest.raises(BundleError, match=found):
        load_ensemble(tmp_path, layout="published")


def test_repeats_of_two_settings_are_refused(tmp_path):
    for name in ("a70_bauto_r0", "a50_b0_r0"):
        save_run(tmp_path / name, (1, 4))
    with pytest.raises(BundleError, match="repeats of one setting, found a50_b0, a70_bauto"):
        load_ensemble(tmp_path, layout="published")


def test_repeats_need_a_layout(tmp_path):
    save_run(tmp_path / "a70_bauto_r0", (1, 4))
    with pytest.raises(BundleError, match=r"a70_bauto_r0: m_1_4\.pt is none of .*layout="):
        load_ensemble(tmp_path)


def test_unknown_weights_need_a_layout(tmp_path):
    save(tmp_path, (1, 4))
    with pytest.raises(BundleError, match=r"m_1_4\.pt is none of the published files.*layout="):
        load_ensemble(tmp_path)


def test_pre_trained_and_fine_tuned_are_not_mixed(tmp_path):
    save(save(tmp_path, (1, 4)), (1, 4), stage="coarse")
    with pytest.raises(BundleError, match="keep them apart"):
        load_ensemble(tmp_path, layout="published")


@pytest.mark.parametrize("name", ["coarse_1_8 (1).pt", "best.pt"])
def test_odd_name_is_refused(tmp_path, name):
    torch.save({}, save(tmp_path, (1, 4)) / name)
    with pytest.raises(BundleError, match="expected coarse_<depth>_<width>"):
        load_ensemble(tmp_path, layout="published")


def test_name_that_contradicts_the_weights_is_refused(tmp_path):
    (save(tmp_path, (1, 4)) / "m_1_4.pt").rename(tmp_path / "m_4_1.pt")
    with pytest.raises(BundleError, match=r"m_4_1\.pt: the weights have depth 1 and width 4"):
        load_ensemble(tmp_path, layout="published")


@pytest.mark.parametrize("kept", [0.01, 0.3, 0.9, 0.99])
def test_truncated_checkpoint_is_refused(tmp_path, kept):
    path = save(tmp_path, (1, 4)) / "m_1_4.pt"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(BundleError, match=r"m_1_4\.pt: not a file of PyTorch weights.*truncated"):
        load_ensemble(tmp_path, layout="published")


@pytest.mark.parametrize("write", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))])
def test_foreign_pickle_is_refused_and_not_run(tmp_path, write):
    write({"x": Bomb(tmp_path / "ran")}, tmp_path / "m_1_4.pt")
    with pytest.raises(BundleError, match="nothing in it was executed"):
        load_ensemble(tmp_path, layout="published")
    assert not (tmp_path / "ran").exists()


def test_empty_file_and_bare_tensor_are_refused(tmp_path):
    path = tmp_path / "m_1_4.pt"
    path.touch()
    with pytest.raises(BundleError, match="not a file of PyTorch weights"):
        load_ensemble(tmp_path, layout="published")
    torch.save(torch.zeros(3), path)
    with pytest.raises(BundleError, match="expected a state dict, found Tensor"):
        load_ensemble(tmp_path, layout="published")


@pytest.mark.shared
def test_published_files_imply_their_layout(released, golden):
    assert released.layout.name == "released-9km"
    sizes = [[network.depth, network.width] for _, network in released.members]
    assert sizes == golden["main_depth_width"].tolist()
    assert released.card["title"].startswith("DenseSM 9 km")
    assert len(released.card["files"]) == 25


@pytest.mark.shared
def test_stated_layout_replaces_the_implied_one(shared):
    folder = shared / "data" / "densesm_9km" / "shallow"
    assert load_ensemble(folder, layout="published").layout.name == "published"


@pytest.mark.shared
@pytest.mark.parametrize(
    ("x", "members", "mean"),
    [
        ("random_x", "random_pred_main", "random_ensemble_mean_main"),
        *(
            (f"real_x_{order}", f"real_pred_main_{order}", f"real_ensemble_mean_{order}")
            for order in ("published_order", "weights_layout")
        ),
    ],
)
def test_main_ensemble_reproduces_the_golden_vectors(released, golden, x, members, mean):
    samples = predict_samples(released, golden[x])
    np.testing.assert_allclose(samples, golden[members], rtol=0, atol=2e-6)
    np.testing.assert_allclose(mean_and_std(samples)[0], golden[mean], rtol=0, atol=2e-6)


@pytest.mark.shared
def test_training_means_reproduce_the_golden_prediction(released, golden):
    samples = predict_samples(released, golden["mean_input_x"])
    np.testing.assert_allclose(samples, golden["mean_input_pred_main"], rtol=0, atol=2e-6)


@pytest.mark.shared
def test_narrow_deep_models_reproduce_the_golden_vectors(shared, golden):
    ensemble = load_ensemble(shared / "data" / "densesm_9km" / "shallow")
    sizes = [[network.depth, network.width] for _, network in ensemble.members]
    assert sizes == golden["shallow_depth_width"].tolist()
    samples = predict_samples(ensemble, golden["random_x"])
    np.testing.assert_allclose(samples, golden["random_pred_shallow"], rtol=0, atol=2e-6)


@pytest.mark.shared
@pytest.mark.parametrize(("depth", "width"), [(1, 8), (3, 32), (5, 128)])
def test_intermediate_activations_reproduce_the_golden_vectors(released, golden, depth, width):
    network = dict(released.members)[f"coarse_{depth}_{width}"]
    x = torch.from_numpy(golden["random_x"])
    with torch.no_grad():
        snapshot, series = network.split(x)
        conv = network.conv_block(series)
        norm = network.norm(torch.cat([snapshot, series.mean(dim=2), conv], dim=1))
        dense = torch.nn.Sequential(*network.dense_layers)(norm)
        found = {
            "conv": conv,
            "norm": norm,
            "dense": dense,
            "fe": network.features(x),
            "y": network(x),
        }
    for name, value in found.items():
        expected = golden[f"act_{depth}_{width}_{name}"]
        # Activations reach 30, where float32 itself is 1.5e-5 from the same pass in float64.
        limit = 2e-6 * max(1, abs(expected).max())
        np.testing.assert_allclose(value, expected, rtol=0, atol=limit, err_msg=name)
