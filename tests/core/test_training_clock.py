"""Training by the clock: it ends when the time is over, and the learning rate with it.

The clock here is moved by the work itself, so that the seconds are exact: a step takes one, a score
three, unless a test says otherwise.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil

import numpy as np
import pytest
from skimage import data
from small_models import small_model
from typer.testing import CliRunner

from dn_core.checkpoints import load_checkpoint, save_checkpoint
from dn_core.cli import app
from dn_core.network_config import half_resolution_config
from dn_core.tensor_files import read_tensors
from dn_core.training import schedule
from dn_core.training import trainer as trainer_module
from dn_core.training.data.clean_images import CleanImageDataset
from dn_core.training.data.patches import FinetunePatches
from dn_core.training.data.training_data import SyntheticNoiseData
from dn_core.training.finetuning import finetune_steps, images_from
from dn_core.training.loop import fit
from dn_core.training.recipes import Phase, Recipe, load_recipe

SCORE_SECONDS = 3.0
CLEAN = data.camera()[:128, 128:256].astype(np.float32)
NOISY = CLEAN + np.random.default_rng(0).normal(0, 15, CLEAN.shape).astype(np.float32)
RECIPE = Recipe(
    name="timed",
    network=half_resolution_config(8, 1),
    noise=({"kind": "gaussian", "sigma": 25},),
    phases=(Phase(10**6, 1, 16), Phase(10**6, 1, 32)),
    epoch=10,
    minutes=1.0,
)

pytestmark = pytest.mark.usefixtures("one_thread")


class Work:
    """The time that work takes, in place of the machine's clock."""

    def __init__(self) -> None:
        self.now, self.steps = 5000.0, 0
        self.step_seconds = itertools.repeat(1.0)

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def work(monkeypatch):
    working = Work()

    def takes(seconds, method):
        def slow(*arguments):
            result = method(*arguments)
            working.now += seconds()
            return result

        return slow

    for training_data in (FinetunePatches, SyntheticNoiseData):
        monkeypatch.setattr(
            training_data, "batch", takes(lambda: next(working.step_seconds), training_data.batch)
        )
        monkeypatch.setattr(
            training_data, "score", takes(lambda: SCORE_SECONDS, training_data.score)
        )
    monkeypatch.setattr(schedule, "time", working)
    return working


@pytest.fixture
def images():
    return images_from(noisy=NOISY, clean=CLEAN, black=0, white=255)


@pytest.fixture
def start(tmp_path):
    path = tmp_path / "start.safetensors"
    save_checkpoint(path, small_model("residual").checkpoint)
    return path


@pytest.fixture
def dataset():
    return CleanImageDataset(
        (data.camera()[:96, :96], data.coins()[:96, :96], data.moon()[:96, :96]),
        (data.page()[:96, :96],),
    )


def state_of(out):
    tensors, metadata = read_tensors(out / "own-training" / "state.safetensors")
    return tensors, json.loads(metadata["dn_resnet_training"])


MACHINES = {
    "slow": lambda: itertools.repeat(4.0),
    "busy after a while": lambda: itertools.chain([1.0] * 20, itertools.repeat(5.0)),
    "busy at first": lambda: itertools.chain([5.0] * 8, itertools.repeat(1.0)),
    "busy now and then": lambda: itertools.cycle([1.0, 1.0, 1.0, 5.0]),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_it_ends_when_the_time_is_over_scores_included_and_so_does_the_learning_rate(
    machine, work, images, start, tmp_path
):
    work.step_seconds = MACHINES[machine]()
    began = work.now
    *steps, end = finetune_steps(images, tmp_path, start=start, name="own", minutes=2, lr=1e-2)
    assert abs(work.now - began - 120) <= 5, "the minutes asked for, and at most one step"
    assert (end.kind, end.fraction) == ("done", 1)
    assert load_checkpoint(end.path).card.training["minutes"] == pytest.approx(2, abs=0.1)
    scores = [step for step in steps if step.psnr is not None]
    assert len(scores) > 5
    assert len(scores) * SCORE_SECONDS < 120 / 4
    for step in steps:
        if step.fraction > schedule.WARM_UP_PART:
            assert step.learning_rate == pytest.approx(
                1e-2 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step.fraction)))
            )
    assert steps[0].learning_rate == pytest.approx(1e-2 / 50)
    assert max(step.learning_rate for step in steps) > 0.9e-2
    assert steps[-1].learning_rate == pytest.approx(1e-4)


def test_what_is_left_and_how_far_it_is_come_from_the_clock(work, images, start, tmp_path):
    began = work.now
    for step in finetune_steps(images, tmp_path, start=start, name="own", minutes=2):
        if step.kind != "done" and step.fraction < 1:
            assert step.seconds_left == pytest.approx(120 - (work.now - began))
            assert step.fraction == pytest.approx((work.now - began) / 120, abs=0.06)
        if step.step > 20:
            assert step.total_steps == pytest.approx(100, abs=12)  # a second each, and the scores
    assert (step.seconds_left, step.total_steps) == (0, step.step)


def test_a_pause_is_no_training(work, images, start, tmp_path):
    def steps_of(name, pause):
        training = finetune_steps(images, tmp_path, start=start, name=name, minutes=1)
        for step in training:
            work.now += pause
            done = step.step
        return done

    assert steps_of("paused", 1000) == steps_of("own", 0)


