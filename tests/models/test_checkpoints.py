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
