import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from smgrid.errors import ConfigError, StoreError
from smgrid.features.layout import get_layout
from smgrid.models.densesm import DenseSM
from smgrid.models.ensemble import Ensemble, predict_samples
from smgrid.training import job, run_folder
from smgrid.training.facts import digest_samples, score_members
from smgrid.training.fit import finetune, fit
from smgrid.training.loop import Domains, Job
from smgrid.training.plan import MSDA, PUBLISHED_ADAPTATION, FitPlan
from smgrid.training.samples import stream_samples
from smgrid.training.uncertainty import fit_calibration, summarise_training
from tests.cubes import make_cube
from tests.training.tables import random_samples

LAYOUT = get_layout("smgrid-1")
SIZES = ((2, 8), (1, 8), (1, 16))
PLAN = replace(PUBLISHED_ADAPTATION, epochs=3, patience=3, batch_size=16, average_from=1)


def ensemble():
    torch.manual_seed(1)
    members = tuple((f"m{k}", DenseSM(*size)) for k, size in enumerate(SIZES))
    return Ensemble(members, LAYOUT)


def adapted(plan=PLAN, msda=None, **options):
    return finetune(
        ensemble(),
        random_samples(40, seed=1),
        validation=random_samples(20, seed=2),
        unlabelled=random_samples(50, seed=3, label=None),
        coarse=random_samples(30, seed=4),
        plan=plan,
        msda=msda,
        **options,
    )


def weights(one):
    return {f"{n}.{k}": v for n, net in one.members for k, v in net.state_dict().items()}


def assert_same(one, other, **tolerance):
    for (key, a), b in zip(weights(one).items(), weights(other).values(), strict=True):
        torch.testing.assert_close(a, b, msg=key, **tolerance)


def in_double(n, seed):
    samples = random_samples(n, seed=seed)
    names = ("snapshot", "series", "label", "weight")
    return replace(samples, **{name: getattr(samples, name).double() for name in names})


@pytest.mark.parametrize("batch_norm", ["joint", "target", "separate", "frozen"])
@pytest.mark.parametrize("frozen", ["nothing", "series"])
def test_members_together_are_members_one_by_one(batch_norm, frozen):
    """Dropout, data order and batch norms are each member's own.

    In double precision, so that nothing but the order of sums differs, and on predictions: biases
    before a batch norm have no gradient but rounding, which Adam makes as large as any.
    """
    plan, msda = replace(PLAN, frozen=frozen), MSDA(batch_norm=batch_norm, beta=0.3)
    domains = Domains(*(in_double(n, seed=n) for n in (40, 50, 30)))
    validation = in_double(20, seed=2)
    start = [network.double() for _, network in ensemble().members]
    together = Job(start, domains, validation, plan=plan, msda=msda, betas=[0.3] * 3)
    together.run()
    for number, network in enumerate(n.double() for _, n in ensemble().members):
        options = {"plan": plan, "msda": msda, "betas": [0.3], "numbers": [number]}
        alone = Job([network], domains, validation, **options)
        alone.run()
        with torch.inference_mode():
            one = alone.networks()[0](validation.features)
            other = together.networks()[number](validation.features)
            untrained = network.eval()(validation.features)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
        assert float((one - untrained).abs().max()) > 1e-3


def test_a_frozen_series_branch_stays_and_the_rest_learns():
    one = adapted(replace(PLAN, frozen="series"))
    before, after = weights(ensemble()), weights(one)
    for key, value in before.items():
        if ".conv_block." in key:
            assert torch.equal(value, after[key]), key
    assert not torch.equal(before["m0.out.weight"], after["m0.out.weight"])


def test_frozen_norms_keep_the_statistics_of_the_start():
    before, after = weights(ensemble()), weights(adapted(msda=MSDA(batch_norm="frozen")))
    for key, value in before.items():
        if "running_" in key:
            assert torch.equal(value, after[key]), key
    other = weights(adapted(msda=MSDA(batch_norm="separate")))
    assert not torch.equal(before["m0.norm.running_mean"], other["m0.norm.running_mean"])


