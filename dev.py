"""Set up the project and run it. Needs Python 3.11 or newer and nothing else.

    python3 dev.py run [IMAGE] [--gui] [--yes]
        Denoise IMAGE (or a sample), print measurements and write before and after side by side;
        --gui opens them in napari.
    python3 dev.py test [--yes] [PYTEST ARGUMENT ...]
        Lint, check the format and the types, run the tests on all cores and build the docs. Further
        arguments go to pytest, which then runs in one process and without the docs:
        dev.py test -k noise -m "not slow"

Both ask before they install system packages that Qt needs on Debian and Ubuntu; --yes, or the
environment variable CI, answers yes. The first call creates .venv beside this file and installs
into it. Later calls start at once, until the dependencies in pyproject.toml or constraints.txt
change.
"""

import sys

# This comes first, in syntax that old Pythons can parse: the rest may not even be valid there.
if sys.version_info < (3, 11):
    sys.exit(
        "dev.py needs Python 3.11 or newer, this is %d.%d; call it with a newer one: python3.12 "
        "dev.py" % sys.version_info[:2]
    )

import contextlib
import ctypes
import errno
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "dev-stamp.json"
# virtualenv goes here, where Python comes without venv and ensurepip.
TOOLS = ROOT / ".venv-tools"
LOG = ROOT / ".venv-setup.log"

# Tests in these folders share a screen or a cluster's ports and thus run in one process; all others
# run in parallel.
ONE_PROCESS = ("tests/plugin", "tests/cluster")

# What Qt's xcb platform plugin, OpenGL and the virtual screen need on Debian and Ubuntu, each with
# the library that it provides. Their own dependencies (libxcb-image0, libxcb-render-util0,
# libxcb-xkb1, libxcb-randr0 ...) are not listed.
SYSTEM_PACKAGES: dict[str, str | None] = {
    "libdbus-1-3": "libdbus-1.so.3",
    "libegl1": "libEGL.so.1",
    "libfontconfig1": "libfontconfig.so.1",
    "libgl1": "libGL.so.1",
    "libgl1-mesa-dri": None,
    "libglib2.0-0": "libglib-2.0.so.0",
    "libxcb-cursor0": "libxcb-cursor.so.0",
    "libxcb-icccm4": "libxcb-icccm.so.4",
    "libxcb-keysyms1": "libxcb-keysyms.so.1",
    "libxcb-shape0": "libxcb-shape.so.0",
    "libxkbcommon-x11-0": "libxkbcommon-x11.so.0",
    "xauth": None,
    "xvfb": None,
}


class SetUpError(Exception):
    """Something that prevents the start; its message tells the user what to do."""


