"""Who computes: OpenVINO on the CPU, torch on CUDA and MPS, and on a CPU that OpenVINO does not serve.

An engine computes the convolutions of a network (`DnResNet.body`); means, subtraction and rounding are done outside, in float32.
The OpenVINO graph is built straight from settings and weights, without torch: the first result of a cold process comes in a third
of a second instead of several. A test holds it equal to the torch module.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import re
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dn_core import processes
from dn_core.checkpoints import Checkpoint

__all__ = [
    "Engine",
    "OpenVinoEngine",
    "Precision",
    "TileTooLargeError",
    "TorchEngine",
    "build_engine",
    "choose_device",
    "import_openvino",
]

Precision = Literal["float32", "bfloat16", "float64"]
Key = TypeVar("Key")
Work = Iterable[tuple[Key, NDArray[Any]]]

# Shapes that stay compiled; an image's tiles have one.
MAX_COMPILED = 4
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate", "bad_alloc")


class TileTooLargeError(MemoryError):
    """A tile did not fit into the device's memory."""


class Engine(Protocol):
    """Computes network bodies."""

    name: str
    dtype: np.dtype[Any]

    def run(self, work: Work[Key], *, parallel: bool) -> Iterator[tuple[Key, NDArray[Any]]]:
        """Compute ``(inputs, height, width)`` arrays to ``(height, width)``, in order; several at once if `parallel`."""
        ...

    def memory(self, pixels: int, tiles: int) -> int:
        """Bytes that the computation of `tiles` tiles of so many pixels, halo included, takes at most; 0 where none are the system's."""
        ...


def choose_device(device: str | None) -> str:
    """``"cpu"``, ``"cuda"`` (or ``"cuda:1"``) or ``"mps"``: what was asked for, or the best that is there.

    Raises
    ------
    ValueError
        When the device is unknown or not there.
    """
    if device in (None, "auto"):
        return _best_device()
    if not isinstance(device, str) or not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise ValueError(f"device is {device!r}; 'cpu', 'cuda', 'cuda:N' or 'mps' is expected. Leave it out to have one chosen.")
    if device == "cpu":
        return device
    import torch

    _check_not_forked(device)
    kind = device.split(":")[0]
    there = torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
    if not there:
        raise ValueError(f"device is {device!r}, but torch finds no such device here. Use device='cpu', or install a torch build for it.")
    if ":" in device and int(device.split(":")[1]) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device is {device!r}; there are {count}, 'cuda:0' to 'cuda:{count - 1}' are expected. Use one of them.")
    return device


def build_engine(checkpoint: Checkpoint, device: str, precision: Precision) -> Engine:
    """The engine for a device; ``"bfloat16"`` becomes ``"float32"`` where the hardware would only emulate it."""
    if device == "cpu" and precision != "float64" and importlib.util.find_spec("openvino"):
        return OpenVinoEngine(checkpoint, precision)
    return TorchEngine(checkpoint, device, precision)


def import_openvino() -> Any:
    """OpenVINO, with ``opset13`` and without its telemetry.

    That would look a name up, in a process of its own, and write into the home folder as soon as it is imported. Where it cannot be
    imported OpenVINO takes a stub. A program that has imported OpenVINO by itself has decided for itself, and nothing is changed.
    """
    if "openvino" not in sys.modules:
        with processes.alone():
            _import_without("openvino", "openvino_telemetry")
    importlib.import_module("openvino.opset13")
    return importlib.import_module("openvino")


