"""Pooling by twos takes each window once; the greatest magnitudes that it tells are those of what it wrote."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_plans import NEEDS_COMPILERS, modules
from test_cuda_recorded import on_a_gpu

from kernelproof import kernels
from kernelproof.spec import Conv2d, MaxPool2d, ReLU, SpecChain

THREADS = 256


@pytest.mark.parametrize("is_told", [False, True])
@pytest.mark.parametrize("size", [1, 31, 1024, 1025, 5000])
@NEEDS_COMPILERS[0]
@NEEDS_COMPILERS[1]
def test_every_window_is_taken_by_threads_of_whole_warps(
    size: int, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    m, taken = modules().pool_by_twos, []
    blocks = -(-size // (4 * THREADS))
    for thread in range(blocks * THREADS):
        of_thread = SimpleNamespace(
            threadIdx=SimpleNamespace(x=thread % THREADS),
            grid=lambda _, i=thread: i,
            gridsize=lambda _: blocks * THREADS,
        )
        monkeypatch.setattr(m, "cuda", of_thread)
        start, apart = m._share.py_func(1 if is_told else 0)
        firsts = range(start, size, 4 * blocks * THREADS)
        of_warp = [m._windows_of.py_func(first, apart, size) for first in firsts]
        assert len(of_warp) <= 1  # So many blocks take all windows at once.
        taken += [i for windows in of_warp for i in windows]
        if is_told:  # Side by side in a warp.
            assert all(max(windows) - min(windows) < 128 for windows in of_warp)
    found, counts = np.unique(taken, return_counts=True)
    np.testing.assert_array_equal(found, np.arange(size))
    assert np.all(counts[:-1] == 1)  # Spare threads take the last again.


@on_a_gpu
@pytest.mark.parametrize(("images", "channels", "height", "width"), [(3, 5, 8, 6), (2, 1, 2, 2), (40, 7, 5, 7)])
def test_the_greatest_that_pooling_tells_is_that_of_what_it_wrote(
    images: int, channels: int, height: int, width: int
) -> None:
    torch = pytest.importorskip("torch")
    m, taken = modules(), modules().arrays.taken
    x = torch.randn(images, channels, height, width, device="cuda").relu()
    x[0, 0, 0, 0], x[-1, 0, 1, 1] = torch.inf, torch.nan
    y = taken(torch.empty(images, channels, height // 2, width // 2, device="cuda"))
    y, dx = (m.greatest.with_greatest(each, True) for each in (y, taken(torch.empty_like(x))))
    winner = m.pool_by_twos.winners(y)
    m.pool_by_twos.pool(taken(x), y, winner, is_gate=True, greatest=y.greatest)
    dy = taken(torch.randn(y.shape, device="cuda"))
    m.pool_by_twos.unpool(dy, winner, dx, dx.greatest)
    for written in (y, dx):
        magnitudes = written.owner.abs().flatten(1)
        right = magnitudes.where(magnitudes.isfinite(), 0).amax(1)
        words = written.greatest.owner.view(torch.float32).reshape(images, -1)
        assert torch.equal(words.amax(1), right)


@on_a_gpu
@pytest.mark.parametrize("channels", [1, 24])
def test_a_chain_that_tells_the_greatest_has_the_bits_of_one_that_looks_for_it(channels: int) -> None:
    torch = pytest.importorskip("torch")
    layers: Any = (
        Conv2d(channels, 32, 3, padding=1), ReLU(), MaxPool2d(2), Conv2d(32, 96, 3, padding=1), ReLU(), MaxPool2d(2)
    )  # fmt: skip
    chain = SpecChain(*layers, input=f"n {channels} 16 12")
    parameters = {key: torch.from_numpy(np.asarray(each)).cuda() for key, each in chain.initialise(3).items()}
    x = torch.randn(70, channels, 16, 12, device="cuda") * 10.0 ** torch.randint(-6, 7, (70, 1, 1, 1), device="cuda")
    x[5, 0, 3, 3] = torch.nan
    y = chain.compile("cuda", precision="fast").forward(parameters, x)
    right = x
    for name in ("conv1", "conv2"):
        convolved = kernels.conv2d(
            right, parameters[f"{name}.weight"], parameters[f"{name}.bias"], padding=1, precision="fast"
        )
        right = kernels.max_pool2d(kernels.relu(convolved), 2)
    assert torch.equal(y.isnan(), right.isnan())
    if channels > 4:  # A first block of few channels has another order of its own.
        assert torch.equal(y.nan_to_num(), right.nan_to_num())
    scale = right.nan_to_num().abs().amax((1, 2, 3), keepdim=True)
    assert bool(((y - right).nan_to_num().abs() <= 2**-18 * scale).all())