def test_the_coarse_domain_leaves_no_trace_in_separate_statistics():
    """With a learning rate of nearly nothing only the statistics move."""
    still = replace(PLAN, learning_rate=1e-12, average="none", epochs=1)
    options = {"plan": still, "validation": random_samples(20, seed=2)}
    fine, msda = random_samples(40, seed=1), MSDA(batch_norm="separate", beta=0.0)
    one, other = (
        finetune(ensemble(), fine, coarse=random_samples(30, seed=s), msda=msda, **options)
        for s in (4, 5)
    )
    assert_same(one, other, rtol=0, atol=1e-8)
    joint = replace(msda, batch_norm="joint")
    mixed = finetune(ensemble(), fine, coarse=random_samples(30, seed=5), msda=joint, **options)
    assert not torch.allclose(
        weights(mixed)["m0.norm.running_mean"], weights(one)["m0.norm.running_mean"], atol=1e-6
    )


def test_target_statistics_are_those_of_the_unlabelled_samples():
    still = replace(PLAN, learning_rate=1e-12, average="none", epochs=1)
    options = {"plan": still, "validation": random_samples(20, seed=2)}

    def running(fine, unlabelled):
        made = finetune(
            ensemble(),
            random_samples(40, seed=fine),
            unlabelled=random_samples(50, seed=unlabelled, label=None),
            msda=MSDA(beta=0.0),
            **options,
        )
        return weights(made)["m0.norm.running_mean"]

    torch.testing.assert_close(running(1, 3), running(8, 3), rtol=0, atol=1e-8)
    assert not torch.allclose(running(1, 3), running(1, 9), atol=1e-6)


def test_the_mean_of_epochs_is_the_mean_of_what_each_epoch_ends_with():
    ends = [weights(adapted(replace(PLAN, average="none", epochs=k))) for k in (2, 3)]
    mean = weights(adapted())
    for key, value in mean.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (ends[0][key] + ends[1][key]) / 2, msg=key)


def test_the_card_says_how_it_was_made():
    card = adapted(card={"split": {"by": "station"}}).card
    facts = card["training"]
    assert facts["method"] == "multi-scale domain adaptation"
    assert facts["plan"]["label_loss"] == "mape"
    assert facts["adaptation"]["alpha"] == 0.7
    assert facts["started_from"] == ensemble().digest
    assert set(facts["samples"]) == {"fine", "unlabelled", "coarse", "validation"}
    assert all(len(s["sha256"]) == 64 for s in facts["samples"].values())
    assert [m["beta"] > 0 for m in facts["members"]] == [True] * 3
    assert facts["inputs"]["vv"]["quantiles"][0] >= 0
    assert card["split"] == {"by": "station"}
    json.dumps(card, allow_nan=False)


def test_metrics_in_the_card_are_those_of_the_members():
    made = adapted()
    validation = random_samples(20, seed=2)
    predicted = predict_samples(made, validation.features)
    for own, facts in zip(predicted, made.card["training"]["members"], strict=True):
        error = own - validation.label.numpy()
        assert facts["rmse"] == pytest.approx(np.sqrt((error.astype(float) ** 2).mean()), rel=1e-5)


def test_the_card_scores_the_mean_of_the_members_on_every_part():
    test = random_samples(25, seed=9)
    made = adapted(test=test)
    facts = made.card["training"]
    assert set(facts["scores"]) == {"fine", "validation", "test"}
    assert facts["samples"]["test"]["count"] == facts["scores"]["test"]["n"] == 25
    error = predict_samples(made, test.features).mean(axis=0) - test.label.numpy()
    assert facts["scores"]["test"]["ubrmse"] == pytest.approx(error.std(), rel=1e-5)
    assert_same(made, adapted(), rtol=0, atol=0)  # nothing is decided by the test


