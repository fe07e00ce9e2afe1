"""OpenVINO backend: the engine of CPUs.

The graph is built directly from settings and weights, without torch: the first result of a cold
process takes a third of a second instead of several seconds. A test holds it equal to the torch
module.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core import processes
from dn_core.checkpoints import Checkpoint
from dn_core.inference.engines.base import (
    Key,
    Precision,
    TileTooLargeError,
    Work,
    is_out_of_memory,
)
from dn_core.network_config import BlockKind
from dn_core.tensor_files import Tensors

__all__ = ["OpenVinoEngine", "import_openvino"]

# Input shapes that stay compiled; the tiles of an image have one.
MAX_COMPILED = 4


def import_openvino() -> Any:
    """Import OpenVINO, with ``opset13`` and without its telemetry.

    On import, telemetry would look up a host name in a process of its own and write into the home
    folder. Where it cannot be imported OpenVINO uses a stub. Nothing is changed in a program that
    has already imported OpenVINO itself.

    Returns
    -------
    module
        The package ``openvino``.
    """
    if "openvino" not in sys.modules:
        with processes.fork_lock():
            _import_without("openvino", "openvino_telemetry")
    importlib.import_module("openvino.opset13")
    return importlib.import_module("openvino")


class OpenVinoEngine:
    """The CPU engine. Thread-safe: each run has requests of its own.

    In a process that was forked from one with OpenVINO it computes in the calling thread: the
    threads that OpenVINO keeps for later use do not exist there.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        openvino = import_openvino()
        self._core = _openvino_core()
        reduced = precision == "bfloat16" and "BF16" in self._core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        )
        self._checkpoint = checkpoint
        self._compiled: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._runs: dict[int, tuple[Any, ...]] = {}
        processes.add_owner(self)
        self.precision: Precision = "bfloat16" if reduced else "float32"
        self.name = f"OpenVINO {openvino.__version__.split('-')[0]}, CPU, {self.precision}"

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
                # A forked process has no threads that a fork would have to wait for, and computes
                # right here.
                with (
                    contextlib.nullcontext()
                    if processes.forked_with("openvino")
                    else processes.fork_lock()
                ):
                    request.start_async({0: np.ascontiguousarray(array[None], np.float32)})
                    busy.append((key, request, idle[array.shape]))
            while busy:
                yield _finish(busy, process)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TileTooLargeError(
                "a tile must fit into memory, got one that does not. Use a smaller tile_size."
            ) from error
        finally:
            if os.getpid() == process:
                _wait_for_all(busy)
                del self._runs[id(busy)]

    def finish(self) -> None:
        """See `dn_core.processes.ThreadOwner`."""
        for busy, _ in list(self._runs.values()):
            _wait_for_all(busy)

    def abandon(self) -> None:
        """See `dn_core.processes.ThreadOwner`."""
        processes.never_destroy(self._core, self._compiled, self._runs)
        self._core, self._compiled, self._runs = None, OrderedDict(), {}

    def memory(self, pixels: int, tiles: int) -> int:
        """See `Engine.memory`.

        Each stream has activations; each request has an input and an output beside the pixels of
        the image.
        """
        threads = 1 if processes.forked_with("openvino") else _threads() or _cores()
        config, streams = self._checkpoint.config, min(tiles, threads)
        values = streams * config.activations_per_pixel + min(tiles, 2 * streams) * (
            2 * config.inputs + 5
        )
        return pixels * self.dtype.itemsize * values

    def _requests(self, shape: tuple[int, ...], parallel: bool) -> list[Any]:
        compiled = self._compile(shape, parallel)
        count = (
            2 * int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) if parallel else 1
        )
        return [compiled.create_infer_request() for _ in range(count)]

    def _compile(self, shape: tuple[int, ...], parallel: bool) -> Any:
        key = (shape, parallel)
        with processes.fork_lock():
            if key not in self._compiled:
                if self._core is None:
                    self._core = _openvino_core()
                self._compiled[key] = self._core.compile_model(
                    _openvino_graph(self._checkpoint, shape), "CPU", self._settings(parallel)
                )
                while len(self._compiled) > MAX_COMPILED:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(key)
            return self._compiled[key]

    def _settings(self, parallel: bool) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bfloat16" else "f32"
        }
        if processes.forked_with("openvino"):
            if (_threads() or _cores()) > 1:
                processes.warn_one_thread("OpenVINO")
            return settings | {"NUM_STREAMS": 0}  # the calling thread only
        settings["PERFORMANCE_HINT"] = "THROUGHPUT" if parallel else "LATENCY"
        if threads := _threads():
            settings["INFERENCE_NUM_THREADS"] = threads
        return settings


