"""Peak memory of ours and of torch, each case in a process of its own: what it grows by beyond its inputs."""

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from networks import batch, our_step, torch_step
from peers import installed, torch_channels_last, torch_contiguous
from shapes import GRADIENTS, RESNET18
from timing import FAIR

from kernelproof import kernels
from kernelproof.models import CNN2Config, cnn_with_relu_spec

CNN2 = "CNN2 training step"
CASES = (CNN2, *(each.name for each in RESNET18))
WHO = ("ours strict", "ours fast", "torch", "torch channels-last")


def memory() -> list[dict[str, Any]]:
    """Bytes by case and library: a step of CNN2 on 64 images, all passes of ResNet-18's convolutions on 8."""
    # The allocator as users have it: what it is told for timings would show here.
    environment = {name: value for name, value in os.environ.items() if name not in FAIR}
    rows = []
    for case in CASES:
        row: dict[str, Any] = {"name": case, "text": str(next((each for each in RESNET18 if each.name == case), "")),
                               "bytes": {}}  # fmt: skip
        for who in WHO:
            if who.startswith("ours") or "torch" in installed():
                command = [sys.executable, __file__, case, who]
                run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                row["bytes"][who] = json.loads(run.stdout.splitlines()[-1])
        print(f"{case:<22}", *(f"{who} {each / 2**20:8.1f} MiB" for who, each in row["bytes"].items()), flush=True)
        rows.append(row)
    return rows


def growth(case: str, who: str) -> int:
    """Bytes that memory grew by at its peak, from where it stood when one image had been through everything."""
    make = _step if case == CNN2 else _passes
    # One image compiles and loads what there is to compile and load; with it stands what serves any problem.
    make(case, who, 1)()
    work = make(case, who, None)
    before = _of_status("VmRSS")
    _forget_peak()
    work()
    work()
    return _of_status("VmHWM") - before


def _step(case: str, who: str, images: int | None) -> Callable[[], Any]:
    make = our_step(who.split()[1]) if who.startswith("ours") else torch_step("channels-last" in who)
    return make(cnn_with_relu_spec(CNN2Config()), *batch(images or 64), threads=os.cpu_count() or 1)


def _passes(case: str, who: str, images: int | None) -> Callable[[], Any]:
    convolution = next(each for each in RESNET18 if each.name == case)
    convolution = replace(convolution, images=images or convolution.images)
    calls = []
    for problem in map(convolution.problem, GRADIENTS):
        arrays = {name: np.ones(shape, np.float32) for name, shape in problem.array_shapes.items()}
        if who.startswith("ours"):
            kernel = getattr(kernels, problem.operator.replace(".", "_"))
            calls.append(
                lambda problem=problem, arrays=arrays, kernel=kernel: problem.call(
                    lambda *args, **kwargs: kernel(*args, **kwargs, precision=who.split()[1]), arrays
                )
            )
        else:
            peer = torch_channels_last if "channels-last" in who else torch_contiguous
            calls.append(peer(problem, arrays, os.cpu_count() or 1))
    return lambda: [call() for call in calls]


def _of_status(name: str) -> int:
    """A size of this process as Linux tells it; elsewhere the greatest it ever had."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    (size,) = re.findall(rf"{name}:\s*(\d+) kB", status.read_text())
    return int(size) * 1024


def _forget_peak() -> None:
    """The greatest size counts from here on."""
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")


if __name__ == "__main__":
    print(json.dumps(growth(*sys.argv[1:])))
