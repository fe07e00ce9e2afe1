"""Training on a real cluster: a head and two nodes, jobs submitted as a user would, workers and drivers killed."""

from __future__ import annotations

import importlib.util
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed; it comes with the extra 'cluster'"),
    pytest.mark.skipif(sys.platform != "linux", reason="the cluster of these tests needs Linux"),
]

RECIPE = """
base = "paper-blind"
name = "toy"
epoch = 4
drop = 0

[network]
family = "paper"
layers = 5

[[phase]]
steps = 40
batch = 4
patch = 32
"""
EVOLVED = RECIPE.replace('"toy"', '"toy-ds"').replace("layers = 5", 'layers = 5\nblock = "separable"').replace("40", "8")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    import loopback

    with loopback.cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with real images and recipes."""
    from PIL import Image
    from skimage import data

    place = tmp_path_factory.mktemp("place")
    (place / "images").mkdir()
    for picture in (data.camera, data.coins, data.moon, data.page, data.text, data.clock, data.brick, data.grass):
        Image.fromarray(picture()[:160, :160]).save(place / "images" / f"{picture.__name__}.png")
    (place / "toy.toml").write_text(RECIPE)
    (place / "ds.toml").write_text('plan = "evolve"\nstart = "whole/toy.safetensors"\n' + EVOLVED)
    return place


def arguments(place: Path, script: str, recipe: str, name: str, *more: str) -> tuple[str, ...]:
    options = ("--data", str(place / "images"), "--storage", str(place / "runs"), "--name", name, "--workers", "2")
    return (f"distributed/{script}.py", str(place / recipe), *options, *more)


def output_of(process) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def whole(cluster, place) -> str:
    """An uninterrupted cascade: what its job said."""
    return output_of(cluster.submit(*arguments(place, "cascade", "toy.toml", "whole")))


def test_a_job_trains_a_cascade_stage_by_stage(whole, place):
    from dn_core.checkpoints import load_checkpoint

    assert all(f"world_rank={rank}, local_rank=0, node_rank={rank}" in whole for rank in (0, 1))
    assert whole.count("stage 1 of 2, epoch 10, step 40 of 40") == whole.count("stage 2 of 2, epoch 10, step 40 of 40") == 1
    assert str(place / "runs" / "whole" / "toy.safetensors") in whole
    card = load_checkpoint(place / "runs" / "whole" / "toy.safetensors").card
    assert card.training["workers"] == 2
    assert [stage["layers"] for stage in card.training["stages"]] == [3, 5]
    stages = [load_checkpoint(place / "runs" / "whole" / f"stage-{number}.safetensors") for number in (0, 1)]
    assert [stage.config.depth for stage in stages] == [3, 5]


def test_a_trained_network_is_evolved_on_packed_images_and_denoises(whole, cluster, place):
    from skimage import data

    import dn_core

    packed = output_of(cluster.drive("distributed/pack.py", str(place / "images"), str(place / "pack"), "--shard", "3"))
    assert "7 images in 3 shards, 1 held out" in packed
    said = output_of(cluster.drive(*arguments(place, "evolve", "ds.toml", "ds", "--data", str(place / "pack"))))
    assert "7 images, 1 held out, 0 files skipped" in said
    model = dn_core.load_model(place / "runs" / "ds" / "toy-ds.safetensors")
    assert model.config.blocks == ("separable",)
    assert model.card.data["images"] == 7
    noisy = data.camera()[:96, :96]
    clean = dn_core.denoise(noisy, model=place / "runs" / "ds" / "toy-ds.safetensors")
    assert clean.shape == noisy.shape
    assert not np.array_equal(clean, noisy)


def wait_for(path: Path, process) -> None:
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)


def test_killed_workers_and_drivers_leave_the_weights_of_a_whole_run(whole, cluster, place):
    """A worker is killed amid the first stage and the driver amid the second; the same command then goes on."""
    run = place / "runs" / "killed"
    first = cluster.drive(*arguments(place, "cascade", "toy.toml", "killed"))
    wait_for(run / "checkpoint_manager_snapshot.json", first)
    time.sleep(0.5)
    cluster.kill("RayTrainWorker")
    wait_for(run / "stage-0.safetensors", first)
    time.sleep(0.5)
    first.kill()
    said, _ = first.communicate(timeout=240)
    assert first.returncode == -signal.SIGKILL
    assert "resuming from checkpoint" in said
    assert not (run / "toy.safetensors").exists()
    said = output_of(cluster.drive(*arguments(place, "cascade", "toy.toml", "killed")))
    assert "resuming from checkpoint" in said
    assert "stage 1 of 2" not in said
    assert (run / "toy.safetensors").read_bytes() == (place / "runs" / "whole" / "toy.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--workers", "4", "--cpus", "2"), "4 workers of 2 CPUs and 0 GPUs are asked for; the cluster has 3 nodes with 4 CPUs"),
        (("--data", "/nowhere/at/all"), "has no /nowhere/at/all; the folder of images is expected on every node"),
    ],
)
def test_what_the_cluster_cannot_do_is_said_instead_of_waiting(more, sentence, cluster, place):
    process = cluster.drive(*arguments(place, "cascade", "toy.toml", "wrong"), "--wait", "0", *more)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert sentence in output
    assert not (place / "runs" / "wrong" / "settings.json").exists()


def test_a_family_goes_on_past_a_failure_and_then_does_only_what_is_missing(cluster, place):
    for name in ("one", "two"):
        once = RECIPE.replace('"toy"', f'"{name}"').replace("steps = 40", "steps = 8") + "\n"
        (place / f"{name}.toml").write_text('plan = "once"\n' + once)
    (place / "three.toml").write_text((place / "two.toml").read_text().replace('"two"', '"three"').replace("patch = 32", "patch = 400"))
    options = ("--data", str(place / "images"), "--storage", str(place / "family"))
    family = [str(place / f"{name}.toml") for name in ("one", "two", "three")]
    output, _ = (process := cluster.drive("distributed/family.py", *options, *family)).communicate(timeout=240)
    assert process.returncode == 1, output
    assert "error: 1 of 3 models failed: three." in output
    assert "at least 400x400 is expected" in output
    done = {name: (place / "family" / name / f"{name}.safetensors").stat().st_mtime_ns for name in ("one", "two")}
    said = output_of(cluster.drive("distributed/family.py", *options, *family[:2]))
    assert [line.split()[:2] for line in said.splitlines()[-2:]] == [["one", "done"], ["two", "done"]]
    assert done == {name: (place / "family" / name / f"{name}.safetensors").stat().st_mtime_ns for name in ("one", "two")}
