"""Publishing to folders and object stores, with real processes that compete and are killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from web_server import write_model

import dn_core
import publish
from dn_cluster import candidates, registry_writer
from dn_core.errors import RegistryError
from dn_core.models import remote
from dn_core.models.index import MAX_INDEX_BYTES, index_bytes, parse_index

SCRIPT = Path(__file__).parents[2] / "distributed" / "publish.py"
posix = pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")


@pytest.fixture(autouse=True)
def models_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DN_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def images(tmp_path):
    """A folder with two small clean images."""
    folder = tmp_path / "test-images"
    folder.mkdir()
    y, x = np.mgrid[:48, :48]
    for name, period in (("a", 5), ("b", 9)):
        Image.fromarray(
            (127 + 100 * np.sin(x / period) * np.cos(y / period)).astype(np.uint8)
        ).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def store():
    """An empty object store in memory."""
    files = fsspec.filesystem("memory")
    yield "memory://registry"
    with contextlib.suppress(FileNotFoundError):
        files.rm("/registry", recursive=True)


# Models whose last layer is small change the image little and in a known order: the random
# network's output is no estimate of the noise.
SCALES = {"good": 0.001, "worse": 0.2, "far worse": 1.0}


def model(tmp_path, quality, name="lab"):
    return write_model(
        tmp_path / f"{name}-{quality.replace(' ', '-')}.safetensors", name, SCALES[quality]
    )


def run(*arguments, **options):
    """Run the script as users do, with the dn_core of the checkout only."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, SCRIPT, *arguments, "--level", "gaussian 25"]
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
        **options,
    )


def publish_here(models, to, images, **options):
    """Publish in this process."""
    settings = {"levels": ["gaussian 25"], "reason": "small random networks"} | options
    publish.publish_models(models, str(to), publish.ScoringSettings(images, **settings))


def index_of(folder):
    return json.loads((folder / "index.json").read_text("utf-8"))


def test_a_published_model_is_listed_fetched_and_used(tmp_path, images):
    registry = tmp_path / "registry"
    result = run(
        model(tmp_path, "far worse"),
        "--to",
        registry,
        "--test",
        images,
        "--accept-worse",
        "a random network",
    )
    assert result.returncode == 0, result.stderr
    assert "lab: published version 1" in result.stdout
    (entry,) = remote.remote_entries(registry)
    assert entry.file == f"lab-{entry.sha256[:16]}.safetensors"
    assert entry.card().scores.keys() == {"gaussian 25"}
    assert remote.fetch("lab", registry).read_bytes() == model(tmp_path, "far worse").read_bytes()
    assert dn_core.denoise(np.ones((40, 40), np.float32), "lab").shape == (40, 40)


def test_publishing_again_changes_nothing(tmp_path, images):
    registry = tmp_path / "registry"
    publish_here([model(tmp_path, "good")], registry, images)
    before = {path.name: path.stat().st_mtime_ns for path in registry.iterdir()}
    publish_here([model(tmp_path, "good")], registry, images)
    assert {path.name: path.stat().st_mtime_ns for path in registry.iterdir()} == before


def test_a_new_version_leaves_the_old_file(tmp_path, images):
    registry = tmp_path / "registry"
    publish_here([model(tmp_path, "worse")], registry, images)
    (old,) = index_of(registry)["models"]
    publish_here([model(tmp_path, "good")], registry, images)
    (new,) = index_of(registry)["models"]
    assert (old["version"], new["version"], index_of(registry)["sequence"]) == (1, 2, 2)
    assert new["replaces"] == {"version": 1, "sha256": old["sha256"]}
    assert (registry / old["file"]).read_bytes() == model(tmp_path, "worse").read_bytes()
    assert index_of(registry)["older"] == [old]
    assert remote.fetch("lab", registry).read_bytes() == model(tmp_path, "good").read_bytes()
    assert remote.fetch("lab@1", registry).read_bytes() == model(tmp_path, "worse").read_bytes()
    publish_here([model(tmp_path, "good")], registry, images)  # changes nothing
    assert index_of(registry)["sequence"] == 2


