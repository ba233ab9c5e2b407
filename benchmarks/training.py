"""What training costs: 25 members as one job beside the published way, member by member.

    python benchmarks/training.py [--quick]

The published way is written here from its description: a Dataset that gives one row at a time, a
DataLoader, one network after the other, and the maximum mean discrepancy by broadcasting all
pairs. Both ways take the same steps of 1024 labelled and 1024 unlabelled rows (2048 labelled ones
without a domain loss) out of a table of 160 000, in turns on one thread, and the median of the
repeats counts. CPU seconds, so that other work on the machine matters less. The last line is one
JSON object.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smgrid.models.densesm import DenseSM
from smgrid.training.discrepancy import coral, mmd
from smgrid.training.loop import Domains, Job
from smgrid.training.losses import DomainLoss
from smgrid.training.plan import MSDA, PUBLISHED_ADAPTATION, PUBLISHED_SIZES
from smgrid.training.table import Samples, make_samples

BATCH = 1024
TABLE = 160_000


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """One row at a time."""

    def __init__(self, samples: Samples) -> None:
        self.x, self.y = samples.features, samples.label

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.x[row], self.y[row]


def make_table(n: int, seed: int) -> Samples:
    """Random rows; each has a series of its own, as stations on dates have."""
    rng = np.random.default_rng(seed)
    return make_samples(
        torch.from_numpy(rng.random((n, 15), dtype=np.float32)),
        torch.from_numpy(rng.random((n, 3, 46), dtype=np.float32)),
        torch.arange(n),
        label=torch.from_numpy(rng.uniform(0.05, 0.5, n).astype(np.float32)),
    )


def make_networks() -> list[DenseSM]:
    """25 networks of the published sizes."""
    torch.manual_seed(0)
    return [DenseSM(depth, width) for depth, width in PUBLISHED_SIZES]


def pairwise_mmd(source: Tensor, target: Tensor) -> Tensor:
    """Five Gaussian kernels on the distances of all pairs, by broadcasting."""
    n = len(source)
    total = torch.cat([source, target])
    distance = (total[None] - total[:, None]).square().sum(2)
    width = distance.detach().sum() / (len(total) ** 2 - len(total)) / 4
    kernel = sum(torch.exp(-distance / (width * 2**k)) for k in range(5))
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


GAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mmd": pairwise_mmd, "coral": coral}


def published_way(
    networks: list[DenseSM], fine: Samples, unlabelled: Samples, gap: DomainLoss | None
) -> None:
    """Train member by member on the rows of two tables."""
    for network in networks:
        network.train()
        optimiser = torch.optim.Adam(network.parameters(), lr=5e-4)
        size = BATCH if gap else 2 * BATCH
        loaders = [DataLoader(Rows(s), size, shuffle=True) for s in (fine, unlabelled)]
        for (x, y), (target, _) in zip(*loaders, strict=True):
            optimiser.zero_grad()
            rows = torch.cat([x, target]) if gap else x
            features = network.features(rows)
            loss = torch.nn.functional.mse_loss(network.out(features[: len(x)]).squeeze(1), y)
            if gap:
                loss = 0.7 * loss + GAPS[gap](features[: len(x)], features[len(x) :]) / 2.5
            loss.backward()
            optimiser.step()


def one_job(fine: Samples, unlabelled: Samples, gap: DomainLoss | None, *, frozen: bool) -> Job:
    """Make the same steps as one job."""
    plan = replace(
        PUBLISHED_ADAPTATION,
        batch_size=BATCH if gap else 2 * BATCH,
        label_loss="mse",
        average="none",
        frozen="series" if frozen else "nothing",
    )
    if gap is None:
        return Job(make_networks(), Domains(fine), fine.take(np.arange(8)), plan=plan)
    return Job(
        make_networks(),
        Domains(fine, unlabelled),
        fine.take(np.arange(8)),
        plan=plan,
        msda=MSDA(domain_loss=gap, beta=1.0),
        betas=[1.0] * len(PUBLISHED_SIZES),
    )


def cpu_seconds(function: Callable[[], object]) -> float:
    """Time one call in CPU seconds of this process."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(steps: int, repeats: int) -> dict[str, float]:
    """Take the same steps both ways, in turns."""
    table, other = make_table(TABLE, 0), make_table(TABLE, 1)
    order = np.random.default_rng(2).permutation(TABLE)
    figures: dict[str, float] = {}
    networks = make_networks()
    cases: list[tuple[str, DomainLoss | None, bool]] = [
        ("epoch_speedup_mmd", "mmd", False),
        ("epoch_speedup_coral", "coral", False),
        ("epoch_speedup_supervised", None, False),
        ("frozen_step_speedup", None, True),
    ]
    for name, gap, frozen in cases:
        count = 1 if gap == "mmd" else steps
        rows = order[: count * (BATCH if gap else 2 * BATCH)]
        fine, unlabelled = table.take(rows).compact(), other.take(rows).compact()
        job = one_job(fine, unlabelled, gap, frozen=frozen)
        job._one_epoch(0)
        published, ours = [], []
        theirs = partial(published_way, networks, fine, unlabelled, gap)
        for repeat in range(1 if gap == "mmd" else repeats):
            ours += [cpu_seconds(partial(job._one_epoch, 2 * repeat + k)) for k in range(2)]
            published.append(cpu_seconds(theirs))
        figures[name] = statistics.median(published) / statistics.median(ours)
        figures[f"{name}_ours_cpu_seconds_per_step"] = statistics.median(ours) / count
    figures["mmd_cpu_seconds"] = _mmd_seconds()
    figures["rows_per_second_in_memory"] = _loading(table)
    return figures


def _mmd_seconds() -> float:
    rng = torch.Generator().manual_seed(0)
    source = torch.rand(BATCH, 32, generator=rng, requires_grad=True)
    target = torch.rand(BATCH, 32, generator=rng, requires_grad=True)
    mmd(source, target).backward()
    return statistics.median(cpu_seconds(lambda: mmd(source, target).backward()) for _ in range(9))


def _loading(table: Samples) -> float:
    """Rows per CPU second in shuffled batches, whole vectors included."""
    from smgrid.training.batches import batches

    def read() -> None:
        for batch in batches(table, size=BATCH, seed=(0,)):
            batch.samples.features  # noqa: B018 (made anew at every call)

    read()
    return len(table) / statistics.median(cpu_seconds(read) for _ in range(5))


def main() -> None:
    """Print a table for people, then the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, within some minutes")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    figures = measure(steps=3 if quick else 6, repeats=1 if quick else 3)
    for name, value in figures.items():
        print(f"{name:48s} {value:12.4g}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