class OpenVinoEngine:
    """The CPU engine. Thread-safe: each run has requests of its own.

    In a process that was forked from one with OpenVINO it computes in the thread that calls it, as OpenVINO's own threads, of which it
    keeps some for later use, are not there.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        openvino = import_openvino()
        self._core = _openvino_core()
        reduced = precision == "bfloat16" and "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._precision = "bf16" if reduced else "f32"
        self._checkpoint = checkpoint
        self._compiled: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._runs: dict[int, tuple[Any, ...]] = {}
        processes.add_owner(self)
        self.name = f"OpenVINO {openvino.__version__.split('-')[0]}, CPU, {'bfloat16' if reduced else 'float32'}"

    def run(self, work: Work[Key], *, parallel: bool) -> Iterator[tuple[Key, NDArray[Any]]]:
        """See `Engine.run`."""
        process = os.getpid()
        busy: deque[tuple[Key, Any, list[Any]]] = deque()
        idle: dict[tuple[int, ...], list[Any]] = {}
        self._runs[id(busy)] = busy, idle
        try:
            for key, array in work:
                if array.shape not in idle:
                    idle[array.shape] = self._requests(array.shape, parallel)
                while not idle[array.shape]:
                    yield _finish(busy, process)
                request = idle[array.shape].pop()
                # A forked process has no threads that a fork would have to wait for, and computes right here.
                with contextlib.nullcontext() if processes.forked_with("openvino") else processes.alone():
                    request.start_async({0: np.ascontiguousarray(array[None], np.float32)})
                    busy.append((key, request, idle[array.shape]))
            while busy:
                yield _finish(busy, process)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            raise TileTooLargeError("a tile does not fit into memory; use a smaller tile.") from error
        finally:
            if os.getpid() == process:
                _wait_for_all(busy)
                del self._runs[id(busy)]

    def finish(self) -> None:
        """See `dn_core.processes.ThreadOwner`."""
        for busy, _ in list(self._runs.values()):
            _wait_for_all(busy)

    def leave_behind(self) -> None:
        """See `dn_core.processes.ThreadOwner`."""
        processes.keep_for_ever(self._core, self._compiled, self._runs)
        self._core, self._compiled, self._runs = None, OrderedDict(), {}

    def memory(self, pixels: int, tiles: int) -> int:
        """See `Engine.memory`: each stream has activations, each request an input and an output beside the image's pixels."""
        threads = 1 if processes.forked_with("openvino") else _threads() or _cores()
        config, streams = self._checkpoint.config, min(tiles, threads)
        values = streams * config.live_values + min(tiles, 2 * streams) * (2 * config.inputs + 5)
        return pixels * self.dtype.itemsize * values

    def _requests(self, shape: tuple[int, ...], parallel: bool) -> list[Any]:
        compiled = self._compile(shape, parallel)
        count = 2 * int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) if parallel else 1
        return [compiled.create_infer_request() for _ in range(count)]

    def _compile(self, shape: tuple[int, ...], parallel: bool) -> Any:
        key = (shape, parallel)
        with processes.alone():
            if key not in self._compiled:
                if self._core is None:
                    self._core = _openvino_core()
                self._compiled[key] = self._core.compile_model(_openvino_graph(self._checkpoint, shape), "CPU", self._settings(parallel))
                while len(self._compiled) > MAX_COMPILED:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(key)
            return self._compiled[key]

    def _settings(self, parallel: bool) -> dict[str, Any]:
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": self._precision}
        if processes.forked_with("openvino"):
            if (_threads() or _cores()) > 1:
                processes.say_one_thread("OpenVINO")
            return settings | {"NUM_STREAMS": 0}  # the thread that calls, and none besides
        settings["PERFORMANCE_HINT"] = "THROUGHPUT" if parallel else "LATENCY"
        if threads := _threads():
            settings["INFERENCE_NUM_THREADS"] = threads
        return settings


