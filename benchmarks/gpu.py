"""Convolutions, training and inference on a GPU beside PyTorch and cuDNN: times, errors against float64, roofline.

    python benchmarks/gpu.py         # on a GPU, five minutes: writes docs/cuda.json
    python benchmarks/gpu_page.py    # anywhere: docs/cuda.md and its figures from it

Every time is the median of replays of one CUDA graph that runs a call on several buffers in turn, so that no operand is
in the cache; what a call launches is all in it, packing of weights and looking for special values included. PyTorch has
cudnn.benchmark on. A result whose error is beyond its precision's is an error here, not a row.
"""

import argparse
import datetime
import functools
import importlib.metadata
import itertools
import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from gpu_shapes import MEMORY, PRODUCTS, SHAPES, TENSOR, Shape

from kernelproof import kernels
from kernelproof.kernels.cuda.host.graph import TrainingStep
from kernelproof.spec import Conv2d, Flatten, Linear, MaxPool2d, ReLU, SpecChain

F: Any = torch.nn.functional
CACHE, REPLAYS = 120e6, 12
LARGEST_ERROR = {"strict": 2e-6, "fast": 2e-6, "tf32": 2e-3}
"""Of |error| / sum |x||w|: what tells the right result of a precision from a wrong one."""


JSON = Path(__file__).parents[1] / "docs" / "cuda.json"
PASSES = ("forward", "dx", "dweight")
PEERS = {"fp32": (False, False), "fp32 NHWC": (False, True), "tf32": (True, False), "tf32 NHWC": (True, True)}
"""cuDNN's: whether TF32 is allowed, whether memory is channels-last."""


def graph_time(calls: list[Callable[[], Any]]) -> float:
    """Microseconds of a call, in a graph of all of them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(REPLAYS + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[2:]) * 1e3 / len(calls)


def gradient(which: str, dy: Any, x: Any, weight: Any, shape: Shape) -> Any:
    """cuDNN's dx or dweight."""
    mask = [which == "dx", which == "dweight", False]
    stride, padding = [shape.stride] * 2, [shape.r // 2] * 2
    results = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, [1, 1], False, [0, 0], shape.groups, mask
    )
    return results[0 if which == "dx" else 1]


def calls(which: str, sets: list[tuple[Any, Any, Any]], shape: Shape, precision: str | None) -> list[Callable[[], Any]]:
    """One call for each set of x, weight and dy: ours at a precision, or cuDNN's."""

    def call(x: Any, w: Any, dy: Any) -> Any:
        if precision is None:
            return F.conv2d(x, w, None, **shape.options) if which == "forward" else gradient(which, dy, x, w, shape)
        if which == "forward":
            return kernels.conv2d(x, w, precision=precision, **shape.options)
        if which == "dx":
            return kernels.conv2d_dx(dy, w, x.shape, precision=precision, **shape.options)
        return kernels.conv2d_dweight(dy, x, w.shape, precision=precision, **shape.options)

    return [functools.partial(call, *each) for each in sets]