def main(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    try:
        if command == "run" and not {"-h", "--help"} & set(rest):
            return run(rest)
        if command == "test":
            return test(rest)
    except SetUpError as error:
        print(f"dev.py: {error}", file=sys.stderr, flush=True)
        return 1
    except OSError as error:  # a full disk, a folder that belongs to someone else
        print(
            f"dev.py: {error}. Free some disk space or change the permissions, then run it again.",
            file=sys.stderr,
            flush=True,
        )
        return 1
    except KeyboardInterrupt:
        print("\ndev.py: stopped.", file=sys.stderr, flush=True)
        return 130
    print(__doc__.strip())
    return 0 if {"-h", "--help"} & set(arguments) else 2


def run(arguments: list[str]) -> int:
    yes, arguments = without_yes(arguments)
    gui = "--gui" in arguments
    if gui and sys.platform == "linux":
        if not has_display():
            raise SetUpError(
                "--gui opens a window, and this shell has no display. Leave out --gui, or run it "
                "from a desktop."
            )
        provide_system_packages(yes=yes)
    set_up({"gui"} if gui else set())
    return call([str(venv_python()), "-m", "dn_core.demo", *arguments])


def test(arguments: list[str]) -> int:
    started = time.monotonic()
    yes, arguments = without_yes(arguments)
    linux = sys.platform == "linux"
    if linux:
        provide_system_packages(yes=yes)
    set_up({"dev", "docs", "gui", "cluster"} if linux else {"dev", "docs", "gui"})
    for name, command in checks(arguments).items():
        print(f"== {name}", flush=True)
        code = call(command, folder=ROOT)
        if code == 130:
            return code
        if code:
            print(f"dev.py test: {name} failed (exit code {code}).", flush=True)
            return code
    print(f"dev.py test: all checks passed in {time.monotonic() - started:.0f} s.", flush=True)
    return 0


def without_yes(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether --yes is among the arguments, and the others."""
    return "--yes" in arguments, [argument for argument in arguments if argument != "--yes"]


def checks(arguments: list[str]) -> dict[str, list[str]]:
    """Commands by name, in the order in which they run; arguments are those for pytest."""
    module = [str(venv_python()), "-m"]
    # The cluster scripts need Ray, which is installed on Linux only.
    typed = [] if sys.platform == "linux" else ["src/dn_core", "napari_dnresnet"]
    commands = {
        "ruff check": [*module, "ruff", "check", "."],
        "ruff format": [*module, "ruff", "format", "--check", "."],
        "mypy": [*module, "mypy", *typed],
    }
    pytest = [*virtual_screen(), *module, "pytest"]
    if arguments:
        commands["pytest"] = [*pytest, *arguments]
        return commands
    apart = [f"--ignore={folder}" for folder in ONE_PROCESS]
    commands["pytest, in parallel"] = [*pytest, "--numprocesses", "auto", *apart]
    commands[f"pytest {' '.join(ONE_PROCESS)}"] = [*pytest, *ONE_PROCESS]
    if (ROOT / "docs" / "conf.py").exists():
        build = ["sphinx", "-W", "--keep-going", "-b", "html", "docs", "build/docs"]
        commands["docs"] = [*module, *build]
    return commands


# The environment


def set_up(extras: set[str]) -> None:
    """Install this project with at least these extras into `.venv`, unless they are there."""
    wanted = fingerprint()
    present = installed_extras(wanted)
    if present is not None and extras <= present:
        return
    with only_one():
        present = installed_extras(wanted)  # whoever held the lock may have installed them
        if present is not None and extras <= present:
            return
        started = time.monotonic()
        LOG.unlink(missing_ok=True)
        if present is None:
            say(f"Setting up {VENV.name} (once, 2-4 minutes) ...")
            remove_environment()
            write_stamp({})
            make_environment()
        else:
            added = ", ".join(sorted(extras - present))
            say(f"Adding {added} to {VENV.name} (once, 1-2 minutes) ...")
            write_stamp({})
        extras = extras | (present or set())
        target = f"{ROOT}[{','.join(sorted(extras))}]" if extras else str(ROOT)
        pip = [str(venv_python()), "-m", "pip", "install"]
        logged(
            [*pip, "--constraint", str(ROOT / "constraints.txt"), "--editable", target],
            "installing the packages failed. Read the lines above, check the network connection "
            "and run it again",
        )
        write_stamp({"fingerprint": wanted, "extras": sorted(extras)})
        say(f"Ready after {time.monotonic() - started:.0f} s.")


def fingerprint() -> str:
    """A hash of all that an environment depends on, such as its folder: it cannot be moved."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        settings = tomllib.load(file)
    keys = (
        "name",
        "version",
        "requires-python",
        "dependencies",
        "optional-dependencies",
        "scripts",
        "entry-points",
    )
    parts = {
        "project": {key: settings["project"].get(key) for key in keys},
        "build": [settings["build-system"], settings.get("tool", {}).get("hatch")],
        "constraints": (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(),
        "python": sys.implementation.cache_tag,
        "folder": str(ROOT),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def installed_extras(wanted: str) -> set[str] | None:
    """The extras in a finished environment with this fingerprint; None if there is none."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(stamp, dict) or stamp.get("fingerprint") != wanted:
        return None
    # exists() follows the link: the Python that created the environment may be gone.
    return set(stamp["extras"]) if venv_python().exists() else None


def write_stamp(content: dict[str, object]) -> None:
    """Describe the environment in it; an empty stamp marks one that is not finished."""
    STAMP.parent.mkdir(exist_ok=True)
    temporary = STAMP.with_suffix(".part")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(STAMP)


def remove_environment() -> None:
    if not VENV.exists():
        return
    if not STAMP.exists():
        raise SetUpError(
            f"{VENV} was not made by dev.py and is left alone. Rename or remove it, then run "
            "dev.py again."
        )
    if Path(sys.prefix).resolve() == VENV:
        raise SetUpError(
            f"{VENV} has to be created again, and this Python runs from it. Run dev.py with the "
            "Python that created it."
        )
    shutil.rmtree(VENV)


def make_environment() -> None:
    if has_module("venv") and has_module("ensurepip"):
        logged([base_python(), "-m", "venv", str(VENV)], "creating the environment failed")
        return
    if not has_module("pip"):
        raise SetUpError(how_to_get_venv())
    say("This Python has no venv; fetching virtualenv for it ...")
    shutil.rmtree(TOOLS, ignore_errors=True)
    logged(
        [base_python(), "-m", "pip", "install", "--target", str(TOOLS), "virtualenv"],
        how_to_get_venv(),
    )
    logged(
        [base_python(), "-m", "virtualenv", str(VENV)],
        "creating the environment failed",
        PYTHONPATH=str(TOOLS),
    )


def how_to_get_venv() -> str:
    package = f"python3.{sys.version_info.minor}-venv"
    if shutil.which("apt-get"):
        sudo = "" if is_root() else "sudo "
        return f"this Python cannot create environments. Type: {sudo}apt-get install -y {package}"
    return (
        "this Python cannot create environments: venv and pip are missing. Install them with your "
        "system's package manager."
    )


def has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def base_python() -> str:
    """The Python itself, not that of an environment that happens to be active."""
    return getattr(sys, "_base_executable", "") or sys.executable


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Let one set-up run at a time; the system releases the lock however the process ends."""
    with open(ROOT / ".venv-lock", "w") as file:
        if os.name == "nt":
            import msvcrt

            def lock() -> None:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            def lock() -> None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

        waiting = False
        while True:
            try:
                lock()
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                    # As on some network drives.
                    say(f"{ROOT} cannot lock files ({error}). Make sure no other dev.py runs.")
                    break
                if not waiting:
                    say("Another dev.py is setting up the environment; waiting for it ...")
                waiting = True
                time.sleep(0.5)
        yield


# The system


def provide_system_packages(*, yes: bool = False) -> None:
    """Install what Qt needs on Debian and Ubuntu, if the user agrees; other systems are left alone.

    Without consent, or without root, missing packages are an error that names the command to type,
    unless what they provide is there by other means.
    """
    if not (shutil.which("dpkg-query") and shutil.which("apt-get")):
        return
    missing = missing_packages(debian_packages(), has_display())
    if not missing:
        return
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if not (is_root() and (yes or agreed(missing))):
        if all(is_usable(package) for package in missing):
            return
        sudo = "" if is_root() else "sudo "
        alone = ", or run this again with --yes" if is_root() else ""
        raise SetUpError(f"system packages are missing{alone}; type: {sudo}{' '.join(install)}")
    say(f"Installing system packages ({', '.join(missing)}) ...")
    advice = (
        "installing system packages failed. Read the lines above, or type: apt-get update && "
        + " ".join(install)
    )
    wait_for_lock = ["-o", "DPkg::Lock::Timeout=300"]
    logged(["apt-get", *wait_for_lock, "update"], advice, DEBIAN_FRONTEND="noninteractive")
    logged([*install, *wait_for_lock], advice, DEBIAN_FRONTEND="noninteractive")


def agreed(missing: list[str]) -> bool:
    """Whether CI is set, or the user at the terminal agrees to install these packages."""
    if os.environ.get("CI"):
        return True
    if not (sys.stdin and sys.stdin.isatty()):
        return False
    say(f"Tests and napari need these system packages: {', '.join(missing)}")
    try:
        answer = input("Install them with apt-get? [y/N] ")
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")


def missing_packages(installed: Collection[str], display: bool) -> list[str]:
    return [
        name
        for name in SYSTEM_PACKAGES
        if name not in installed and not (display and name in ("xauth", "xvfb"))
    ]


def debian_packages() -> set[str]:
    """Names of all installed packages and those they provide: libglib2.0-0t64 is libglib2.0-0."""
    columns = "${db:Status-Status}|${Package}|${Provides}\\n"
    listing = ["dpkg-query", "--show", "--showformat", columns]
    names: set[str] = set()
    answer = subprocess.run(listing, check=True, capture_output=True, text=True)
    for line in answer.stdout.splitlines():
        status, package, provides = line.split("|", 2)
        if status == "installed":
            names |= {package, *(name.split()[0] for name in provides.split(",") if name.strip())}
    return names


def is_usable(package: str) -> bool:
    """Whether what a package provides is there without it, as by LD_LIBRARY_PATH."""
    library = SYSTEM_PACKAGES[package]
    if library is None:
        program = {"xvfb": "Xvfb"}.get(package, package)
        return package == "libgl1-mesa-dri" or shutil.which(program) is not None
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def has_display() -> bool:
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"))


def virtual_screen() -> list[str]:
    """The prefix of a command that opens windows: a virtual screen where there is none.

    Qt's offscreen platform would not do: it has no OpenGL, which napari needs.
    """
    if sys.platform != "linux" or has_display() or not shutil.which("xvfb-run"):
        return []
    return ["xvfb-run", "--auto-servernum", "--server-args=-screen 0 1400x1000x24"]


# Processes


def call(command: list[str], folder: Path | None = None) -> int:
    """Run a command with its output shown and give its exit code; Ctrl-C reaches it as well."""
    return wait(subprocess.Popen(command, cwd=folder))


def logged(command: list[str], advice: str, **variables: str) -> None:
    """Run a command with its output in the log; if it fails, print the end of the log and raise."""
    environment = (
        os.environ
        | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_USER": "0"}
        | variables
    )
    with open(LOG, "a+", encoding="utf-8", errors="replace") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        except FileNotFoundError as error:
            raise SetUpError(f"{command[0]} is missing ({error}); {advice}") from error
        code = wait(process)
        if code == 130:
            raise KeyboardInterrupt
        if code:
            log.seek(0)
            print("".join(log.readlines()[-25:]), file=sys.stderr)
            raise SetUpError(f"{advice} (all output: {LOG})")


def wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code as a shell counts it: 130 for Ctrl-C, 128 + N for any other signal N."""
    try:
        code = process.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(timeout=20)  # it received Ctrl-C as well and may be cleaning up
        if process.poll() is None:
            process.kill()
            process.wait()
        return 130
    return code if code >= 0 or os.name == "nt" else 128 - code


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
