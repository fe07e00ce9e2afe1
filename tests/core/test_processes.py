"""Processes started in any way, warm or cold, without network, and in bare environments."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from dn_core.inference.engines import choose_device

posix = pytest.mark.skipif(
    os.name == "nt", reason="file descriptors, users and forks as POSIX has them"
)
MODELS = Path(__file__).resolve().parents[2] / "src" / "dn_core" / "models"


def run_script(folder, code, *, outside=None, **environment):
    """Run a script file in a fresh process, after `outside` has been put around it; its output."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code), encoding="utf-8")
    if outside is not None:
        (folder / "around").mkdir(exist_ok=True)
        (folder / "around" / "sitecustomize.py").write_text(
            textwrap.dedent(outside), encoding="utf-8"
        )
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(folder / "around"), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
    variables = {
        name: value for name, value in {**os.environ, **environment}.items() if value is not None
    }
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=folder,
        env=variables,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FORKS = """
import gc, json, os, sys, threading, time, traceback, warnings
import multiprocessing as mp
from concurrent.futures import ProcessPoolExecutor

import dask
import dask.array as da
import numpy as np
import torch
import zarr

import dn_core
from dn_core.inference import loaded
from small_models import small_model

warnings.simplefilter("ignore")
denoise = small_model()
rng = np.random.default_rng(0)
# More shapes than stay compiled: OpenVINO keeps the threads of those that do not.
SHAPES = (60, 50), (64, 64), (70, 90), (33, 40), (120, 30), (80, 80)
IMAGES = [rng.normal(100, 10, shape).astype("f4") for shape in SHAPES]
BIG = np.tile(IMAGES[0], (5, 5))
report = {}


def in_child(check, seconds=90):
    pid = os.fork()
    if not pid:
        right = False
        try:
            right = check()
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(0 if right else 1)
    return ended(pid, seconds)


def ended(pid, seconds=90):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return "right" if status == 0 else f"ended with {os.waitstatus_to_exitcode(status)}"
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hangs"


def equal(found, expected):
    return all(map(np.array_equal, found, expected))


def all_right():
    right = equal([denoise(image) for image in IMAGES], plain)
    return right and np.array_equal(denoise(BIG, tile_size=64), tiled)


def exact(images):
    return [denoise(image, precision="float64") for image in images]


def read_zarr():
    return np.array_equal(denoise(stored), plain[0])


# Cold: what the parent has loaded but not used.
cold = in_child(lambda: denoise(IMAGES[0]).shape == IMAGES[0].shape)

plain, doubles = [denoise(image) for image in IMAGES], exact(IMAGES)
tiled = denoise(BIG, tile_size=64)
default = [dn_core.denoise(image) for image in IMAGES[:2]]
stored = zarr.array(IMAGES[0])
read_zarr()
report["from a cold parent"] = cold
report["from a warm parent"] = in_child(all_right)
report["twice"] = in_child(all_right)
report["in float64, by torch"] = in_child(
    lambda: all(np.allclose(*pair, rtol=1e-12) for pair in zip(exact(IMAGES), doubles)))
report["of a zarr array"] = in_child(read_zarr)
report["of a fork of a fork"] = in_child(
    lambda: in_child(all_right) == "right" and all_right() and in_child(all_right) == "right")


def in_threads():
    right = []
    threads = [threading.Thread(target=lambda: right.append(all_right())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return right == [True] * 3


report["in several threads"] = in_child(in_threads)


def copies():
    "Models of their own come and go; so do those that came from the parent."
    global model
    sent = [type(denoise)(denoise.checkpoint) for _ in range(4)]
    right = equal([copy(image) for copy, image in zip(sent, IMAGES)], plain)
    loaded._load_file.cache_clear()
    sent = model = None
    gc.collect()
    return right and all_right()


model = dn_core.load_model()
model(IMAGES[0])
report["with models that come and go"] = in_child(copies)

half = dn_core.denoise_steps(BIG, denoise, tile_size=64)
next(half)


def go_on():
    try:
        list(half)
    except RuntimeError as error:
        return "Start it again" in str(error) and all_right()


def close():
    half.close()
    return all_right()


report["that goes on with a half denoising is told so"] = in_child(go_on)
report["that closes a half denoising"] = in_child(close)
report["whose parent goes on"] = (
    "right" if np.array_equal(list(half)[-1].result, tiled) else "wrong")

stop = threading.Event()
wrong = []


def go_round():
    while not stop.is_set():
        if not np.array_equal(denoise(BIG, tile_size=64), tiled):
            wrong.append("parent")
        denoise(rng.normal(0, 1, (int(rng.integers(30, 90)), 40)))  # a new shape: compiling


threads = [threading.Thread(target=go_round) for _ in range(2)]
for thread in threads:
    thread.start()
outcomes = set()
for _ in range(4):
    time.sleep(0.05 * rng.random())
    outcomes.add(in_child(all_right))
stop.set()
for thread in threads:
    thread.join()
report["in the middle of other threads' work"] = (
    "right" if outcomes == {"right"} and not wrong else f"{outcomes} {wrong}")


def told():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        all_right()
    return ["with one thread" in str(entry.message) for entry in caught] == [True]


report["is told once that it has one thread"] = in_child(told)


def trains():
    image = np.stack([np.clip(np.tile(image, (3, 3))[:96, :96], 0, 255) for image in IMAGES[:2]])
    noisy = image + rng.normal(0, 5, image.shape).astype("f4")
    dn_core.finetune("trained", noisy=noisy, clean=image, steps=1, device="cpu")
    return True


torch.randn(300, 300) @ torch.randn(300, 300)
report["that trains"] = in_child(trains)

with ProcessPoolExecutor(2, mp.get_context("fork")) as pool:
    found = pool.map(dn_core.denoise, IMAGES[:2], timeout=90)
    report["in a pool"] = "right" if equal(found, default) else "wrong"
with ProcessPoolExecutor(2, mp.get_context("fork")) as pool:
    found = pool.map(denoise, IMAGES, timeout=90)
    report["in a pool, of a model"] = "right" if equal(found, plain) else "wrong"


class Denoised(torch.utils.data.Dataset):
    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return denoise(IMAGES[index])


loader = torch.utils.data.DataLoader(
    Denoised(), num_workers=2, timeout=90, multiprocessing_context="fork")
found = [batch[0].numpy() for batch in loader]
report["in a loader of torch"] = "right" if equal(found, plain) else "wrong"

lazy = denoise(da.from_array(BIG, chunks=(100, 100)))
with dask.config.set({"multiprocessing.context": "fork"}):
    found = lazy.compute(scheduler="processes", num_workers=2)
report["in dask's processes"] = (
    "right" if np.array_equal(found, lazy.compute(scheduler="sync")) else "wrong")

pid = os.fork()
if not pid:
    sys.exit(0 if all_right() else 1)  # with all that Python does at its end
report["that ends by itself"] = ended(pid)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """What became of each kind of forked process, all forked by one that has denoised."""
    if not hasattr(os, "fork"):
        pytest.skip("no forks here")
    path = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    return json.loads(
        run_script(
            tmp_path_factory.mktemp("forks"), FORKS, OMP_NUM_THREADS="2", PYTHONPATH=path
        ).splitlines()[-1]
    )


KINDS = re.findall(r'^report\["(.*)"\]', FORKS, re.MULTILINE)


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="elsewhere Python does not fork by default, and system libraries do not bear it",
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_process_denoises_as_its_parent(forks, kind):
    assert forks[kind] == "right"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_started_processes_denoise_as_their_parent(tmp_path, method):
    import multiprocessing

    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    code = f"""
    import multiprocessing, sys
    import numpy as np
    import dn_core

    if __name__ == "__main__":
        shapes, rng = ((60, 50), (64, 64)), np.random.default_rng(0)
        images = [rng.normal(100, 10, shape).astype("f4") for shape in shapes]
        context = multiprocessing.get_context("{method}")
        with context.Pool(1) as pool:
            cold = pool.map(dn_core.denoise, images)
        expected = [dn_core.denoise(image) for image in images]
        with context.Pool(1) as pool:
            warm = pool.map(dn_core.load_model(), images)
        print(all(map(np.array_equal, [*cold, *warm], expected * 2)))
    """
    assert run_script(tmp_path, code) == "True\n"


def test_a_gpu_is_refused_where_it_was_used_before_the_fork(monkeypatch):
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    for device in ("cuda", "cuda:0", None):
        with pytest.raises(
            RuntimeError,
            match="cuda must be used in a process that was not forked.* Use .*'spawn'",
        ):
            choose_device(device)
    assert choose_device("cpu") == "cpu"


# Any look-up or connection, in whatever process, is written down and gets no answer, as behind some
# firewalls.
NO_NETWORK = """
import os, socket, sys, time

