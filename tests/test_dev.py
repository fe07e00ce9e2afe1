"""dev.py: its decisions before it runs anything, and a small set-up for real in its own folder."""

import ast
import errno
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent

PYPROJECT = """
[build-system]
requires = []

[project]
name = "tiny"
version = "1"
dependencies = ["numpy"]
optional-dependencies = { gui = ["napari"] }
"""


def load(folder: Path) -> ModuleType:
    """The dev.py in a folder as its own module: it takes that folder for the project's."""
    spec = importlib.util.spec_from_file_location("dev_under_test", folder / "dev.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "dev.py", tmp_path)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "constraints.txt").write_text("numpy==2.0.0\n")
    return tmp_path


@pytest.fixture
def finished(project: Path) -> Path:
    """A project whose stamp says that its environment is there; its Python runs the tests."""
    dev = load(project)
    dev.venv_python().parent.mkdir(parents=True)
    if os.name == "nt":
        dev.venv_python().write_bytes(b"")
    else:
        dev.venv_python().symlink_to(sys.executable)
    dev.write_stamp({"fingerprint": dev.fingerprint(), "extras": ["gui"]})
    return project


def test_it_imports_the_standard_library_only() -> None:
    names = set()
    for node in ast.walk(ast.parse((ROOT / "dev.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            names.add(node.module.split(".")[0])
    assert names <= sys.stdlib_module_names


def test_old_pythons_can_read_it_as_far_as_the_sentence_for_them() -> None:
    """Python 3.6 parses the whole file before it runs the first line."""
    ast.parse((ROOT / "dev.py").read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.skipif(os.name == "nt", reason="no flock")
def test_on_a_drive_that_cannot_lock_it_does_not_wait(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    def refused(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with load(project).only_one():
        assert "cannot lock files" in "".join(capsys.readouterr())


def test_without_a_command_it_tells_what_there_is() -> None:
    answer = subprocess.run([sys.executable, ROOT / "dev.py"], capture_output=True, text=True)
    assert answer.returncode == 2
    assert "dev.py run [IMAGE] [--gui] [--yes]" in answer.stdout


def test_a_finished_environment_is_used_as_it_is(finished: Path) -> None:
    """Anything that `set_up` did would show: this project cannot be installed."""
    dev = load(finished)
    dev.set_up(set())
    dev.set_up({"gui"})
    assert sorted(path.name for path in finished.iterdir() if path.name.startswith(".venv")) == [
        ".venv"
    ]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("pyproject.toml", '"numpy"', '"numpy>=2"'),
        ("pyproject.toml", '"napari"', '"napari>=0.6"'),
        ("pyproject.toml", '"1"', '"2"'),
        ("constraints.txt", "2.0.0", "2.0.1"),
    ],
)
def test_a_changed_dependency_means_a_new_environment(
    finished: Path, file: str, old: str, new: str
) -> None:
    dev = load(finished)
    before = dev.fingerprint()
    text = (finished / file).read_text()
    assert old in text
    (finished / file).write_text(text.replace(old, new))
    assert dev.fingerprint() != before
    assert dev.installed_extras(dev.fingerprint()) is None


def test_settings_of_tools_do_not_matter(finished: Path) -> None:
    dev = load(finished)
    with open(finished / "pyproject.toml", "a") as file:
        file.write("\n[tool.ruff]\nline-length = 100\n")
    assert dev.installed_extras(dev.fingerprint()) == {"gui"}


def test_a_moved_environment_is_made_anew(
    finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy = tmp_path_factory.mktemp("moved") / "project"
    shutil.copytree(finished, copy, symlinks=True)
    dev = load(copy)
    assert dev.installed_extras(dev.fingerprint()) is None


def test_an_interrupted_set_up_does_not_count(finished: Path) -> None:
    dev = load(finished)
    dev.write_stamp({})
    assert dev.installed_extras(dev.fingerprint()) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', '{"fingerprint": "?"}'])
def test_a_damaged_stamp_does_not_count(finished: Path, content: str) -> None:
    dev = load(finished)
    dev.STAMP.write_text(content)
    assert dev.installed_extras(dev.fingerprint()) is None


def test_an_environment_whose_python_is_gone_does_not_count(finished: Path) -> None:
    dev = load(finished)
    dev.venv_python().unlink()
    if os.name != "nt":
        dev.venv_python().symlink_to(finished / "no-such-python")
    assert dev.installed_extras(dev.fingerprint()) is None


def test_an_environment_that_someone_else_made_is_left_alone(project: Path) -> None:
    (project / ".venv").mkdir()
    (project / ".venv" / "precious").touch()
    answer = subprocess.run(
        [sys.executable, project / "dev.py", "run"], capture_output=True, text=True
    )
    assert answer.returncode == 1
    assert "was not made by dev.py" in answer.stderr
    assert (project / ".venv" / "precious").exists()


def test_missing_system_packages_are_those_not_installed() -> None:
    dev = load(ROOT)
    every = list(dev.SYSTEM_PACKAGES)
    assert dev.missing_packages([], False) == every
    assert dev.missing_packages(every, False) == []
    assert dev.missing_packages({*every} - {"libegl1", "xvfb"}, False) == ["libegl1", "xvfb"]


def test_a_shell_with_a_display_needs_no_virtual_one() -> None:
    dev = load(ROOT)
    assert set(dev.SYSTEM_PACKAGES) - set(dev.missing_packages([], True)) == {"xauth", "xvfb"}


needs_posix = pytest.mark.skipif(
    os.name == "nt", reason="shell scripts stand in for system programs"
)


@pytest.fixture
def bare_debian(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with a dpkg-query that knows one package, and an apt-get that records its calls."""
    folder = tmp_path_factory.mktemp("bin")
    for name, script in {
        "dpkg-query": "echo 'installed|libegl1|'",
        "apt-get": f'echo "$@" >> {folder}/calls',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    for name in ("CI", "DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    return folder


def answering(monkeypatch: pytest.MonkeyPatch, answer: str | None) -> list[str]:
    """Put a user at a terminal who gives this answer, or no terminal; the questions come back."""
    questions: list[str] = []

    def asked(question: str) -> str:
        questions.append(question)
        assert answer is not None
        return answer

    monkeypatch.setattr(sys, "stdin", Terminal(answer is not None))
    monkeypatch.setattr("builtins.input", asked)
    return questions


class Terminal:
    def __init__(self, there: bool) -> None:
        self._there = there

    def isatty(self) -> bool:
        return self._there


@needs_posix
def test_without_root_it_says_what_to_type(
    project: Path, bare_debian: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = load(project)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(
        dev.SetUpError,
        match=r"type: sudo apt-get install -y --no-install-recommends libdbus-1-3 .* xvfb$",
    ) as caught:
        dev.provide_system_packages()
    assert "libegl1" not in str(caught.value)
    assert not (bare_debian / "calls").exists()


@needs_posix
@pytest.mark.parametrize("consent", ["option", "CI", "y", "Yes "])
def test_as_root_it_installs_what_is_missing_when_allowed(
    consent: str,
    project: Path,
    bare_debian: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dev = load(project)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    at_terminal = consent not in ("option", "CI")
    questions = answering(monkeypatch, consent if at_terminal else None)
    if consent == "CI":
        monkeypatch.setenv("CI", "true")
    dev.provide_system_packages(yes=consent == "option")
    update, install = (bare_debian / "calls").read_text().splitlines()
    assert update.endswith("update")
    assert install.startswith("install -y --no-install-recommends libdbus-1-3 ")
    assert "libegl1" not in install
    assert len(questions) == at_terminal
    if at_terminal:  # the packages are named before the question
        assert re.search(r"packages: libdbus-1-3, .*, xvfb", capsys.readouterr().out)


@needs_posix
@pytest.mark.parametrize("answer", [None, "", "n", "no idea"])
def test_as_root_without_consent_it_installs_nothing_and_says_what_to_type(
    answer: str | None, project: Path, bare_debian: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = load(project)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    answering(monkeypatch, answer)
    with pytest.raises(
        dev.SetUpError,
        match=r"with --yes; type: apt-get install -y --no-install-recommends libdbus-1-3 .* xvfb$",
    ):
        dev.provide_system_packages()
    assert not (bare_debian / "calls").exists()


def test_yes_is_for_dev_py_alone() -> None:
    assert load(ROOT).without_yes(["-k", "noise", "--yes"]) == (True, ["-k", "noise"])
    assert load(ROOT).without_yes(["a.tif"]) == (False, ["a.tif"])


def test_a_test_run_checks_style_format_types_tests_and_docs(project: Path) -> None:
    dev = load(project)
    names = ["ruff check", "ruff format", "mypy", "pytest, in parallel"]
    assert list(dev.checks([])) == [*names, "pytest tests/plugin tests/cluster"]
    (project / "docs").mkdir()
    (project / "docs" / "conf.py").touch()
    assert list(dev.checks([]))[-1] == "docs"
    assert {"-W", "build/docs"} <= set(dev.checks([])["docs"])
    assert dev.checks(["-k", "noise"])["pytest"][-2:] == ["-k", "noise"]
    assert "docs" not in dev.checks(["-k", "noise"])


def test_ci_agrees_to_system_packages_on_a_fresh_machine() -> None:
    assert "export CI=true" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@needs_posix
def test_packages_are_known_by_what_they_provide(project: Path, bare_debian: Path) -> None:
    (bare_debian / "dpkg-query").write_text(
        "#!/bin/sh\necho 'installed|libglib2.0-0t64|libglib2.0-0 (= 2.80), gio'\necho "
        "'config-files|xvfb|'\necho 'installed|xauth|'\n"
    )
    assert load(project).debian_packages() == {"libglib2.0-0t64", "libglib2.0-0", "gio", "xauth"}


def test_a_failed_command_shows_its_output_and_the_advice(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dev = load(project)
    with pytest.raises(dev.SetUpError, match="do this") as caught:
        dev.logged([sys.executable, "-c", "print('the reason'); raise SystemExit(3)"], "do this")
    assert "the reason" in capfd.readouterr().err
    assert str(dev.LOG) in str(caught.value)


@pytest.mark.parametrize("code", [0, 1, 5])
def test_the_exit_code_is_that_of_what_was_called(code: int) -> None:
    assert load(ROOT).call([sys.executable, "-c", f"raise SystemExit({code})"]) == code


@needs_posix
def test_ctrl_c_gives_130_and_no_traceback(finished: Path) -> None:
    dev = load(finished)
    dev.venv_python().unlink()
    dev.venv_python().write_text("#!/bin/sh\ntouch started\nexec sleep 60\n")
    dev.venv_python().chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "dev.py", "run"],
        cwd=finished,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (finished / "started").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors


BACKEND = """
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        wheel.writestr("dn_core/__init__.py", "")
        demo = "import sys; print('demo', *sys.argv[1:]); raise SystemExit(7)"
        wheel.writestr("dn_core/demo.py", demo)
        metadata = "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1\\nProvides-Extra: gui\\n"
        wheel.writestr("tiny-1.dist-info/METADATA", metadata)
        kind = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr("tiny-1.dist-info/WHEEL", kind)
        wheel.writestr("tiny-1.dist-info/RECORD", "")
    return name
"""


@pytest.fixture
def installable(project: Path) -> Iterator[Path]:
    """A project that is built and set up in some seconds: it has no dependencies."""
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "tiny"\nversion = "1"\noptional-dependencies = { gui = [] }\n'
    )
    (project / "backend.py").write_text(BACKEND)
    return project


def test_set_up_for_real(installable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = [sys.executable, installable / "dev.py", "run", "an image.tif", "--amount=0.5"]
    first = subprocess.run(command, capture_output=True, text=True)
    assert (first.returncode, first.stdout.splitlines()[-1]) == (
        7,
        "demo an image.tif --amount=0.5",
    ), first.stderr
    assert "Setting up .venv" in first.stdout
    second = subprocess.run(command, capture_output=True, text=True)
    assert (second.returncode, second.stdout) == (7, "demo an image.tif --amount=0.5\n")
    dev = load(installable)
    dev.set_up({"gui"})
    assert json.loads(dev.STAMP.read_text())["extras"] == ["gui"]


def test_without_venv_it_takes_virtualenv(
    installable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """virtualenv itself is not downloaded here: the calls are what counts."""
    dev = load(installable)
    calls = []
    monkeypatch.setattr(dev, "has_module", lambda name: name == "pip")
    monkeypatch.setattr(
        dev, "logged", lambda command, advice, **variables: calls.append((command[1:], variables))
    )
    dev.make_environment()
    assert calls == [
        (["-m", "pip", "install", "--target", str(dev.TOOLS), "virtualenv"], {}),
        (["-m", "virtualenv", str(dev.VENV)], {"PYTHONPATH": str(dev.TOOLS)}),
    ]


def test_without_venv_and_pip_it_says_what_to_type(
    installable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = load(installable)
    monkeypatch.setattr(dev, "has_module", lambda name: False)
    with pytest.raises(dev.SetUpError, match="cannot create environments"):
        dev.make_environment()
