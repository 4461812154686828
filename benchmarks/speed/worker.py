"""A fresh process for one row of the table: it builds the model, then runs it whenever it is told to.

Processes are forked from a server that has imported the toolboxes and run nothing, so they start in a second. While one
runs, the others wait for their turn, with their models built.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Row:
    """What one row of the table measures.

    Attributes:
        part (str): 'backbones', 'sizes' or 'models'.
        model (str): A name of :data:`speed.backbones.BACKBONES` or :data:`speed.wholes.WHOLES`.
        mode (str): 'eval' or 'train'.
        dtype (str): 'fp32' or 'bf16'.
        shape (tuple[int, int, int]): Images (N, H, W).
        run (str): 'eager', 'compiled', 'graphed': compiled, and replayed as one CUDA graph; or 'onnxruntime'.
    """

    part: str
    model: str
    mode: str
    dtype: str
    shape: tuple[int, int, int]
    run: str = "eager"


@dataclass(frozen=True)
class Sample:
    """One run of a row: its seconds, those of its parts if it has any, and the process's memory peak so far in MiB."""

    seconds: float
    parts: dict[str, float]
    peak_mib: float


@dataclass(frozen=True)
class Failure:
    """What a process answers that cannot go on. On its stderr, the server's, nobody may be reading."""

    reason: str


class Worker:
    """The process of a row, which runs when :meth:`run` is called.

    Args:
        row (Row): What it measures.
        device (str): 'cpu' or 'cuda'.
        threads (int): Threads of the operators on a CPU.
        onnx (Path | None): The file that onnxruntime runs, for such rows.

    Raises:
        RuntimeError: If the process fails, then or later, with the process's own traceback.
    """

    def __init__(self, row: Row, device: str, threads: int, onnx: Path | None = None):
        self.row = row
        self._connection, other = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(other, row, device, threads, onnx), daemon=True)
        self._process.start()
        other.close()
        self._ask()

    def run(self) -> Sample:
        """Run the row once."""
        return self._ask("run")

    def macs(self) -> int:
        """Multiply-accumulates of the row's forward pass."""
        return self._ask("macs")

    def close(self) -> None:
        """End the process."""
        self._connection.close()  # which the process meets as the end of its orders
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, order: str | None = None):
        """The process's answer to an order, or its first word."""
        try:
            if order is not None:
                self._connection.send(order)
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(10)
            code = self._process.exitcode
            answer = Failure("was killed, perhaps for want of memory" if code == -9 else f"ended with {code}")
        if isinstance(answer, Failure):
            raise RuntimeError(f"the process of {self.row.model} at {self.row.shape} {answer.reason}")
        return answer


def import_beforehand(packages: Iterable[str]) -> None:
    """Name what processes shall find imported; before the first one is made."""
    # The server looks for modules by the environment, not by this process's path; what it cannot find it leaves out.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    CONTEXT.set_forkserver_preload(["speed.backbones", *packages])


def _serve(connection: Connection, row: Row, device: str, threads: int, onnx: Path | None) -> None:
    """The process: runs until the other end is closed, or answers why it cannot."""
    try:
        _follow_orders(connection, row, device, threads, onnx)
    except Exception:
        connection.send(Failure(f"failed:\n{traceback.format_exc()}"))


def _follow_orders(connection: Connection, row: Row, device: str, threads: int, onnx: Path | None) -> None:
    """Build, say so, run as often as asked."""
    from speed.memory_peak import MemoryPeak

    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")  # the toolboxes, of their own configs
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if row.part == "models":
        make_step, macs = _whole(row, device)
    else:
        make_step, macs = _onnx(row, onnx) if onnx else _backbone(row, device)
    peak = MemoryPeak(device)
    step = make_step()
    connection.send("ready")
    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        connection.send(macs() if order == "macs" else _sample(step, peak, device))


def _sample(step: Callable[[], dict[str, float] | None], peak, device: str) -> Sample:
    if device == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        parts = step()
        stop.record()
        stop.synchronize()
        seconds = start.elapsed_time(stop) / 1e3
    else:
        begin = time.perf_counter()
        parts = step()
        seconds = time.perf_counter() - begin
    return Sample(seconds, parts or {}, peak.mib())


def _backbone(row: Row, device: str) -> tuple[Callable, Callable]:
    """What makes the step of a row once the model is built, and what counts its operations."""
    from speed import backbones

    network = backbones.build(row.model, row.shape[1:]).to(device)
    run = network if row.run == "eager" else torch.compile(network)
    images = torch.randn(row.shape[0], 3, *row.shape[1:]).to(device)
    if device == "cpu":  # loads code and starts threads; 224 x 224 is the smallest that all take
        backbones.pass_or_step(network, images[:1, :, :224, :224], row.mode, row.dtype)()
        network.zero_grad()

    def make_step() -> Callable[[], None]:
        step = backbones.pass_or_step(run, images, row.mode, row.dtype)
        return _graphed(step) if row.run == "graphed" else step

    return make_step, lambda: backbones.macs(row.model, row.shape)


def _onnx(row: Row, path: Path) -> tuple[Callable, Callable]:
    """The same for a file in onnxruntime. Its operations are taken to be those of the model in PyTorch."""
    from speed import backbones, onnx_file

    make_pass = onnx_file.make_pass(path)
    images = torch.randn(row.shape[0], 3, *row.shape[1:])
    make_pass(torch.zeros(1, 3, 32, 32))()  # starts threads; it keeps the memory of a pass, so a small one
    return lambda: make_pass(images), lambda: backbones.macs(row.model, row.shape)


def _whole(row: Row, device: str) -> tuple[Callable, Callable]:
    """The same for a detector or segmentor."""
    from speed.wholes import Whole

    whole = Whole(row.model, row.mode, row.shape, device)
    return lambda: whole.step, whole.macs


def _graphed(step: Callable[[], None]) -> Callable[[], None]:
    """Record a step's kernels as a CUDA graph, which is then replayed without Python."""
    side = torch.cuda.Stream()  # PyTorch's documentation wants the runs before the capture on another stream
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
