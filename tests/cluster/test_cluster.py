"""Training on a real cluster: submitted jobs, and kills of workers, nodes and drivers."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib.util
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import loopback
import numpy as np
import pytest
from skimage import data
from toy import events, write_images, write_recipe

import dn_core
from dn_core.checkpoints import load_checkpoint
from dn_core.models import registry, remote

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed; it comes with the extra 'cluster'",
    ),
    pytest.mark.skipif(sys.platform != "linux", reason="the cluster of these tests needs Linux"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with loopback.cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with real images and recipes."""
    place = tmp_path_factory.mktemp("place")
    write_images(place / "images", 8, 160)
    write_recipe(place / "toy.toml", steps=40)
    write_recipe(
        place / "ds.toml",
        name="toy-ds",
        steps=8,
        block="separable",
        more='plan = "evolve"\nstart = "whole/toy.safetensors"',
    )
    return place


def arguments(place: Path, script: str, recipe: str, name: str, *more: str) -> tuple[str, ...]:
    options = (
        "--data",
        str(place / "images"),
        "--storage",
        str(place / "runs"),
        "--name",
        name,
        "--workers",
        "2",
    )
    return (f"distributed/{script}.py", str(place / recipe), *options, *more)


def output_of(process, code: int = 0) -> str:
    output, _ = process.communicate(timeout=500)
    assert process.returncode == code, output
    return output


@pytest.fixture(scope="module")
def whole(cluster, place) -> str:
    """Output of the job of an uninterrupted cascade."""
    return output_of(
        cluster.submit(*arguments(place, "cascade", "toy.toml", "whole", "--tensorboard"))
    )


@pytest.fixture(scope="module")
def evolved(whole, cluster, place) -> str:
    """Output of the job that evolves the cascade's network on packed images."""
    packed = output_of(
        cluster.drive(
            "distributed/pack.py", str(place / "images"), str(place / "pack"), "--shard", "3"
        )
    )
    assert "7 images in 3 shards, 1 held out" in packed
    return output_of(
        cluster.submit(*arguments(place, "evolve", "ds.toml", "ds", "--data", str(place / "pack")))
    )


def test_a_job_trains_a_cascade_stage_by_stage(whole, place):
    assert all(f"world_rank={rank}, local_rank=0, node_rank={rank}" in whole for rank in (0, 1))
    assert (
        whole.count("stage 1 of 2, epoch 10, step 40 of 40")
        == whole.count("stage 2 of 2, epoch 10, step 40 of 40")
        == 1
    )
    assert str(place / "runs" / "whole" / "toy.safetensors") in whole
    card = load_checkpoint(place / "runs" / "whole" / "toy.safetensors").card
    assert card.training["workers"] == 2
    assert [stage["layers"] for stage in card.training["stages"]] == [3, 5]
    stages = [
        load_checkpoint(place / "runs" / "whole" / f"stage-{number}.safetensors")
        for number in (0, 1)
    ]
    assert [stage.config.depth for stage in stages] == [3, 5]


def test_tensorboard_gets_metrics_and_an_example_image_of_each_epoch(whole, place):
    found = events(place / "runs" / "whole" / "tensorboard")
    for name in ("loss", "psnr", "learning_rate", "megapixels_per_second"):
        assert [event.step for event in found.Scalars(name)] == list(range(4, 81, 4)), name
    assert len(found.Images("noisy, denoised, clean")) > 0


def test_a_trained_network_is_evolved_on_packed_images(evolved, place):
    assert "7 images, 1 held out, 0 files skipped" in evolved
    model = dn_core.load_model(place / "runs" / "ds" / "toy-ds.safetensors")
    assert model.config.blocks == ("separable",)
    assert model.card.data["images"] == 7


# From the recipe to a user's image


