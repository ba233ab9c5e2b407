"""Small random networks whose batch norms are as little the identity as those of trained ones."""

import torch

from smgrid.features.layout import get_layout
from smgrid.models.densesm import DenseSM
from smgrid.models.ensemble import Ensemble


def make_network(depth=2, width=4, *, seed=0, **sizes):
    generator = torch.Generator().manual_seed(seed)
    network = DenseSM(depth, width, **sizes)
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.rand(tensor.shape, generator=generator)
        if name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight", "norm.weight")):
            tensor.copy_(0.5 + noise)
        else:
            tensor.copy_((noise - 0.5) / max(1.0, tensor[0].numel() ** 0.5))
    return network.eval()


def make_ensemble(sizes=((2, 4), (1, 4), (3, 6)), *, layout="released-9km", card=None):
    members = tuple((f"m_{d}_{w}", make_network(d, w, seed=10 * d + w)) for d, w in sizes)
    return Ensemble(members, get_layout(layout), card or {})