def test_the_card_counts_stations_that_share_a_pixel_one_by_one():
    fine = random_samples(40, seed=1, station=["s0 + s1", "s1"] * 20, network=["A + B", "B"] * 20)
    made = finetune(ensemble(), fine, validation=random_samples(20, seed=2), plan=PLAN)
    facts = made.card["training"]["samples"]["fine"]
    assert (facts["stations"], facts["networks"]) == (2, ["A", "B"])


def test_the_history_has_the_terms_that_there_are():
    ends = []
    finetune(
        ensemble(),
        random_samples(40, seed=1),
        validation=random_samples(20, seed=2),
        plan=PLAN,
        on_epoch=ends.append,
    )
    assert set(ends[0].loss) == {"fine", "total"}
    adapted(msda=MSDA(beta=0.0), on_epoch=ends.append)
    assert set(ends[-1].loss) == {"fine", "coarse", "total"}


def test_what_cannot_be_trained():
    fine, validation = random_samples(40, seed=1), random_samples(20, seed=2)
    with pytest.raises(ConfigError, match="needs unlabelled or coarse samples"):
        finetune(ensemble(), fine, validation=validation, msda=MSDA())
    with pytest.raises(ConfigError, match="40 of 40 fine samples have no label"):
        finetune(ensemble(), random_samples(40, label=None), validation=validation)
    with pytest.raises(ConfigError, match="alpha in 0-1"):
        MSDA(alpha=0)
    with pytest.raises(ConfigError, match="at least 1 epoch"):
        FitPlan(epochs=0)


def test_plain_fine_tuning_needs_no_other_domain():
    made = finetune(
        ensemble(), random_samples(40, seed=1), validation=random_samples(20, seed=2), plan=PLAN
    )
    assert made.card["training"]["method"] == "fine-tuned"


# Jobs in a folder


def test_a_finished_job_is_not_run_again(tmp_path):
    ends = []
    one = adapted(out=tmp_path / "run", on_epoch=ends.append)
    again = adapted(out=tmp_path / "run", on_epoch=ends.append)
    assert len(ends) == 3
    assert_same(one, again, rtol=0, atol=0)
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2]
    assert {"fine", "coarse", "domain", "total"} <= set(json.loads(lines[0])["loss"])
    assert not (tmp_path / "run" / "state.pt").exists()


def test_an_interrupted_job_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_SAVE_EVERY_S", 0.0)
    plan = replace(PLAN, average="exponential", averaging=0.9, keep="best", weight_decay=0.01)
    whole = adapted(plan)

    def interrupt(end):
        if end.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapted(plan, out=tmp_path / "run", on_epoch=interrupt)
    resumed = adapted(plan, out=tmp_path / "run")
    assert_same(whole, resumed, rtol=0, atol=0)
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2]


SCRIPT = """
import sys
from smgrid.training import run_folder
run_folder._SAVE_EVERY_S = 0.0
from tests.training.test_finetune import KILLED, adapted
adapted(KILLED, out=sys.argv[1])
"""
KILLED = replace(PLAN, epochs=12, patience=12, average_from=8)


def test_kill_at_any_moment_and_resume(tmp_path):
    whole = adapted(KILLED)
    rng = np.random.default_rng(0)
    run = tmp_path / "run"
    killed = 0
    while not (run / "ensemble").exists():
        with subprocess.Popen([sys.executable, "-c", SCRIPT, str(run)]) as process:
            while process.poll() is None and not (run / "run.json").exists():
                time.sleep(0.02)
            time.sleep(rng.uniform(0.1, 0.6))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
        if killed == 4:
            subprocess.run([sys.executable, "-c", SCRIPT, str(run)], check=True)
    assert killed >= 1
    assert_same(whole, adapted(KILLED, out=run), rtol=0, atol=0)