@pytest.fixture
def web(place):
    """Address of a web server that serves the registry's folder."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/registry"
        server.shutdown()
        thread.join()


def test_models_trained_evolved_and_published_by_jobs_reach_a_users_image(
    whole, evolved, cluster, place, web, tmp_path, monkeypatch
):
    """`whole` is the cascade's job, `evolved` the evolution's; a third job publishes both."""
    monkeypatch.setenv("DN_MODELS", str(tmp_path / "models"))
    paths = {
        "toy": place / "runs" / "whole" / "toy.safetensors",
        "toy-ds": place / "runs" / "ds" / "toy-ds.safetensors",
    }
    options = (
        "--test",
        str(place / "images"),
        "--limit",
        "2",
        "--level",
        "gaussian 25",
        "--accept-worse",
        "trained for seconds",
    )
    said = output_of(
        cluster.submit(
            "distributed/publish.py",
            *map(str, paths.values()),
            "--to",
            str(place / "registry"),
            *options,
        )
    )
    assert [name for name in paths if f"{name}: published version 1" in said] == ["toy", "toy-ds"]

    assert {entry.name for entry in remote.remote_entries(web)} == {"toy", "toy-ds"}
    assert remote.fetch("toy", web).read_bytes() == paths["toy"].read_bytes()
    download_in_plugin(web, "toy-ds", tmp_path)
    noisy = data.camera()[:96, :96]
    for name, path in paths.items():
        assert name in registry.model_names()
        clean = dn_core.denoise(noisy, name)
        np.testing.assert_array_equal(clean, dn_core.denoise(noisy, path))
        assert not np.array_equal(clean, noisy)


def download_in_plugin(address: str, name: str, home: Path) -> None:
    """Download with the plugin's widget where there is a display, with the client elsewhere."""
    screen = [] if os.environ.get("DISPLAY") else ["xvfb-run", "--auto-servernum"]
    if importlib.util.find_spec("napari") is None or (screen and not shutil.which("xvfb-run")):
        remote.fetch(name, address)
        return
    command = [
        *screen,
        sys.executable,
        Path(__file__).with_name("download_in_plugin.py"),
        address,
        name,
    ]
    variables = {
        "HOME": str(home),
        "NAPARI_CONFIG": str(home / "settings.yaml"),
        "XDG_CACHE_HOME": str(home / "cache"),
    }
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "The registry has 2 models, 1 of them to download.",
        f"Downloaded {name}; it can be chosen in all lists of models.",
    ]


# Kills

VICTIMS = ("worker", "node", "driver")
KILLS = int(os.environ.get("DN_KILLS") or 3)  # 10 take some minutes more
LINE = re.compile(r"pid=(\d+)[^)]*\)\S* (?:resuming from (\S+)|stage (\d) of 2, epoch (\d+), step)")


class Survivor:
    """A run that is killed and restarted until it is done."""

    def __init__(self, cluster, place: Path, name: str) -> None:
        self.cluster, self.run, self.log = cluster, place / "runs" / name, place / f"{name}.log"
        self.command = arguments(place, "cascade", "toy.toml", name, "--max-failures", "20")
        self.kills: list[
            tuple[str, set[str]]
        ] = []  # the checkpoint recorded last, and the workers until then
        self.workers: set[str] = set()
        self.driver = cluster.drive(*self.command, log=self.log)

    def going(self) -> bool:
        """Whether it is still running; its workers' process ids are recorded."""
        self.workers |= {str(pid) for pid in self.cluster.processes("RayTrainWorker")}
        time.sleep(0.1)
        return self.driver.poll() is None

    def recorded(self) -> str:
        """The newest checkpoint in Ray's list."""
        try:
            return json.loads((self.run / "checkpoint_manager_snapshot.json").read_bytes())[
                "latest_checkpoint_result"
            ]["checkpoint_dir_name"]
        except FileNotFoundError:
            return ""

    def kill(self, victim: str, chance: random.Random) -> bool:
        """Kill some time after workers have started or saved; False if the run was quicker."""
        known, saved = set(self.workers), self.recorded()
        amid_training = chance.random() < 0.7
        while self.going() and (
            self.recorded() == saved if amid_training else self.workers == known
        ):
            pass
        end = time.monotonic() + chance.uniform(0, 3 if amid_training else 10)
        while self.going() and time.monotonic() < end:
            pass
        found = self.cluster.processes("RayTrainWorker")
        if not self.going() or (victim == "worker" and not found):
            return False
        self.kills.append((self.recorded(), set(self.workers)))
        if victim == "worker":
            os.kill(chance.choice(found), signal.SIGKILL)
        elif victim == "node":
            self.cluster.restart_node(chance.randrange(2))
        else:
            self.driver.kill()
            self.driver.wait()
            self.driver = self.cluster.drive(*self.command, log=self.log)
        return True

    def check(self) -> None:
        """It succeeded and never lost more than an epoch."""
        said = self.log.read_text()
        assert self.driver.wait(timeout=500) == 0, said
        # A node that was restarted prints what its workers said before once more.
        lines = "\n".join(dict.fromkeys(self.log.read_text().splitlines()))
        found = [match.groups() for match in LINE.finditer(lines)]
        for checkpoint, before in self.kills:
            assert all(
                resumed >= checkpoint for pid, resumed, *_ in found if resumed and pid not in before
            ), said
        done, worker = (0, 0), ""
        for pid, _, stage, epoch in found:
            if (
                stage
            ):  # one that reports its first epoch may repeat the last one that another reported
                assert (
                    (int(stage), int(epoch)) >= done
                    if pid != worker
                    else (int(stage), int(epoch)) > done
                ), said
                done, worker = (int(stage), int(epoch)), pid