def refuse(*arguments, **options):
    with open(os.path.join(os.environ["DN_TRACES"], f"network-{os.getpid()}"), "a") as file:
        print(sys.argv, arguments, file=file)
    time.sleep(20)
    raise OSError("no network")

for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse)
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
"""


def without_network(folder, code):
    """Run a script without network and with an empty home folder: output and traces."""
    home, traces = folder / "home", folder / "traces"
    home.mkdir()
    traces.mkdir()
    variables = {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "DN_TRACES": str(traces),
        "CI": None,
        "DN_MODELS": None,
    }
    output = run_script(folder, code, outside=NO_NETWORK, **variables)
    return output, sorted(path.name for place in (home, traces) for path in place.rglob("*"))


def test_denoising_touches_neither_network_nor_home_folder(tmp_path):
    code = """
    import multiprocessing, sys, threading
    import numpy as np, dask.array as da, zarr
    import dn_core

    image = np.random.default_rng(0).normal(100, 10, (40, 40)).astype("f4")
    results = []
    threads = [  # all at once, for the first time
        threading.Thread(target=lambda: results.append(dn_core.denoise(image))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and all(np.array_equal(result, results[0]) for result in results)
    dn_core.denoise(da.from_array(image)).compute(), dn_core.denoise(zarr.array(image))
    dn_core.model_names()
    assert not any(name.startswith("openvino_telemetry") for name in sys.modules)
    print(multiprocessing.active_children())
    """
    assert without_network(tmp_path, code) == ("[]\n", [])


def test_a_script_without_a_guard_runs_once_where_processes_are_spawned(tmp_path):
    code = """
    import multiprocessing
    multiprocessing.set_start_method("spawn")
    import numpy as np
    import dn_core

    with open("runs", "a") as file:
        print("once", file=file)
    print(dn_core.denoise(np.random.default_rng(0).random((40, 40))).shape)
    """
    assert without_network(tmp_path, code) == ("(40, 40)\n", [])
    assert (tmp_path / "runs").read_text() == "once\n"


def test_what_a_program_imported_itself_is_left_alone(tmp_path):
    pytest.importorskip("openvino")
    code = """
    import sys, types
    import dn_core.inference.engines as engines

    mine = sys.modules["openvino_telemetry"] = types.ModuleType("openvino_telemetry")
    openvino = engines.import_openvino()
    assert sys.modules["openvino_telemetry"] is mine
    assert openvino.opset13 and engines.import_openvino() is openvino is sys.modules["openvino"]
    del sys.modules["openvino_telemetry"]
    engines.import_openvino()
    assert "openvino_telemetry" not in sys.modules
    """
    run_script(tmp_path, code)


@pytest.fixture
def picture(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", np.random.default_rng(0).normal(1000, 50, (60, 64)).astype("u2")
    )
    return tmp_path / "a.tif"


@posix
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_the_command_works_with_closed_streams(picture, closed):
    target = picture.with_name("b.tif")
    command = f'exec "{sys.executable}" -m dn_core.cli denoise "{picture}" -o "{target}" {closed}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert tifffile.imread(target).std() < 25


@posix
def test_errors_and_lists_of_models_do_not_need_open_streams(picture):
    for arguments, code in (
        ("models", 0),
        ("models list --json", 0),
        ("denoise missing.tif -o b.tif", 1),
        ("nothing", 2),
    ):
        command = f'exec "{sys.executable}" -m dn_core.cli {arguments} >&- 2>&-'
        assert (
            subprocess.run(["sh", "-c", command], timeout=120, cwd=picture.parent).returncode
            == code
        )


def test_the_command_works_without_a_console(picture):
    """As under pythonw, where Python has no standard streams at all."""
    code = """
    import sys
    sys.stdin = sys.stdout = sys.stderr = None
    from dn_core.cli import main
    sys.argv = ["dn-resnet", "denoise", "a.tif", "-o", "b.tif"]
    main()
    """
    assert run_script(picture.parent, code) == ""
    assert tifffile.imread(picture.with_name("b.tif")).std() < 25


# What a user number that the system does not know looks like to a program.
UNKNOWN_USER = """
import pwd

def getpwuid(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")

pwd.getpwuid = getpwuid
"""


@posix
def test_without_a_home_folder_all_works_that_needs_none(picture):
    folder = picture.parent
    code = """
    import json, os
    from typer.testing import CliRunner
    from dn_core.cli import app

    def run(*arguments):
        done = CliRunner().invoke(app, arguments)
        return done.exit_code, done.output

    folder = os.getcwd()
    done = {
        "evaluate": run(
            "evaluate", "--data", f"{folder}", "--model", "dn-fast", "--level", "gaussian 25"),
        "add": run("models", "add", MODEL),
        "fetch": run("models", "fetch", "dn-fast", "--registry", os.path.dirname(MODEL)),
    }
    os.makedirs("gone")
    os.chdir("gone")
    os.rmdir(f"{folder}/gone")  # nor a working folder
    done |= {
        "denoise": run("denoise", f"{folder}/a.tif", "-o", f"{folder}/b.tif"),
        "models": run("models"),
        "relative": run("denoise", f"{folder}/a.tif", "-o", "b.tif"),
    }
    print(json.dumps(done))
    """
    model = str(MODELS / "dn-fast@1.safetensors")
    variables = {
        "HOME": None,
        "XDG_DATA_HOME": None,
        "XDG_CACHE_HOME": None,
        "XDG_CONFIG_HOME": None,
        "DN_MODELS": None,
    }
    output = run_script(
        folder,
        code.replace("MODEL", repr(model)),
        outside=UNKNOWN_USER,
        TMPDIR="/nowhere",
        **variables,
    )
    done = json.loads(output.splitlines()[-1])
    assert done["denoise"] == [0, ""]
    assert tifffile.imread(folder / "b.tif").std() < 25
    assert done["models"][0] == done["evaluate"][0] == 0
    assert "dn-fast (default)" in done["models"][1]
    assert "left out" not in done["models"][1]
    for command in ("add", "fetch"):
        assert done[command] == [
            1,
            "there is no home folder to keep models in; set HOME to one, or name a folder in "
            "DN_MODELS: ~\n",
        ]
    assert done["relative"][0] == 1
    assert "the working folder no longer exists" in done["relative"][1]