class TorchEngine:
    """torch on any device: the engine of GPUs, of float64, and of CPUs without OpenVINO."""

    def __init__(self, checkpoint: Checkpoint, device: str, precision: Precision) -> None:
        import torch

        _check_not_forked(device)
        self._device = torch.device(device)
        self._autocast = precision == "bfloat16" and self._device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.float64 if precision == "float64" else torch.float32
        self.dtype = np.dtype(np.float64 if precision == "float64" else np.float32)
        self._config = checkpoint.config
        self._network = checkpoint.network().to(self._device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.name = f"torch {torch.__version__}, {self._device}, {'bfloat16' if self._autocast else self.dtype}"
        if self._device.type != "cpu":
            processes.add_owner(self)

    def run(self, work: Work[Key], *, parallel: bool) -> Iterator[tuple[Key, NDArray[Any]]]:
        """See `Engine.run`; tiles are computed one by one."""
        _check_not_forked(self._device.type)
        if self._device.type == "cpu":
            processes.limit_torch_after_fork()
        for key, array in work:
            yield key, self._compute(array)

    def finish(self) -> None:
        """See `dn_core.processes.ThreadOwner`."""

    def leave_behind(self) -> None:
        """See `dn_core.processes.ThreadOwner`; what lies on the GPU cannot be reached, nor freed, from here."""
        processes.keep_for_ever(self._network)

    def memory(self, pixels: int, tiles: int) -> int:
        """See `Engine.memory`; what is freed between layers may stay with the allocator."""
        if self._device.type == "cuda":
            return 0
        values = 2 * self._config.live_values + 2 * self._config.inputs + 5
        if self.dtype == np.float64:  # torch unfolds the input of such convolutions: a column for each pixel, at times twice
            shapes = self._config.weight_shapes().values()
            values += 2 * -(-max(before * height * width for _, before, height, width in shapes) // self._config.shuffle**2)
        return pixels * self.dtype.itemsize * values

    def _compute(self, array: NDArray[Any]) -> NDArray[Any]:
        import torch

        try:
            tile = torch.from_numpy(np.ascontiguousarray(array[None], self.dtype)).to(self._device)
            tile = tile.contiguous(memory_format=torch.channels_last)
            with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
                result = self._network.body(tile)[0, 0]
            return result.to("cpu", tile.dtype).numpy()  # type: ignore[no-any-return]
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        # Outside the handler, so that the failed call's tensors are gone before memory is asked for again.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        raise TileTooLargeError(
            f"a tile of {array.shape[1]}x{array.shape[2]} pixels does not fit into the memory of {self._device}; use a smaller tile."
        )


def _openvino_core() -> Any:
    """A core of its own for each engine, but one for all in a forked process."""
    return _only_openvino_core(os.getpid()) if processes.forked_with("openvino") else import_openvino().Core()


@functools.cache
def _only_openvino_core(_process: int) -> Any:
    """Never destroyed: with any core OpenVINO also ends the idle threads of the others, which in a forked process are not there."""
    core = import_openvino().Core()
    processes.keep_for_ever(core)
    return core


def _import_without(name: str, other: str) -> None:
    """Import a module that thinks another one is not installed."""
    before = {other: sys.modules[other]} if other in sys.modules else {}
    sys.modules[other] = None  # type: ignore[assignment]
    try:
        importlib.import_module(name)
    finally:
        sys.modules.pop(other, None)
        sys.modules.update(before)


def _check_not_forked(device: str) -> None:
    """Refuse a GPU that a process used before it forked: its driver does not work in the child."""
    import torch

    kind = device.split(":")[0]
    if kind != "cpu" and getattr(torch, kind)._is_in_bad_fork():
        raise RuntimeError(
            f"this process was forked from one that uses {kind}, which does not work after a fork; a process started anew is expected. "
            "Use spawn: multiprocessing.get_context('spawn'), or take device='cpu'."
        )


def _threads() -> int:
    """How many threads the environment asks for; 0 where it does not say."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() else 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_out_of_memory(error: BaseException) -> bool:
    """torch and OpenVINO say it in several ways, most of them a plain RuntimeError."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)


def _best_device() -> str:
    """A GPU if there is one. torch, which takes seconds to import, is asked only where a GPU may be."""
    if "torch" not in sys.modules and not _gpu_may_be_there():
        return "cpu"
    import torch

    for kind in ("cuda", "mps"):
        _check_not_forked(kind)
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _gpu_may_be_there() -> bool:
    if sys.platform == "darwin":
        return os.uname().machine == "arm64"
    if sys.platform == "win32":
        return (Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll").exists()
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def _finish(busy: deque[tuple[Key, Any, list[Any]]], process: int) -> tuple[Key, NDArray[Any]]:
    """Wait for the oldest request, take a copy of its result, and give the request back to its idle list."""
    if os.getpid() != process:
        raise RuntimeError("this denoising was begun by the process from which this one was forked, and cannot go on here. Begin it anew.")
    key, request, idle = busy[0]
    request.wait()
    busy.popleft()  # only now: until then a fork waits for it
    result = request.get_output_tensor().data[0, 0].copy()
    idle.append(request)
    return key, result


def _wait_for_all(busy: deque[tuple[Any, Any, list[Any]]]) -> None:
    for _, request, _ in list(busy):
        with contextlib.suppress(RuntimeError):  # one has failed already, and that is what is told
            request.wait()


def _openvino_graph(checkpoint: Checkpoint, shape: tuple[int, ...]) -> Any:
    """`DnResNet.body` for one input shape ``(inputs, height, width)``, from settings and weights."""
    openvino = import_openvino()
    ops = openvino.opset13
    config, weights = checkpoint.config, checkpoint.weights

    def convolution(x: Any, name: str) -> Any:
        kernel = weights[f"{name}.weight"]
        pad = [kernel.shape[2] // 2] * 2
        return ops.convolution(x, ops.constant(kernel), [1, 1], pad, pad, [1, 1])

    def depthwise(x: Any, name: str) -> Any:
        kernel = weights[f"{name}.weight"][:, None]
        return ops.group_convolution(x, ops.constant(kernel), [1, 1], [1, 1], [1, 1], [1, 1])

    source = ops.parameter([1, *shape], np.float32)
    x = ops.space_to_depth(source, "depth_first", config.shuffle) if config.shuffle > 1 else source
    for index in range(len(config.entry)):
        x = convolution(x, f"entry.{index}")
        x = ops.relu(x) if config.entry_relu else x
    for index, kind in enumerate(config.blocks):
        block = f"blocks.{index}"
        if kind == "full":
            change = convolution(ops.relu(convolution(x, f"{block}.first")), f"{block}.second")
        else:
            change = ops.relu(convolution(ops.relu(depthwise(x, f"{block}.depthwise")), f"{block}.pointwise"))
        x = ops.add(x, change)
    x = convolution(x, "last")
    x = ops.depth_to_space(x, "depth_first", config.shuffle) if config.shuffle > 1 else x
    return openvino.Model([x], [source], checkpoint.card.name)