@pytest.mark.timeout(1800)
def test_kills_at_random_moments_give_the_weights_of_an_uninterrupted_run(whole, cluster, place):
    """`KILLS` times `kill -9`, in as many runs as it takes; all end with the same bytes."""
    seed = int(os.environ.get("DN_SEED") or secrets.randbelow(10**6))
    print(f"DN_KILLS={KILLS} DN_SEED={seed} repeats the moments of these kills")
    chance = random.Random(seed)
    victims = [VICTIMS[number % len(VICTIMS)] for number in range(KILLS)]
    chance.shuffle(victims)
    for number in range(100):
        run = Survivor(cluster, place, f"killed-{number}")
        while victims and run.kill(victims[-1], chance):
            print(
                f"{run.run.name}: {victims.pop()} killed after {run.kills[-1][0] or 'nothing'}",
                flush=True,
            )
        while run.going():
            pass
        run.check()
        for name in ("stage-0", "stage-1", "toy"):
            left, expected = (
                place / "runs" / run / f"{name}.safetensors" for run in (run.run.name, "whole")
            )
            assert left.read_bytes() == expected.read_bytes(), name
        if not victims:
            break
    assert not victims


# A store in place of a shared folder


def test_a_run_in_s3_resumes_after_its_driver_was_killed(
    whole, cluster, place, s3_server, tmp_path
):
    with s3_server(cluster.run) as variables:
        command = arguments(place, "cascade", "toy.toml", "stored", "--storage", "s3://bucket/runs")
        first = cluster.submit(*command, log=tmp_path / "first.log", **variables)
        while "stage 1 of 2, epoch 3" not in (tmp_path / "first.log").read_text():
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            time.sleep(0.1)
        cluster.kill("python", "distributed/cascade.py")
        assert first.wait(timeout=120) == 1
        said = output_of(cluster.submit(*command, **variables))
        assert "resuming from checkpoint" in said
        assert "stage 1 of 2, epoch 1," not in said
        assert "already trained" in output_of(cluster.submit(*command, **variables))
        reading = (
            "import sys; from dn_cluster.storage import Storage; "
            "print(Storage.at(sys.argv[1]).read(sys.argv[2]).hex())"
        )
        stored = cluster.run(
            sys.executable,
            "-c",
            reading,
            "s3://bucket/runs/stored",
            "toy.safetensors",
            PYTHONPATH="distributed",
            **variables,
        )
        digest = hashlib.sha256(bytes.fromhex(output_of(stored))).hexdigest()
        assert (
            digest
            == hashlib.sha256(
                (place / "runs" / "whole" / "toy.safetensors").read_bytes()
            ).hexdigest()
        )


# Disks, damaged checkpoints


def test_a_run_on_a_full_disk_stops_and_resumes_when_there_is_space(whole, cluster, place):
    if cluster.small_disk is None:
        pytest.skip("a disk may not be mounted here")
    command = arguments(place, "cascade", "toy.toml", "full", "--storage", str(cluster.small_disk))
    said = output_of(cluster.drive(*command), 1)
    assert re.search(
        r"error: the storage must have \d+ bytes free, got \d+. Free disk space and run the same "
        r"command again: \S+/full\s*$",
        said,
    )
    assert not (cluster.small_disk / "full" / "toy.safetensors").exists()
    assert cluster.resize_disk("remount,size=64m")
    said = output_of(cluster.drive(*command))
    assert "resuming from checkpoint" in said
    expected = (place / "runs" / "whole" / "toy.safetensors").read_bytes()
    assert (cluster.small_disk / "full" / "toy.safetensors").read_bytes() == expected