def test_a_folder_of_another_job_or_a_damaged_one(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_SAVE_EVERY_S", 0.0)
    adapted(replace(PLAN, epochs=1, average_from=0), out=tmp_path / "run")
    with pytest.raises(ConfigError, match="another training job, which differs in plan"):
        adapted(out=tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(ConfigError, match="something else than a training job"):
        adapted(out=tmp_path / "full")

    def interrupt(end):
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            adapted(out=tmp_path / "third", on_epoch=interrupt if _ == 0 else stop_later)
    (tmp_path / "third" / "state.pt").write_bytes(b"torn")
    with pytest.raises(StoreError, match=r"state\.pt is damaged"):
        adapted(out=tmp_path / "third")


def stop_later(end):
    if end.epoch == 1:
        raise KeyboardInterrupt


def test_supervised_jobs_resume_too(tmp_path):
    options = {"layout": LAYOUT, "sizes": ((1, 8),), "plan": FitPlan(epochs=2)}
    one = fit(random_samples(40, seed=1), random_samples(20, seed=2), **options)
    other = fit(
        random_samples(40, seed=1), random_samples(20, seed=2), **options, out=tmp_path / "run"
    )
    assert_same(one, other, rtol=0, atol=0)


def test_epochs_that_are_run_again_are_in_the_history_once(tmp_path):
    def interrupt(end):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapted(out=tmp_path / "run", on_epoch=interrupt)
    adapted(out=tmp_path / "run")
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2]


def test_a_folder_is_claimed_by_a_job_that_can_begin(tmp_path):
    same = random_samples(40, seed=1)
    with pytest.raises(ConfigError, match="domain loss is 0 but for rounding"):
        finetune(
            ensemble(), same, validation=same, unlabelled=same, plan=PLAN, out=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()
    adapted(out=tmp_path / "run")


def test_what_a_killed_job_left_half_written_is_cleared_away(tmp_path):
    def interrupt(end):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapted(out=tmp_path / "run", on_epoch=interrupt)
    (tmp_path / "run" / ".ensemble.0123.partial").mkdir()
    adapted(out=tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").iterdir()} - {"lock"}
    assert left == {"run.json", "history.jsonl", "ensemble"}


def test_a_finished_folder_refuses_another_stream(tmp_path):
    layout = get_layout("published")
    options = {"layout": layout, "sizes": ((1, 8),), "plan": replace(PLAN, epochs=2)}

    def run(**change):
        cube = make_cube(seed=change.pop("seed", 0))
        labels = (cube["base"].to_dataset()["vv"] * 0 + 0.2).assign_attrs(units="m3 m-3")
        stream = stream_samples(cube, labels, layout=layout, **change)
        return fit(stream, random_samples(20, seed=2), out=tmp_path / "run", **options)

    made = run()
    assert_same(made, run(workers=0), rtol=0, atol=0)
    for change in ({"seed": 1}, {"share": 0.9}, {"buffer": 100}):
        with pytest.raises(ConfigError, match="another training job, which differs in samples"):
            run(**change)


def test_a_kill_while_the_folder_was_claimed_leaves_it_usable(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json.part").write_text("{")
    adapted(out=tmp_path / "run")
    assert (tmp_path / "run" / "ensemble").is_dir()


def test_members_that_have_learned_take_series_as_they_are():
    with pytest.raises(ConfigError, match="series='plain'"):
        adapted(FitPlan())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"average": "ema"}, "average: 'ema' is unknown"),
        ({"optimiser": "sgd"}, "optimiser: 'sgd' is unknown"),
        ({"label_loss": "mea"}, "did you mean"),
        ({"epochs": 20, "average_from": 40, "average": "epochs"}, "no weights would be averaged"),
        ({"weight_decay": -1.0}, "nothing negative"),
        ({"epochs": 2.5}, "epochs: expected a whole number, found 2.5"),
        ({"epochs": True}, "epochs: expected a whole number"),
        ({"average": None}, "average: expected 'none', 'exponential', 'epochs', found None"),
        ({"label_loss": ["mse"]}, "label_loss: expected 'mse', 'mape', found"),
        ({"label_floor": float("nan")}, "label_floor: expected a finite number, found nan"),
        ({"learning_rate": float("inf")}, "learning_rate: expected a finite number"),
        ({"learning_rate": "1e-3"}, "learning_rate: expected a finite number, found '1e-3'"),
        ({"first_taps": (1.0, 1.0)}, "five first_taps"),
        ({"first_taps": 1.0}, "first_taps: expected five finite numbers"),
        ({"patience": 0}, "a patience of 1"),
    ],
)
def test_plans_that_make_no_sense(change, message):
    with pytest.raises(ConfigError, match=message):
        FitPlan(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_norm": "seperate"}, "did you mean 'separate'"),
        ({"beta": float("nan")}, "beta: expected 'auto', a finite number, found nan"),
        ({"beta": None}, "beta: expected 'auto', a finite number"),
        ({"beta": -1.0}, "alpha in 0-1"),
        ({"ratio": 1.5}, "ratio: expected a whole number"),
    ],
)
def test_adaptations_that_make_no_sense(change, message):
    with pytest.raises(ConfigError, match=message):
        MSDA(**change)


