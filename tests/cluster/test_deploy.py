"""Deployment files and documents: they parse, name the tested Ray and use existing options only."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "distributed" / "deploy"
SCRIPTS = sorted(path.stem for path in (ROOT / "distributed").glob("*.py"))
TEXTS = [
    ROOT / "distributed" / "README.md",
    *sorted(DEPLOY.iterdir()),
    *sorted((ROOT / "distributed").glob("*.py")),
]


def pinned() -> str:
    return re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def commands() -> list[tuple[str, str]]:
    """Script name and arguments of every command in the documents."""
    found = []
    for path in TEXTS:
        text = re.sub(r"\\\n\s*|>-\n\s*|\n\s+(?=--)", " ", path.read_text())  # lines that go on
        found += re.findall(r"python \S*distributed/(\w+)\.py\b([^\n]*)", text)
    return found


@pytest.fixture(scope="module")
def options():
    """The options of each script, from its help."""
    environment = {**os.environ, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    helps = {
        name: subprocess.run(
            [sys.executable, ROOT / "distributed" / f"{name}.py", "--help"],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        ).stdout
        for name in SCRIPTS
    }
    return {name: set(re.findall(r"--[a-z][a-z-]+", text)) for name, text in helps.items()}


def test_documents_use_every_script() -> None:
    assert {name for name, _ in commands()} == set(SCRIPTS)


def test_commands_use_existing_options(options) -> None:
    for name, arguments in commands():
        words = shlex.split(arguments.split("   #")[0], comments=False)
        assert {word for word in words if word.startswith("--")} <= options[name], arguments


@pytest.mark.parametrize("path", [TEXTS[0], *sorted(DEPLOY.iterdir())], ids=lambda path: path.name)
def test_the_version_of_ray_is_the_pinned_one(path: Path) -> None:
    assert set(
        re.findall(r"(?:\bray-|rayVersion: \"|\bRay )(\d+\.\d+\.\d+)", path.read_text())
    ) == {pinned()}


def test_the_kubernetes_job_is_consistent() -> None:
    job = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    pods = [
        cluster["headGroupSpec"]["template"]["spec"],
        *(group["template"]["spec"] for group in cluster["workerGroupSpecs"]),
    ]
    for pod in pods:
        mounted = {
            mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]
        }
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    (group,) = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    words = shlex.split(job["spec"]["entrypoint"])
    asked = {name: int(words[words.index(name) + 1]) for name in ("--workers", "--cpus", "--gpus")}
    assert asked["--workers"] <= group["replicas"]
    assert (asked["--cpus"], asked["--gpus"]) <= (int(limits["cpu"]), int(limits["nvidia.com/gpu"]))


def test_the_slurm_script_parses() -> None:
    subprocess.run(["bash", "-n", DEPLOY / "slurm.sh"], check=True)


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed; it comes with the extra 'cluster'",
)
def test_ray_up_accepts_the_machines_file(tmp_path) -> None:
    program = (
        "import sys, yaml; from ray.autoscaler._private.util import prepare_config, "
        "validate_config; "
        "validate_config(prepare_config(yaml.safe_load(open(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, DEPLOY / "machines.yaml"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