def unfinished_copy(place: Path, name: str) -> tuple[Path, list[Path]]:
    """A copy of the whole run without its model: folder and checkpoints, newest first."""
    run = shutil.copytree(place / "runs" / "whole", place / "runs" / name)
    (run / "toy.safetensors").unlink()
    (run / "stage-1.safetensors").unlink()
    return run, sorted(run.glob("checkpoint_2*"), reverse=True)


def damage(checkpoint: Path) -> None:
    """Flip one bit of the state."""
    (path,) = checkpoint.rglob("state.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def check_like_whole(run: Path, place: Path) -> None:
    for name in ("stage-0", "stage-1", "toy"):
        assert (run / f"{name}.safetensors").read_bytes() == (
            place / "runs" / "whole" / f"{name}.safetensors"
        ).read_bytes()


def test_a_run_whose_newest_checkpoints_are_damaged_resumes_from_an_older_one(
    whole, cluster, place
):
    run, (newest, second, third) = unfinished_copy(place, "damaged")
    damage(second)
    (newest / "stages.json").unlink()
    said = output_of(cluster.drive(*arguments(place, "cascade", "toy.toml", "damaged")))
    assert f"{newest} is damaged: stages.json is missing" in said
    assert re.search(
        rf"{second} is damaged: stage-1/state.safetensors must have sha256 \w{{16}}\.\.\., "
        rf"got \w{{16}}\.\.\.",
        said,
    )
    assert said.count(" is damaged: ") == 2
    assert f"resuming from {third.name}" in said
    check_like_whole(run, place)


def test_a_run_with_a_damaged_list_of_checkpoints_resumes_from_the_newest_one(
    whole, cluster, place
):
    run, (newest, second, _) = unfinished_copy(place, "cut")
    shutil.rmtree(newest)
    path = run / "checkpoint_manager_snapshot.json"
    path.write_bytes(path.read_bytes()[:200])
    said = output_of(cluster.drive(*arguments(place, "cascade", "toy.toml", "cut")))
    assert re.search(
        rf"{path} cannot be read .*it was renamed to checkpoint_manager_snapshot.damaged.json",
        said,
    )
    assert f"resuming from {second.name}" in said
    check_like_whole(run, place)


def test_a_run_without_an_intact_checkpoint_is_refused_and_left(whole, cluster, place):
    run, checkpoints = unfinished_copy(place, "lost")
    for checkpoint in checkpoints:
        damage(checkpoint)
    before = {
        path: path.read_bytes()
        for path in run.rglob("*.*")
        if path.is_file() and "tensorboard" not in path.parts
    }
    said = output_of(cluster.drive(*arguments(place, "cascade", "toy.toml", "lost")), 1)
    (error,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert error.startswith("error: no checkpoint of lost is intact (")
    assert all(f"{checkpoint} is damaged: " in error for checkpoint in checkpoints)
    assert ".dnresnet-" not in said
    assert all(path.read_bytes() == content for path, content in before.items())


# What the cluster lacks

WATCH = """
import time
import ray
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get
ray.init(log_to_driver=False)
assert not is_autoscaler_v2()
last = None
while True:
    asked = (_internal_kv_get(b"autoscaler_resource_request") or b"[]").decode()
    if asked != last:
        print("asked for", asked, flush=True)
    last = asked
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def asked(cluster, tmp_path_factory):
    """A function that lists all autoscaler requests so far, from Ray's own store; "[]" is none."""
    log = tmp_path_factory.mktemp("asked") / "log"
    watcher = cluster.drive("-c", WATCH, log=log)
    wait_for(lambda: "asked for" in log.read_text(), watcher, log)
    yield lambda: re.findall("asked for (.*)", log.read_text())
    watcher.kill()


def check_withdrawn(asked, before: int) -> None:
    """Check that the request is withdrawn soon: Ray drops some by itself, but later."""
    end = time.monotonic() + 10
    while "[]" not in asked()[before:] and time.monotonic() < end:
        time.sleep(0.1)
    assert "[]" in asked()[before:], asked()


def wait_for(found, process, log: Path) -> None:
    while not found():
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)


def test_a_cluster_that_is_too_small_is_reported_and_the_request_withdrawn(asked, cluster, place):
    before = len(asked())
    said = output_of(
        cluster.drive(
            *arguments(place, "cascade", "toy.toml", "wrong", "--workers", "4", "--cpus", "2"),
            "--wait",
            "1",
        ),
        1,
    )
    assert (
        "the cluster must have room for 4 workers of 2 CPUs and 0 GPUs, got 3 nodes with 4 CPUs"
        in said
    )
    assert not (place / "runs" / "wrong" / "settings.json").exists()
    check_withdrawn(asked, before)
    assert json.dumps([{"CPU": 2.0}] * 4) in asked()[before:]


def test_the_autoscaler_request_of_a_stopped_job_is_withdrawn(asked, cluster, place, tmp_path):
    """Training begins when a node joins; then the driver gets the signal of `ray job stop`."""
    log, wanted = tmp_path / "stopped.log", json.dumps([{"CPU": 2.0}] * 3)
    write_recipe(place / "three.toml", name="three", steps=4000, batch=3)
    driver = cluster.drive(
        *arguments(place, "cascade", "three.toml", "three", "--workers", "3", "--cpus", "2"),
        "--wait",
        "300",
        log=log,
    )
    wait_for(lambda: asked()[-1] == wanted, driver, log)
    cluster.start_node(2, last=False)
    wait_for(lambda: "epoch 1, step" in log.read_text(), driver, log)
    before = len(asked())
    driver.terminate()
    driver.wait(timeout=120)
    check_withdrawn(asked, before)
    os.kill(cluster.processes("raylet", under=cluster.nodes[2])[0], signal.SIGKILL)
    cluster.nodes.pop(2).wait()


def test_a_folder_that_no_node_has_is_reported_without_waiting(cluster, place):
    said = output_of(
        cluster.drive(
            *arguments(place, "cascade", "toy.toml", "wrong", "--data", "/nowhere/at/all"),
            "--wait",
            "0",
        ),
        1,
    )
    assert "is missing /nowhere/at/all; every node must have the folder of images" in said
    assert not (place / "runs" / "wrong" / "settings.json").exists()


def test_the_node_without_the_images_is_named(cluster, place):
    if cluster.absent is None:
        pytest.skip("a folder cannot be hidden from a node here")
    images = shutil.copytree(place / "images", cluster.absent / "images")
    said = output_of(
        cluster.drive(*arguments(place, "cascade", "toy.toml", "wrong", "--data", str(images))), 1
    )
    assert (
        f"node {cluster.address(1)} is missing {images}; every node must have the folder of images"
        in said
    )
    assert not (place / "runs" / "wrong" / "settings.json").exists()


def test_a_family_continues_after_a_failure_and_then_trains_only_missing_models(cluster, place):
    for name, patch in {"one": 32, "two": 32, "three": 400}.items():
        write_recipe(place / f"{name}.toml", name=name, steps=8, patch=patch, more='plan = "once"')
    options = ("--data", str(place / "images"), "--storage", str(place / "family"))
    family = [str(place / f"{name}.toml") for name in ("one", "two", "three")]
    output, _ = (process := cluster.drive("distributed/family.py", *options, *family)).communicate(
        timeout=240
    )
    assert process.returncode == 1, output
    assert "error: 1 of 3 models failed: three." in output
    assert "at least 400x400 pixels" in output
    done = {
        name: (place / "family" / name / f"{name}.safetensors").stat().st_mtime_ns
        for name in ("one", "two")
    }
    said = output_of(cluster.drive("distributed/family.py", *options, *family[:2]))
    assert [line.split()[:2] for line in said.splitlines()[-2:]] == [
        ["one", "done"],
        ["two", "done"],
    ]
    assert done == {
        name: (place / "family" / name / f"{name}.safetensors").stat().st_mtime_ns
        for name in ("one", "two")
    }
