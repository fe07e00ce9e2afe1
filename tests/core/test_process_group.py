"""Training with several workers: processes that share each batch by torch's process group."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import warnings

import pytest
import torch
from skimage import data
from torch import distributed, multiprocessing

from dn_core.checkpoints import load_checkpoint
from dn_core.network_config import paper_config
from dn_core.training.data.clean_images import CleanImageDataset
from dn_core.training.loop import fit
from dn_core.training.process_group import ProcessGroup
from dn_core.training.recipes import Phase, Recipe
from dn_core.training.stages import train, train_stages

GAUSSIAN = ({"kind": "gaussian", "sigma": 25},)
CASCADE = Recipe(
    "grown",
    paper_config(5),
    GAUSSIAN,
    (Phase(6, batch=4, patch=16),),
    plan="cascade",
    epoch=2,
    drop=0.0,
)
ONCE = dataclasses.replace(CASCADE, plan="once")


pytestmark = pytest.mark.usefixtures("one_thread")


def small_dataset():
    return CleanImageDataset(
        tuple(picture()[:64, :64] for picture in (data.camera, data.coins, data.moon)),
        (data.page()[:64, :64],),
    )


def together(rank, folder):
    """What one of two workers does; what it saw is written to a file, for the tests to read."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    workers, cpu = ProcessGroup.of_process_group(), torch.device("cpu")
    options = {"precision": "float32", "workers": workers}
    train(CASCADE, small_dataset(), folder / f"whole-{rank}", **options)
    steps = train_stages(CASCADE, small_dataset(), folder / f"resumed-{rank}", **options)
    for _ in itertools.islice(steps, 5):  # amid the second stage
        pass
    steps.close()
    train(CASCADE, small_dataset(), folder / f"resumed-{rank}", **options)
    workers.check_equal([torch.arange(3.0)], cpu)
    timed = dataclasses.replace(
        ONCE, minutes=0.02, phases=(Phase(10**6, batch=4, patch=16),), epoch=10**6
    )
    epochs = [
        step
        for step in fit(timed, small_dataset(), folder / f"timed-{rank}", **options)
        if step.kind == "epoch"
    ]
    seen = {
        "by_the_clock": [(step.step, step.fraction) for step in epochs],
        "mean": workers.mean(float(rank), cpu),
        "of_first": workers.of_first(rank + 7.0, cpu),
        "all_true": workers.all_true(rank == 0, cpu),
        "other_weights": complaint(
            lambda: workers.check_equal([torch.full((3,), float(rank))], cpu)
        ),
        "state_of_one": complaint(
            lambda: next(fit(ONCE, small_dataset(), folder / f"alone-{rank}", **options))
        ),
        "poisoned": poisoned(folder / f"poisoned-{rank}", options),
    }
    (folder / f"seen-{rank}.json").write_text(json.dumps(seen))
    distributed.destroy_process_group()


def complaint(action):
    try:
        action()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


def poisoned(folder, options):
    """The weights of the second worker, and of it alone, become infinite after the first epoch."""
    run = fit(ONCE, small_dataset(), folder, **options)
    next(run)
    if options["workers"].rank == 1:
        with torch.no_grad():
            next(run.gi_frame.f_locals["trainer"].network.parameters()).fill_(float("inf"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = next(run).step
    run.close()
    return [done, *(str(item.message) for item in caught if item.category is RuntimeWarning)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    train(ONCE, small_dataset(), folder / "alone-0", precision="float32")
    shutil.copytree(folder / "alone-0", folder / "alone-1")
    multiprocessing.spawn(together, (folder,), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def seen(folder):
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in (0, 1)]


def test_two_workers_give_one_model_and_resume_with_the_same_weights(folder):
    models = [
        (folder / f"{run}-{rank}" / "grown.safetensors").read_bytes()
        for run in ("whole", "resumed")
        for rank in (0, 1)
    ]
    assert len(set(models)) == 1
    training = load_checkpoint(folder / "whole-0" / "grown.safetensors").card.training
    assert training["workers"] == 2
    assert training["megapixels"] == round(2 * 6 * 4 * 16**2 / 1e6, 1)


def test_means_are_over_all_and_decisions_the_first_ones(seen):
    assert [entry["mean"] for entry in seen] == [0.5, 0.5]
    assert [entry["of_first"] for entry in seen] == [7, 7]
    assert [entry["all_true"] for entry in seen] == [False, False]


def test_different_weights_are_noticed_by_all(seen):
    assert all("2 workers have different weights" in entry["other_weights"] for entry in seen)


def test_a_loss_that_is_not_finite_in_one_worker_takes_all_back(seen):
    for entry in seen:
        done, warning = entry["poisoned"]
        assert done == 2 * CASCADE.epoch
        assert "resuming from step 2 at half the learning rate" in warning


def test_a_run_of_one_worker_is_not_taken_up_by_two(seen):
    assert all("workers: 1 there, 2 here" in entry["state_of_one"] for entry in seen)


def test_workers_go_by_one_clock(seen):
    """Epochs and the end come at the same steps for all."""
    assert seen[0]["by_the_clock"] == seen[1]["by_the_clock"]
    assert seen[0]["by_the_clock"][-1][1] == 1


def test_a_batch_must_divide_by_the_workers(tmp_path):
    with pytest.raises(ValueError, match="got 4 patches for 3 workers"):
        next(fit(ONCE, small_dataset(), tmp_path, workers=ProcessGroup(0, 3)))