def test_a_stopped_training_has_the_rest_of_its_time(work, images, start, tmp_path):
    began, done = work.now, []
    for _ in range(3):
        training = finetune_steps(images, tmp_path, start=start, name="own", minutes=2, lr=1e-2)
        step = next(training)
        while work.now - began <= 30 * (len(done) + 1):
            step = next(training)
        training.close()
        done.append(step.step)
        work.now += 1000  # it lies there
        began += 1000
    assert done == sorted(set(done))
    steps = list(finetune_steps(images, tmp_path, start=start, name="own", minutes=2, lr=1e-2))
    assert abs(work.now - began - 120) <= 2
    assert steps[0].step >= done[-1]
    assert steps[-2].learning_rate == pytest.approx(1e-4)


def test_a_killed_training_has_the_time_that_its_last_state_had(work, images, start, tmp_path):
    training = finetune_steps(images, tmp_path, start=start, name="own", minutes=2)
    while next(training).psnr is None or work.now < 5050:
        pass
    shutil.copytree(tmp_path / "own-training", tmp_path / "kept")
    training.close()
    shutil.rmtree(tmp_path / "own-training")
    (tmp_path / "kept").rename(tmp_path / "own-training")
    saved = state_of(tmp_path)[1]["seconds"]
    assert saved > 40
    began = work.now
    list(finetune_steps(images, tmp_path, start=start, name="own", minutes=2))
    assert abs(work.now - began - (120 - saved)) <= 2


def test_a_finished_training_is_not_done_again_but_can_be_given_more_time(
    work, images, start, tmp_path
):
    list(finetune_steps(images, tmp_path, start=start, name="own", minutes=1))
    first, began = state_of(tmp_path)[1]["step"], work.now
    (again, _) = finetune_steps(images, tmp_path, start=start, name="own", minutes=1)
    assert (again.step, again.fraction, work.now) == (first, 1, began)
    with pytest.raises(ValueError, match=r"recipe\.minutes: 1(\.0)? there, 2 here"):
        next(finetune_steps(images, tmp_path, start=start, name="own", minutes=2))
    *_, last = finetune_steps(
        images, tmp_path, start=start, name="own", minutes=2, allow=("recipe.minutes",)
    )
    assert last.step > first
    assert abs(work.now - began - 60) <= 4


@pytest.mark.parametrize(("steps", "minutes", "ends"), [(20, 2, 20), (1000, 0.5, None)])
def test_of_steps_and_minutes_what_comes_first_ends_it(
    steps, minutes, ends, work, images, start, tmp_path
):
    began = work.now
    *_, last = finetune_steps(
        images, tmp_path, start=start, name="own", steps=steps, minutes=minutes
    )
    if ends is not None:
        assert last.step == ends
    else:
        assert abs(work.now - began - 60 * minutes) <= 2


def test_a_time_too_short_for_anything_is_one_step(work, images, start, tmp_path):
    *_, last = finetune_steps(images, tmp_path, start=start, name="own", minutes=0.01)
    assert (last.step, last.kind) == (1, "done")


def test_going_back_after_a_bad_batch_gives_no_time_back(
    work, images, start, tmp_path, monkeypatch
):
    real, calls = trainer_module._loss, itertools.count()
    monkeypatch.setattr(
        trainer_module,
        "_loss",
        lambda *arguments: real(*arguments) * (float("nan") if next(calls) == 60 else 1.0),
    )
    began = work.now
    with pytest.warns(RuntimeWarning, match="at half the learning rate"):
        list(finetune_steps(images, tmp_path, start=start, name="own", minutes=2))
    assert abs(work.now - began - 120) <= 2


def test_a_recipe_may_have_minutes_too(work, dataset, tmp_path):
    """Phases have their shares of the time; an epoch ends where it did."""
    began = work.now
    reports = [(work.now - began, report) for report in fit(RECIPE, dataset, tmp_path)]
    assert reports[-1][1].path == tmp_path / "timed.safetensors"
    seconds, last = next((when, report) for when, report in reports if report.fraction == 1)
    assert seconds == pytest.approx(60, abs=2)
    assert last.learning_rate == pytest.approx(RECIPE.lr * 0.01)
    pixels = {report.step: report.megapixels * 1e6 for _, report in reports}
    large = (pixels[last.step] - 256 * last.step) / (1024 - 256)
    assert large == pytest.approx(last.step / 2, abs=4)
    assert load_checkpoint(reports[-1][1].path).card.recipe["minutes"] == 1


def test_minutes_stand_in_a_recipe_and_are_checked(tmp_path):
    path = tmp_path / "timed.toml"
    path.write_text('base = "dn-fast"\nname = "timed"\nminutes = 9\n')
    assert load_recipe(path).minutes == 9
    assert "minutes" not in load_recipe("dn-fast").as_dict()
    with pytest.raises(ValueError, match="minutes must be .*, got -1"):
        dataclasses.replace(RECIPE, minutes=-1)


def test_other_programs_are_told_by_the_clock(work, start, tmp_path):
    for name, pixels in (("noisy", NOISY), ("clean", CLEAN)):
        np.save(tmp_path / f"{name}.npy", pixels)
    arguments = [
        "--noisy",
        tmp_path / "noisy.npy",
        "--clean",
        tmp_path / "clean.npy",
        "--start",
        start,
        "--out",
        tmp_path / "out",
    ]
    result = CliRunner().invoke(app, ["finetune", *map(str, arguments), "--minutes", "1", "--json"])
    assert result.exit_code == 0, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    told = [event for event in events if event["kind"] in ("step", "epoch")]
    assert told[0]["total_steps"] is None
    assert all(event["total_steps"] >= event["step"] for event in told[1:])
    assert [event["fraction"] for event in told] == sorted(event["fraction"] for event in told)
    assert (told[0]["fraction"], told[-1]["fraction"]) == (0, 1)
    assert all(0 <= event["seconds_left"] <= 60 for event in told)