def _openvino_core() -> Any:
    """A core of its own for each engine, but one for all in a forked process."""
    return (
        _only_openvino_core(os.getpid())
        if processes.forked_with("openvino")
        else import_openvino().Core()
    )


@functools.cache
def _only_openvino_core(_process: int) -> Any:
    """Never destroyed.

    When a core is destroyed OpenVINO also ends the idle threads of other cores, which do not exist
    in a forked process.
    """
    core = import_openvino().Core()
    processes.never_destroy(core)
    return core


def _import_without(name: str, other: str) -> None:
    """Import a module as if another one were not installed."""
    before = {other: sys.modules[other]} if other in sys.modules else {}
    sys.modules[other] = None  # type: ignore[assignment]
    try:
        importlib.import_module(name)
    finally:
        sys.modules.pop(other, None)
        sys.modules.update(before)


def _threads() -> int:
    """Number of threads in the environment variable OMP_NUM_THREADS; 0 where it is not set."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() else 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _finish(busy: deque[tuple[Key, Any, list[Any]]], process: int) -> tuple[Key, NDArray[Any]]:
    """Wait for the oldest request, copy its result, and return the request to its idle list."""
    if os.getpid() != process:
        raise RuntimeError(
            "denoising must continue in the process that started it, got a process forked from "
            "it. Start it again here."
        )
    key, request, idle = busy[0]
    request.wait()
    busy.popleft()  # not earlier: a fork waits for requests in `busy`
    result = request.get_output_tensor().data[0, 0].copy()
    idle.append(request)
    return key, result


def _wait_for_all(busy: deque[tuple[Any, Any, list[Any]]]) -> None:
    for _, request, _ in list(busy):
        with contextlib.suppress(RuntimeError):  # the first failure is reported
            request.wait()


def _openvino_graph(checkpoint: Checkpoint, shape: tuple[int, ...]) -> Any:
    """`DnResNet.body` for one input shape ``(inputs, height, width)``."""
    openvino = import_openvino()
    ops = openvino.opset13
    config, weights = checkpoint.config, checkpoint.weights

    def blocks(x: Any, chain: str) -> Any:
        for index, kind in enumerate(config.chains.get(chain, ())):
            x = _block(ops, weights, x, f"{chain}.{index}", kind)
        return x

    def levels(x: Any, index: int) -> Any:
        if index == len(config.levels):
            return x
        name = f"levels.{index}"
        down, up = (ops.constant(weights[f"{name}.{way}.weight"]) for way in ("down", "up"))
        y = blocks(ops.convolution(x, down, [2, 2], [0, 0], [0, 0], [1, 1]), f"{name}.blocks")
        y = blocks(levels(y, index + 1), f"{name}.blocks_up")
        y = ops.convolution_backprop_data(y, up, [2, 2], None, [0, 0], [0, 0], [1, 1])
        return ops.add(x, y)

    source = ops.parameter([1, *shape], np.float32)
    x = ops.space_to_depth(source, "depth_first", config.shuffle) if config.shuffle > 1 else source
    for index in range(len(config.entry)):
        x = _convolution(ops, weights, x, f"entry.{index}")
        x = ops.relu(x) if config.entry_relu else x
    x = blocks(levels(blocks(x, "blocks"), 0), "blocks_up")
    x = _convolution(ops, weights, x, "last")
    x = ops.depth_to_space(x, "depth_first", config.shuffle) if config.shuffle > 1 else x
    return openvino.Model([x], [source], checkpoint.card.name)


def _convolution(ops: Any, weights: Tensors, x: Any, name: str) -> Any:
    kernel = weights[f"{name}.weight"]
    pad = [kernel.shape[2] // 2] * 2
    return ops.convolution(x, ops.constant(kernel), [1, 1], pad, pad, [1, 1])


def _block(ops: Any, weights: Tensors, x: Any, name: str, kind: BlockKind) -> Any:
    """`ResBlock` or `SeparableBlock`."""
    if kind == "full":
        inner = ops.relu(_convolution(ops, weights, x, f"{name}.first"))
        return ops.add(x, _convolution(ops, weights, inner, f"{name}.second"))
    kernel = ops.constant(weights[f"{name}.depthwise.weight"][:, None])
    inner = ops.relu(ops.group_convolution(x, kernel, [1, 1], [1, 1], [1, 1], [1, 1]))
    return ops.add(x, ops.relu(_convolution(ops, weights, inner, f"{name}.pointwise")))