def test_a_model_that_is_worse_than_what_it_replaces_is_refused(tmp_path, images):
    registry = tmp_path / "registry"
    publish_here([model(tmp_path, "good")], registry, images)
    before = (registry / "index.json").read_bytes()
    worse = model(tmp_path, "worse")
    with pytest.raises(
        ValueError,
        match=r"lab is worse than version 1 .* by [\d.]+ dB at gaussian 25; at most 0.02 dB is "
        r"allowed",
    ):
        publish_here([worse], registry, images, reason="")
    assert (registry / "index.json").read_bytes() == before
    assert len(list(registry.glob("*.safetensors"))) == 1
    publish_here([worse], registry, images, reason="half the size")
    (record,) = index_of(registry)["models"]
    assert record["version"] == 2
    assert record["accepted_worse"]["reason"] == "half the size"
    assert record["accepted_worse"]["by"]["gaussian 25"] > 0.02


def test_a_loss_within_the_tolerance_is_no_loss(tmp_path, images):
    registry = tmp_path / "registry"
    publish_here([model(tmp_path, "good")], registry, images)
    noisy = index_of(registry)["models"][0]["scores"]["gaussian 25"]
    regressions, old = candidates.regressions, {"x": noisy}
    assert regressions({"x": noisy - 0.01}, old, 0.02) == {}
    assert regressions({"x": noisy - 0.03}, old, 0.02) == {"x": pytest.approx(0.03)}
    assert regressions({"x": float("nan")}, old, 0.02).keys() == {"x"}


def test_a_model_that_only_adds_noise_is_refused(tmp_path, images):
    registry = tmp_path / "registry"
    with pytest.raises(ValueError, match="lab is worse than the noisy image by"):
        publish_here([model(tmp_path, "far worse")], registry, images, reason="")
    assert not (registry / "index.json").exists()


def test_a_trained_model_passes_the_gate(tmp_path, images):
    renamed = dn_core.models.registry.add(
        dn_core.models.registry.resolve("dn-resnet-13"), "lab-13"
    ).path
    publish_here([renamed], tmp_path / "registry", images, reason="")
    (record,) = index_of(tmp_path / "registry")["models"]
    assert "accepted_worse" not in record
    assert record["scores"]["gaussian 25"] > 28


def test_several_models_are_published_together_or_not_at_all(tmp_path, images):
    registry = tmp_path / "registry"
    good, other = model(tmp_path, "good"), model(tmp_path, "good", "other")
    publish_here([good, other], registry, images)
    assert [record["name"] for record in index_of(registry)["models"]] == ["lab", "other"]
    before = (registry / "index.json").read_bytes()
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged.safetensors"):
        publish_here([model(tmp_path, "worse"), tmp_path / "damaged.safetensors"], registry, images)
    assert (registry / "index.json").read_bytes() == before


@pytest.mark.parametrize("name", ["../evil", "dn-fast", "UPPER", "x" * 101])
def test_names_that_no_user_could_fetch_are_refused(name, tmp_path, images):
    path = write_model(tmp_path / "m.safetensors", name)
    with pytest.raises(ValueError, match="cannot be named|name of a bundled model"):
        publish_here([path], tmp_path / "registry", images)
    assert list(tmp_path.rglob("index.json")) == []


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-30], lambda content: b"", lambda content: b"[]"]
)
def test_a_damaged_index_is_refused_and_left(damage, tmp_path, images):
    registry = tmp_path / "registry"
    publish_here([model(tmp_path, "good")], registry, images)
    content = damage((registry / "index.json").read_bytes())
    (registry / "index.json").write_bytes(content)
    with pytest.raises(RegistryError, match=f"^{registry}/index.json "):
        publish_here([model(tmp_path, "worse")], registry, images)
    assert (registry / "index.json").read_bytes() == content