def test_plans_hold_plain_numbers():
    plan = FitPlan(learning_rate=np.float32(0.5), epochs=np.int64(3), first_taps=[1, 1, 1, 1, 1])
    assert type(plan.learning_rate) is float
    assert type(plan.epochs) is int
    assert plan.first_taps == (1.0, 1.0, 1.0, 1.0, 1.0)
    assert plan.patience is None


def test_without_patience_the_validation_only_watches():
    plan = replace(PLAN, epochs=8, average_from=7, patience=None, keep="last")
    one, other = (
        finetune(
            ensemble(),
            random_samples(40, seed=1),
            validation=random_samples(20, seed=s),
            plan=plan,
        )
        for s in (2, 3)
    )
    assert_same(one, other, rtol=0, atol=0)


def test_a_member_that_stopped_is_told_as_it_was_then():
    plan = replace(PLAN, epochs=12, patience=2, average="none", learning_rate=5e-3)
    ends = []
    adapted(plan, on_epoch=ends.append)
    told = [[dict(end.members[k]) for end in ends] for k in range(3)]
    assert any(one[-1] == one[-2] for one in told)  # stopped
    assert all(one[0] != one[1] for one in told)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    def other(end):
        with pytest.raises(ConfigError, match="another process trains in"):
            adapted(out=tmp_path / "run")

    adapted(out=tmp_path / "run", on_epoch=other)
    adapted(out=tmp_path / "run")


def test_what_another_process_has_finished_is_not_trained_again(tmp_path, monkeypatch):
    """It may finish between the first look into the folder and the claim."""
    done = adapted(out=tmp_path / "done")
    claimed = run_folder.RunFolder.claimed

    @contextmanager
    def late(folder):
        with claimed(folder):
            shutil.copytree(tmp_path / "done" / "ensemble", folder.ensemble)
            yield

    monkeypatch.setattr(run_folder.RunFolder, "claimed", late)
    ends = []
    again = adapted(out=tmp_path / "run", on_epoch=ends.append)
    assert again.digest == done.digest
    assert not ends


def test_networks_that_are_given_stay_as_they_are():
    start = ensemble()
    given = [network for _, network in start.members]
    digest, dropout = start.digest, [network.conv_block.dropout.p for network in given]
    plan = replace(PLAN, dropout=0.25)
    job_ = Job(given, Domains(random_samples(40, seed=1)), random_samples(20, seed=2), plan=plan)
    assert {b.dropout.p for stack in job_.state.stacks for b in stack.branches} == {0.25}
    job_.run()
    assert [network.conv_block.dropout.p for network in given] == dropout
    assert replace(start).digest == digest