def measure(shape: Shape) -> list[dict[str, Any]]:
    """A row for each pass."""
    p, count = shape.output, max(2, min(8, math.ceil(CACHE / shape.traffic)))
    sets = []
    for _ in range(count):
        x = torch.randn(shape.n, shape.c, shape.h, shape.h, device="cuda")
        weight = torch.randn(shape.k, shape.c // shape.groups, shape.r, shape.r, device="cuda") * 0.1
        sets.append((x, weight, torch.randn(shape.n, shape.k, p, p, device="cuda")))
    wide = [tuple(each.contiguous(memory_format=torch.channels_last) for each in one) for one in sets]
    exact = [tuple(each.double() for each in sets[0])]
    magnitudes = [tuple(each.abs() for each in exact[0])]
    rows = []
    for which in PASSES:
        right, scale = (calls(which, each, shape, None)[0]() for each in (exact, magnitudes))

        def error(result: Any, right: Any = right, scale: Any = scale) -> float:
            return float(((result.double() - right).abs() / scale.clamp_min(1e-300)).max())

        row: dict[str, Any] = {"shape": shape.text, "network": shape.name, "pass": which, "us": {}, "error": {}}
        for name, (tf32, is_wide) in PEERS.items():
            torch.backends.cudnn.allow_tf32 = tf32
            ours = calls(which, wide if is_wide else sets, shape, None)
            row["us"][f"cuDNN {name}"], row["error"][f"cuDNN {name}"] = graph_time(ours), error(ours[0]())
        torch.backends.cudnn.allow_tf32 = False
        for precision, largest in LARGEST_ERROR.items():
            ours = calls(which, sets, shape, precision)
            row["error"][precision] = error(ours[0]())
            if not row["error"][precision] <= largest:
                raise AssertionError(f"{shape.text} {which} {precision}: error {row['error'][precision]:.1e}")
            row["us"][precision] = graph_time(ours)
        floor = max(shape.traffic / MEMORY, shape.operations * PRODUCTS["strict"] / TENSOR) * 1e6
        row["roofline"] = floor / row["us"]["strict"]
        rows.append(row)
        print(f"{shape.text:48} {which:8}", {key: round(value, 1) for key, value in row["us"].items()}, flush=True)
    return rows


def cnn2() -> SpecChain:
    """The network of the training step."""
    return SpecChain(
        Conv2d(1, 32, 3, padding=1), ReLU(), MaxPool2d(2),
        Conv2d(32, 64, 3, padding=1), ReLU(), MaxPool2d(2),
        Flatten(), Linear(3136, 10), input="n 1 28 28",
    )  # fmt: skip


def torch_step(forward: Any, parameters: dict[str, Any], velocity: dict[str, Any], x: Any, target: Any) -> Any:
    """The same step in PyTorch."""
    values, steps = list(parameters.values()), list(velocity.values())
    for each in values:
        each.grad = None
    loss = F.cross_entropy(forward(parameters, x), target)
    loss.backward()
    with torch.no_grad():
        torch._foreach_mul_(steps, 0.9)
        torch._foreach_add_(steps, [each.grad for each in values])
        torch._foreach_add_(values, steps, alpha=-0.1)
    return loss.detach()


def recorded(step: Callable[[], Any]) -> Callable[[], Any]:
    """The step as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def torch_forward(parameters: dict[str, Any], x: Any) -> Any:
    """The same network in PyTorch."""
    for layer in ("conv1", "conv2"):
        x = F.conv2d(x, parameters[f"{layer}.weight"], parameters[f"{layer}.bias"], padding=1)
        x = F.max_pool2d(F.relu(x), 2)
    return F.linear(x.flatten(1), parameters["fc1.weight"], parameters["fc1.bias"])


def event_time(call: Callable[[], Any], count: int = 30) -> float:
    """Microseconds of a call, one after the other."""
    for _ in range(5):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(count):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e3 / count


def training(batch: int, compiled: bool) -> dict[str, Any]:
    """A step of CNN2 for a batch, ours as one graph; PyTorch's eager, as one graph, and compiled in one graph."""
    chain = cnn2()
    start = {key: torch.from_numpy(np.asarray(each)).cuda() for key, each in chain.initialise(0).items()}
    x, target = torch.randn(batch, 1, 28, 28, device="cuda"), torch.randint(0, 10, (batch,), device="cuda")

    def fresh(dtype: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        parameters = {key: each.to(dtype).clone().requires_grad_() for key, each in start.items()}
        return parameters, {key: torch.zeros_like(each) for key, each in parameters.items()}

    exact, gradients = fresh(torch.float64)
    torch_step(torch_forward, exact, gradients, x.double(), target)
    row: dict[str, Any] = {"batch": batch, "us": {}, "error": {}}

    def error(velocity: dict[str, Any]) -> float:
        return max(float((velocity[key].double() - each).norm() / each.norm()) for key, each in gradients.items())

    for precision in LARGEST_ERROR:
        step = TrainingStep(
            chain.compile("cuda", precision=precision), start, x, target, learning_rate=0.1, momentum=0.9
        )
        step(x, target)
        row["error"][precision] = error(step.velocity)
        row["us"][precision] = event_time(functools.partial(step, x, target))
    for name, tf32 in (("fp32", False), ("tf32", True)):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        parameters, velocity = fresh(torch.float32)
        eager = functools.partial(torch_step, torch_forward, parameters, velocity, x, target)
        eager()
        row["error"][f"torch {name}"] = error(velocity)
        row["us"][f"torch eager {name}"] = event_time(eager)
        row["us"][f"torch graph {name}"] = event_time(recorded(eager))
        if compiled:
            parameters, velocity = fresh(torch.float32)
            fast = functools.partial(torch_step, torch.compile(torch_forward), parameters, velocity, x, target)
            row["us"][f"torch.compile graph {name}"] = event_time(recorded(fast))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    print(f"CNN2 step, batch {batch}", {key: round(value) for key, value in row["us"].items()}, flush=True)
    return row


def inference(batch: int, compiled: bool) -> dict[str, Any]:
    """CNN2 forward for a batch that lies elsewhere each time: the compiled chain; PyTorch as for the training step."""
    chain = cnn2()
    parameters = {key: torch.from_numpy(np.asarray(each)).cuda() for key, each in chain.initialise(0).items()}
    batches = itertools.cycle([torch.randn(batch, 1, 28, 28, device="cuda") for _ in range(3)])
    exact = torch_forward({key: each.double() for key, each in parameters.items()}, (x := next(batches)).double())
    row: dict[str, Any] = {"batch": batch, "us": {}, "host": {}, "error": {}}

    def measured(name: str, forward: Callable[[Any], Any]) -> None:
        row["error"][name] = float((forward(x).double() - exact).norm() / exact.norm())
        row["us"][name], row["host"][name] = event_time(lambda: forward(next(batches)), 200), host_time(forward, x)

    with torch.no_grad():
        for precision in LARGEST_ERROR:
            measured(precision, functools.partial(chain.compile("cuda", precision=precision).forward, parameters))
        for name, tf32 in (("fp32", False), ("tf32", True)):
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            measured(f"torch eager {name}", functools.partial(torch_forward, parameters))
            row["us"][f"torch graph {name}"] = event_time(
                recorded(functools.partial(torch_forward, parameters, x)), 200
            )
            if compiled:
                fast = functools.partial(torch.compile(torch_forward), parameters, x)
                row["us"][f"torch.compile graph {name}"] = event_time(recorded(fast), 200)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    print(f"CNN2 forward, batch {batch}", {key: round(value) for key, value in row["us"].items()}, flush=True)
    return row


def host_time(call: Callable[[Any], Any], x: Any, count: int = 100) -> float:
    """Microseconds until a call returns, the GPU's work not waited for: the least of five series."""
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            call(x)
        times.append((time.perf_counter() - start) * 1e6 / count)
    torch.cuda.synchronize()
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=JSON, help="where to write all numbers")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many shapes, from the first on")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    result: dict[str, Any] = {
        "GPU": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "driver": subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, check=True,
        ).stdout.strip(),
        "torch": torch.__version__,
        "cuDNN": str(torch.backends.cudnn.version()),
        "numba-cuda": importlib.metadata.version("numba-cuda"),
        "numpy": np.__version__,
        "convolutions": [],
    }  # fmt: skip

    def write() -> None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")

    # What is measured is kept, whatever becomes of the rest.
    for kind, measured in (("training", training), ("inference", inference)):
        result[kind] = []
        for batch in (256, 4096):
            result[kind].append(measured(batch, not options.no_compile))
            write()
    for shape in SHAPES[: options.shapes]:
        result["convolutions"] += measure(shape)
        write()


if __name__ == "__main__":
    main()
