"""Set everything up and run it. Needs Python 3.11 or newer and nothing else.

    python3 dev.py run [IMAGE] [--gui]     denoise IMAGE (or a sample), show numbers, write before and after side by side;
                                           --gui opens them in napari
    python3 dev.py test [PYTEST ARGUMENT]  lint, types and tests, a process a core; what follows goes to pytest, which then runs in one
                                           process: test -k noise -m "not slow"

The first call makes .venv beside this file and installs into it. Later calls start at once, as long as pyproject.toml's dependencies and
constraints.txt stay as they are.
"""

import sys

# This comes first, in words that old Pythons know: what stands below may not even be valid there.
if sys.version_info < (3, 11):
    sys.exit("dev.py needs Python 3.11 or newer, this is %d.%d; call it with a newer one: python3.12 dev.py" % sys.version_info[:2])

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
TOOLS = ROOT / ".venv-tools"  # virtualenv, where Python comes without the means to make environments
LOG = ROOT / ".venv-setup.log"

# Folders whose tests share a screen or a cluster's ports, and so one process; all others run side by side.
ONE_PROCESS = ("tests/plugin", "tests/cluster")

# What Qt's xcb platform plugin, OpenGL and the virtual screen need on Debian and Ubuntu, with the library that each is wanted for.
# What these bring along (libxcb-image0, libxcb-render-util0, libxcb-xkb1, libxcb-randr0 ...) is not named.
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
    """Something that keeps us from starting; its text tells the user what to do."""


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
        print(f"dev.py: {error}; make room or change the permissions, and call it again.", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\ndev.py: stopped.", file=sys.stderr, flush=True)
        return 130
    print(__doc__.strip())
    return 0 if {"-h", "--help"} & set(arguments) else 2


def run(arguments: list[str]) -> int:
    gui = "--gui" in arguments
    if gui and sys.platform == "linux":
        if not has_display():
            raise SetUpError("--gui opens a window, and this shell has no display; leave --gui out or call it from a desktop.")
        provide_system_packages()
    set_up({"gui"} if gui else set())
    return call([str(venv_python()), "-m", "dn_core.demo", *arguments])


def test(arguments: list[str]) -> int:
    started = time.monotonic()
    if sys.platform == "linux":
        provide_system_packages()
    set_up({"dev", "gui", "cluster"} if sys.platform == "linux" else {"dev", "gui"})  # tests of a cluster need Linux
    python = str(venv_python())
    checks = {
        "ruff": [python, "-m", "ruff", "check", "."],
        "mypy": [python, "-m", "mypy"],
        **{f"pytest{name}": [*virtual_screen(), python, "-m", "pytest", *options] for name, options in runs_of_tests(arguments).items()},
    }
    for name, command in checks.items():
        print(f"== {name}", flush=True)
        code = call(command, folder=ROOT)
        if code == 130:
            return code
        if code:
            print(f"dev.py test: {name} failed (exit code {code}).", flush=True)
            return code
    print(f"dev.py test: ruff, mypy and pytest passed in {time.monotonic() - started:.0f} s.", flush=True)
    return 0


def runs_of_tests(arguments: list[str]) -> dict[str, list[str]]:
    """Arguments of pytest for each of its runs, by what is told beside its name."""
    if arguments:
        return {"": arguments}
    side_by_side = ["--numprocesses", "auto", *(f"--ignore={folder}" for folder in ONE_PROCESS)]
    return {", side by side": side_by_side, f" {' '.join(ONE_PROCESS)}": list(ONE_PROCESS)}


# The environment


def set_up(extras: set[str]) -> None:
    """Make `.venv` hold this project with at least these extras; do nothing when it does."""
    wanted = fingerprint()
    present = installed_extras(wanted)
    if present is not None and extras <= present:
        return
    with only_one():
        present = installed_extras(wanted)  # the call that held the lock may have made it
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
            say(f"Adding {', '.join(sorted(extras - present))} to {VENV.name} (once, 1-2 minutes) ...")
            write_stamp({})
        extras = extras | (present or set())
        target = f"{ROOT}[{','.join(sorted(extras))}]" if extras else str(ROOT)
        pip = [str(venv_python()), "-m", "pip", "install", "--constraint", str(ROOT / "constraints.txt"), "--editable", target]
        logged(pip, "installing the packages failed; look at the lines above, see that the network is there, and call it again")
        write_stamp({"fingerprint": wanted, "extras": sorted(extras)})
        say(f"Ready after {time.monotonic() - started:.0f} s.")


def fingerprint() -> str:
    """What an environment depends on, in one word. The folder is part of it: an environment does not survive being moved."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        settings = tomllib.load(file)
    keys = ("name", "version", "requires-python", "dependencies", "optional-dependencies", "scripts", "entry-points")
    parts = {
        "project": {key: settings["project"].get(key) for key in keys},
        "build": [settings["build-system"], settings.get("tool", {}).get("hatch")],
        "constraints": (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(),
        "python": sys.implementation.cache_tag,
        "folder": str(ROOT),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def installed_extras(wanted: str) -> set[str] | None:
    """The extras in a finished environment that has this fingerprint; None where there is no such environment."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    # exists() follows the link: the Python that the environment was made from may be gone.
    if not isinstance(stamp, dict) or stamp.get("fingerprint") != wanted or not venv_python().exists():
        return None
    return set(stamp["extras"])


def write_stamp(content: dict[str, object]) -> None:
    """An empty stamp means: ours, and not finished."""
    STAMP.parent.mkdir(exist_ok=True)
    temporary = STAMP.with_suffix(".part")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(STAMP)


def remove_environment() -> None:
    if not VENV.exists():
        return
    if not STAMP.exists():
        raise SetUpError(f"{VENV} was not made by dev.py and is left alone; rename or remove it, and call dev.py again.")
    if Path(sys.prefix).resolve() == VENV:
        raise SetUpError(f"{VENV} has to be made anew, and this Python runs from it; call dev.py with the Python that it was made from.")
    shutil.rmtree(VENV)


def make_environment() -> None:
    if has_module("venv") and has_module("ensurepip"):
        logged([base_python(), "-m", "venv", str(VENV)], "making the environment failed")
        return
    if not has_module("pip"):
        raise SetUpError(how_to_get_venv())
    say("This Python has no venv; fetching virtualenv for it ...")
    shutil.rmtree(TOOLS, ignore_errors=True)
    logged([base_python(), "-m", "pip", "install", "--target", str(TOOLS), "virtualenv"], how_to_get_venv())
    logged([base_python(), "-m", "virtualenv", str(VENV)], "making the environment failed", PYTHONPATH=str(TOOLS))


def how_to_get_venv() -> str:
    package = f"python3.{sys.version_info.minor}-venv"
    if shutil.which("apt-get"):
        return f"this Python cannot make environments; type: {'' if is_root() else 'sudo '}apt-get install -y {package}"
    return "this Python cannot make environments: venv and pip are missing; install them with your system's package manager."


def has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def base_python() -> str:
    return getattr(sys, "_base_executable", "") or sys.executable  # not the one of an environment that happens to be active


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Let one set-up run at a time; the system frees the lock however the process ends."""
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
                if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):  # such as some network drives
                    say(f"The drive of {ROOT} cannot lock files ({error}): see that no other dev.py runs.")
                    break
                if not waiting:
                    say("Another dev.py is setting up; waiting for it ...")
                waiting = True
                time.sleep(0.5)
        yield


# The system


def provide_system_packages() -> None:
    """Install what Qt needs on Debian and Ubuntu, or say how; other systems are taken as they are."""
    if not (shutil.which("dpkg-query") and shutil.which("apt-get")):
        return
    missing = missing_packages(debian_packages(), has_display())
    if not missing:
        return
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if not is_root():
        if any(not is_usable(package) for package in missing):
            raise SetUpError(f"system packages are missing; type: sudo {' '.join(install)}")
        return
    say(f"Installing system packages ({', '.join(missing)}) ...")
    advice = f"installing system packages failed; look at the lines above, or type: apt-get update && {' '.join(install)}"
    logged(["apt-get", "-o", "DPkg::Lock::Timeout=300", "update"], advice, DEBIAN_FRONTEND="noninteractive")
    logged([*install, "-o", "DPkg::Lock::Timeout=300"], advice, DEBIAN_FRONTEND="noninteractive")


def missing_packages(installed: Collection[str], display: bool) -> list[str]:
    return [name for name in SYSTEM_PACKAGES if name not in installed and not (display and name in ("xauth", "xvfb"))]


def debian_packages() -> set[str]:
    """Names of all installed packages and of what they stand for: libglib2.0-0t64 also is libglib2.0-0."""
    listing = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}|${Package}|${Provides}\\n"]
    names: set[str] = set()
    for line in subprocess.run(listing, check=True, capture_output=True, text=True).stdout.splitlines():
        status, package, provides = line.split("|", 2)
        if status == "installed":
            names |= {package, *(name.split()[0] for name in provides.split(",") if name.strip())}
    return names


def is_usable(package: str) -> bool:
    """Whether what a package would bring is there by other means, such as a library in LD_LIBRARY_PATH."""
    library = SYSTEM_PACKAGES[package]
    if library is None:
        return package == "libgl1-mesa-dri" or shutil.which({"xvfb": "Xvfb"}.get(package, package)) is not None
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
    """What goes before a command that opens windows: nothing where there is a screen (offscreen has no OpenGL, napari needs it)."""
    if sys.platform != "linux" or has_display() or not shutil.which("xvfb-run"):
        return []
    return ["xvfb-run", "--auto-servernum", "--server-args=-screen 0 1400x1000x24"]


# Processes


def call(command: list[str], folder: Path | None = None) -> int:
    """Run a command in the open and give its exit code; Ctrl-C reaches it too, and we wait for it to end."""
    process = subprocess.Popen(command, cwd=folder)
    return wait(process)


def logged(command: list[str], advice: str, **variables: str) -> None:
    """Run a command with its output in the log; show the log's end and raise with this advice when it fails."""
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_USER": "0"} | variables
    with open(LOG, "a+", encoding="utf-8", errors="replace") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        try:
            code = wait(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment))
        except FileNotFoundError as error:
            raise SetUpError(f"{command[0]} is missing ({error}); {advice}") from error
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
            process.wait(timeout=20)  # it got Ctrl-C as well and may be tidying up
        if process.poll() is None:
            process.kill()
            process.wait()
        return 130
    return code if code >= 0 or os.name == "nt" else 128 - code


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