def test_a_damaged_published_file_is_noticed_and_repaired(tmp_path, images):
    registry = tmp_path / "registry"
    good = model(tmp_path, "good")
    publish_here([good], registry, images)
    path = registry / index_of(registry)["models"][0]["file"]
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is not the file that the index lists"):
        publish_here([model(tmp_path, "worse")], registry, images)
    publish_here([good], registry, images)
    assert path.read_bytes() == good.read_bytes()


def test_wrong_arguments_are_reported_in_one_line(tmp_path, images):
    good = model(tmp_path, "good")
    for arguments, message in {
        ("--to", "https://example.org/models", "--test", images): "can only be read",
        ("--to", "ftp://example.org/models", "--test", images): "neither a folder",
        ("--to", tmp_path / "registry", "--test", tmp_path / "nothing"): "nothing",
        (
            "--to",
            tmp_path / "registry",
            "--test",
            images,
            "--level",
            "gaussian 26",
        ): "got 'gaussian 26'",
    }.items():
        result = CliRunner().invoke(publish.app, [str(good), *map(str, arguments)])
        assert result.exit_code == 1, arguments
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_models_are_published_to_an_object_store(store, tmp_path, images):
    publish_here([model(tmp_path, "worse")], store, images)
    publish_here([model(tmp_path, "good")], store + "/", images)
    (entry,) = remote.remote_entries(store)
    assert entry.version == 2
    assert remote.fetch("lab", store).read_bytes() == model(tmp_path, "good").read_bytes()
    with pytest.raises(ValueError, match="worse than version 2"):
        publish_here([model(tmp_path, "far worse")], store, images, reason="")


# Two publishers

# A program that begins with the script as a module.
LOADED = """
import sys
from pathlib import Path
sys.path.append(str(Path(sys.argv[1]).parent))
from dn_cluster import candidates, registry_writer
"""


@pytest.mark.parametrize("where", ["folder", "store"])
def test_a_model_replaced_while_ours_was_scored_is_not_replaced_again(
    where, store, tmp_path, images
):
    to = (
        store
        if where == "store"
        else str(registry_writer.open_registry(str(tmp_path / "registry")))
    )
    publish_here([model(tmp_path, "worse")], to, images)
    seen = registry_writer.read_index(to)
    (ours,) = candidates.read_candidates([model(tmp_path, "far worse")])
    publish_here([model(tmp_path, "good")], to, images)  # the other publisher
    with pytest.raises(
        RegistryError,
        match=r"changed by another publisher \(sequence number 2, 1 when scoring began\)",
    ):
        registry_writer.publish(to, [(ours, ours.record(2, {}))], seen)
    (entry,) = remote.remote_entries(to)
    assert (entry.version, entry.sha256) == (
        2,
        candidates.read_candidates([model(tmp_path, "good")])[0].sha256,
    )


def test_publishers_of_different_models_share_a_folder(tmp_path, images):
    registry = tmp_path / "registry"
    paths = [model(tmp_path, "good", f"lab-{number}") for number in range(3)]
    command = [
        sys.executable,
        SCRIPT,
        "--to",
        registry,
        "--test",
        images,
        "--level",
        "gaussian 25",
        "--accept-worse",
        "x",
    ]
    children = [
        subprocess.Popen([*map(str, command), str(path)], stderr=subprocess.PIPE) for path in paths
    ]
    results = [(child.communicate(timeout=300)[1], child.returncode) for child in children]
    assert [code for _, code in results] == [0] * 3, results
    assert [record["name"] for record in index_of(registry)["models"]] == [
        "lab-0",
        "lab-1",
        "lab-2",
    ]
    assert index_of(registry)["sequence"] == 3
    for number in range(3):
        assert remote.fetch(f"lab-{number}", registry)