@pytest.fixture
def switches():
    found = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in found]
    found[0].allow_tf32, found[1].allow_tf32 = False, True
    yield found
    for switch, value in zip(found, before, strict=True):
        switch.allow_tf32 = value


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_precision_holds_while_a_job_runs(precision, switches):
    seen = []

    def look(end):
        seen.append([switch.allow_tf32 for switch in switches])
        if end.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapted(plan=replace(PLAN, precision=precision), on_epoch=look)
    assert seen == [[precision == "tf32"] * 2] * 2
    assert [switch.allow_tf32 for switch in switches] == [False, True]


def test_scores_are_those_of_every_row():
    """Rows go through the members in parts; the last score is that of their mean."""
    samples = random_samples(4200, seed=6)
    found = score_members(ensemble(), {"some": samples})["some"]
    members = predict_samples(ensemble(), samples.features).astype(float)
    error = np.vstack([members, members.mean(axis=0)]) - samples.label.numpy()
    rmse = np.sqrt((error**2).mean(axis=1))
    np.testing.assert_allclose([one["rmse"] for one in found], rmse, rtol=1e-4)
    assert {one["n"] for one in found} == {4200}


def test_a_trained_ensemble_knows_its_errors_and_where_it_is_at_home(tmp_path):
    test = random_samples(20, seed=5)
    one = adapted(out=tmp_path / "run", test=test)
    again = adapted(out=tmp_path / "run", test=test)
    assert again.calibration == one.calibration
    assert one.calibration.fitted_on == "validation"
    assert one.calibration.groups == 20
    expected = fit_calibration(one, random_samples(20, seed=2), test=test)
    assert one.calibration == expected
    told = one.card["training"]
    assert told["calibration"]["coverage"] == one.calibration.coverage
    assert list(told["calibration"]["coverage"]) == ["validation", "test"]
    summary = summarise_training(one, random_samples(40, seed=1))
    np.testing.assert_array_equal(one.applicability.coreset, summary.coreset)
    assert told["applicability"]["threshold"] == one.applicability.threshold


def test_validation_of_few_places_trains_without_calibration():
    one = finetune(
        ensemble(),
        random_samples(40, seed=1),
        validation=random_samples(20, seed=2, longitude=4.0, latitude=50.0),
        plan=PLAN,
    )
    assert one.calibration is None
    assert "needs at least 5" in one.card["training"]["calibration"]["none"]
    assert one.applicability is not None


def test_what_is_done_is_not_refused_after_an_update(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "__version__", "0.0.1")
    one = adapted(out=tmp_path / "run")
    monkeypatch.undo()
    assert_same(one, adapted(out=tmp_path / "run"), rtol=0, atol=0)
    (tmp_path / "run" / "ensemble").rename(tmp_path / "away")
    with pytest.raises(ConfigError, match="differs in smgrid_version"):
        adapted(out=tmp_path / "run")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be made or written"):
        adapted(out=tmp_path / "file" / "run")


def test_stations_tell_tables_apart():
    one, other = (random_samples(40, seed=1, station=f"s{k}") for k in (0, 1))
    assert digest_samples(one) != digest_samples(other)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_patience_with_a_member_does_not_depend_on_the_others(keep):
    plan = replace(PLAN, epochs=12, patience=2, keep=keep, average="none", learning_rate=5e-3)
    domains, validation = Domains(in_double(40, seed=1)), in_double(20, seed=2)
    start = [network.double() for _, network in ensemble().members]
    together = Job(start, domains, validation, plan=plan)
    together.run()
    ends = set()
    for number, network in enumerate(n.double() for _, n in ensemble().members):
        alone = Job([network], domains, validation, plan=plan, numbers=[number])
        alone.run()
        ends.add(alone.state.epoch)
        with torch.inference_mode():
            one = alone.networks()[0](validation.features)
            other = together.networks()[number](validation.features)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
    assert len(ends) > 1
    assert together.state.epoch == max(ends)