@posix
def test_concurrent_publishers_of_a_model_never_replace_a_version_unseen(tmp_path, images):
    """Each version records which one it replaced; a publisher that was too late reports it."""
    registry = tmp_path / "registry"
    command = [
        sys.executable,
        SCRIPT,
        "--to",
        registry,
        "--test",
        images,
        "--level",
        "gaussian 25",
        "--accept-worse",
        "x",
    ]
    children = [
        subprocess.Popen(
            [*map(str, command), str(model(tmp_path, quality))], stderr=subprocess.PIPE, text=True
        )
        for quality in SCALES
    ]
    outcomes = [(child.communicate(timeout=300)[1], child.returncode) for child in children]
    done = sum(code == 0 for _, code in outcomes)
    assert done >= 1
    assert all(
        text.startswith("error: ") and "changed by another publisher" in text
        for text, code in outcomes
        if code
    )
    (record,) = index_of(registry)["models"]
    assert (record["version"], index_of(registry)["sequence"]) == (done, done)
    assert remote.fetch("lab", registry)


# Once a model is scored, no file may be larger than this many bytes: writing then fails as on a
# full disk.
FULL = (
    LOADED
    + """
import resource
(candidate,) = candidates.read_candidates([Path(sys.argv[3])])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
seen = registry_writer.read_index(sys.argv[2])
releases = [(candidate, candidate.record(2, {}))]
from dn_cluster.command import run_and_report
run_and_report(lambda: registry_writer.publish(sys.argv[2], releases, seen), False)
"""
)


@posix
@pytest.mark.parametrize("what", ["model", "index"])
def test_a_full_disk_leaves_the_registry_as_it_was(what, tmp_path, images):
    registry, good = tmp_path / "registry", model(tmp_path, "good")
    publish_here([model(tmp_path, "worse")], registry, images)
    if what == "index":  # the model's file is there, only the index is left to be written
        (candidate,) = candidates.read_candidates([good])
        (registry / candidate.record(2, {})["file"]).write_bytes(candidate.content)
    before = {path.name: path.read_bytes() for path in registry.iterdir()}
    limit = {"model": good.stat().st_size // 2, "index": 100}[what]
    command = [sys.executable, "-c", FULL, SCRIPT, registry, good, limit]
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=300
    )
    expected = (
        r"error: the file cannot be written \(File too large\); the index is unchanged. Free disk "
        rf"space, or change the permissions: {registry}/\S+\n"
    )
    assert re.match(expected, result.stderr), result.stderr
    assert {path.name: path.read_bytes() for path in registry.iterdir()} == before
    publish_here([good], registry, images)
    assert remote.fetch("lab", registry).read_bytes() == good.read_bytes()


# Killed publishers

# For each line that it is sent, a process that publishes version after version as fast as it can:
# kills then hit any point of it.
ENDLESS = (
    LOADED
    + """
import os
models = [candidates.read_candidates([Path(path)])[0] for path in sys.argv[3:]]
for _ in sys.stdin:
    if not (pid := os.fork()):
        while True:
            seen = registry_writer.read_index(sys.argv[2])
            model = models[seen.sequence % len(models)]
            releases = [(model, model.record(seen.sequence + 1, {}))]
            registry_writer.publish(sys.argv[2], releases, seen)
    print(pid, flush=True)
    os.waitpid(pid, 0)
"""
)


@posix
def test_a_registry_is_readable_whenever_its_publisher_is_killed(tmp_path):
    registry = tmp_path / "registry"
    registry.mkdir()
    paths = [
        write_model(tmp_path / f"{number}.safetensors", "lab", 1 + number / 10)
        for number in range(3)
    ]
    contents = [path.read_bytes() for path in paths]
    randomly = random.Random(0)
    sequence = 0
    command = [sys.executable, "-c", ENDLESS, str(SCRIPT), str(registry), *map(str, paths)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        for kill in range(60):
            print(file=parent.stdin, flush=True)
            pid = int(parent.stdout.readline())
            end = time.monotonic() + (5 if kill == 0 else randomly.uniform(0, 0.1))
            while time.monotonic() < end and not (kill == 0 and sequence):
                if (registry / "index.json").exists():
                    sequence = read_all(registry, sequence)
            os.kill(pid, signal.SIGKILL)
            sequence = read_all(registry, sequence)
            assert remote.fetch("lab", registry).read_bytes() in contents
        parent.stdin.close()
    assert (
        sequence > 20
    )  # or hardly any publisher was killed at work; a busy machine has about one version a kill


def read_all(registry, at_least):
    """Read as a client may at any moment: a complete index, never an older one, complete files."""
    index = parse_index((registry / "index.json").read_bytes(), str(registry), "remote")
    assert index.sequence >= at_least
    for entry in index.entries:
        content = (registry / entry.file).read_bytes()
        assert len(content) == entry.bytes
        assert hashlib.sha256(content).hexdigest() == entry.sha256
    return index.sequence


# The S3 protocol


on_s3 = pytest.mark.filterwarnings(  # the S3 libraries leave connections open
    "ignore::ResourceWarning",
    "ignore::DeprecationWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


@pytest.fixture(scope="module")
def s3_variables(s3_server):
    """Environment variables for clients of a server of the S3 protocol."""

    def start(*command, **variables):
        return subprocess.Popen(
            command,
            env={**os.environ, **variables},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    with s3_server(start) as variables:
        yield variables


@pytest.fixture
def s3(s3_variables, monkeypatch, request):
    """An empty address in a bucket."""
    for name, value in s3_variables.items():
        monkeypatch.setenv(name, value)
    yield f"s3://bucket/{request.node.name}"
    type(fsspec.filesystem("s3")).clear_instance_cache()


@on_s3
def test_models_are_published_to_s3_and_fetched_from_there(s3, tmp_path, images):
    result = run(
        model(tmp_path, "worse"), "--to", s3, "--test", images, "--accept-worse", "a random network"
    )
    assert result.returncode == 0, result.stderr
    assert "Publish to it from one machine" not in result.stderr
    publish_here([model(tmp_path, "good")], s3, images)
    (entry,) = remote.remote_entries(s3)
    assert entry.version == 2
    assert remote.fetch("lab", s3).read_bytes() == model(tmp_path, "good").read_bytes()
    store = fsspec.filesystem("s3")
    store.pipe_file(f"{s3}/index.json", index_bytes(1, []))
    with pytest.raises(RegistryError, match="sequence number of at least 2, as before, got 1"):
        remote.remote_entries(s3)
    store.pipe_file(f"{s3}/index.json", b"")
    with pytest.raises(
        RegistryError, match="index.json must be JSON .*, got damaged or cut-off content"
    ):
        remote.remote_entries(s3)
    store.pipe_file(f"{s3}/index.json", b" " * (MAX_INDEX_BYTES + 1))
    with pytest.raises(RegistryError, match="must have at most 5000000 bytes, got more"):
        remote.remote_entries(s3)
    with pytest.raises(FileNotFoundError, match="no such file in the registry"):
        remote.remote_entries("s3://bucket/elsewhere")


def together(action, arguments):
    """Call it with each of the arguments at once; the results, or the errors raised."""
    barrier = threading.Barrier(len(arguments))

    def one(argument):
        barrier.wait()
        try:
            return action(argument)
        except RegistryError as error:
            return error

    with ThreadPoolExecutor(len(arguments)) as threads:
        return list(threads.map(one, arguments))


def candidate(tmp_path, name, scale=0.001):
    (found,) = candidates.read_candidates(
        [write_model(tmp_path / f"{name}-{scale}.safetensors", name, scale)]
    )
    return found


@on_s3
def test_concurrent_publishers_to_s3_all_succeed(s3, tmp_path):
    """Both without an index, and with one."""
    for number, letter in enumerate("ab"):
        seen = registry_writer.read_index(s3)
        models = [candidate(tmp_path, f"{letter}-{index}") for index in range(10)]
        sequences = together(
            lambda one, seen=seen: registry_writer.publish(s3, [(one, one.record(1, {}))], seen),
            models,
        )
        assert sorted(sequences) == list(range(10 * number + 1, 10 * number + 11))
        offered = {entry.name: entry.sha256 for entry in remote.remote_entries(s3)}
        assert offered.items() >= {one.name: one.sha256 for one in models}.items()
    assert len(offered) == 20
    assert registry_writer.read_index(s3).sequence == 20


@on_s3
def test_of_concurrent_publishers_of_one_model_to_s3_one_succeeds(s3, tmp_path):
    seen = registry_writer.read_index(s3)
    models = [candidate(tmp_path, "lab", 0.001 * number) for number in range(1, 7)]
    outcomes = together(
        lambda one: registry_writer.publish(s3, [(one, one.record(1, {}))], seen), models
    )
    (winner,) = [one for one, outcome in zip(models, outcomes, strict=True) if outcome == 1]
    lost = [str(outcome) for outcome in outcomes if outcome != 1]
    assert len(lost) == 5
    assert all(
        "changed by another publisher (sequence number 1, 0 when scoring began)" in said
        for said in lost
    )
    assert [entry.sha256 for entry in remote.remote_entries(s3)] == [winner.sha256]


@on_s3
def test_publishing_again_after_a_lost_answer_succeeds(s3, tmp_path):
    """The connection may break after the store has written: s3fs then writes the same again."""
    seen, ours, other = (
        registry_writer.read_index(s3),
        candidate(tmp_path, "lab"),
        candidate(tmp_path, "other"),
    )
    assert registry_writer.publish(s3, [(ours, ours.record(1, {}))], seen) == 1
    assert registry_writer.publish(s3, [(other, other.record(1, {}))], seen) == 2
    assert registry_writer.publish(s3, [(ours, ours.record(1, {}))], seen) == 2
    assert len(remote.remote_entries(s3)) == 2


@on_s3
def test_readers_of_s3_see_a_complete_index_while_it_is_replaced(s3, tmp_path):
    models = [candidate(tmp_path, "lab", scale) for scale in (0.1, 0.2)]
    stop = threading.Event()

    def publish_on():
        while not stop.is_set():
            seen = registry_writer.read_index(s3)
            one = models[seen.sequence % 2]
            registry_writer.publish(
                s3,
                [
                    (
                        one,
                        one.record(
                            seen.sequence + 1, {"padding": "x" * (seen.sequence % 7 * 1000)}
                        ),
                    )
                ],
                seen,
            )

    with ThreadPoolExecutor(1) as thread:
        publishing = thread.submit(publish_on)
        versions = []
        try:
            while len(set(versions)) < 20 and not publishing.done():
                with contextlib.suppress(FileNotFoundError):
                    (entry,) = remote.remote_entries(s3)
                    versions.append(entry.version)
        finally:
            stop.set()
        publishing.result()
    assert versions == sorted(versions)
    assert len(set(versions)) == 20


@on_s3
@pytest.mark.parametrize("where", ["a store in memory", "a server that ignores conditions"])
def test_a_store_without_conditional_writes_is_warned_of(where, store, s3, tmp_path, capsys):
    to = store if where == "a store in memory" else s3.replace("bucket", "careless")
    one = candidate(tmp_path, "lab")
    registry_writer.publish(to, [(one, one.record(1, {}))], registry_writer.read_index(to))
    assert capsys.readouterr().err == (
        f"{to}: this store cannot keep publishers from overwriting each other's index. Publish "
        "to it from one machine at a time.\n"
    )
    assert [entry.sha256 for entry in remote.remote_entries(to)] == [one.sha256]
