"""What the CPU kernels promise beyond the laws: the same bits for any threads and layout, clean stops, a cache."""

import importlib
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core import config

from kernelproof import kernels, spec
from kernelproof.kernels import jit_cache
from kernelproof.kernels.cpu import launch


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


GEOMETRY = {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "dilation": (1, 2), "groups": 2}
POOL = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "ceil_mode": True}
X, WEIGHT = random(5, 4, 11, 13), random(6, 2, 3, 2)
Y, POOLED = spec.conv2d(X, WEIGHT, **GEOMETRY), spec.max_pool2d(X, **POOL)
CALLS = {
    "conv2d": ((X, WEIGHT, random(6)), GEOMETRY),
    "conv2d.dx": ((Y, WEIGHT, X.shape), GEOMETRY),
    "conv2d.dweight": ((Y, X, WEIGHT.shape), GEOMETRY),
    "conv2d.dbias": ((Y,), {}),
    "max_pool2d": ((X,), POOL | {"return_indices": True}),
    "max_pool2d.dx": ((POOLED, X), POOL),
    "linear": ((random(9, 70), random(130, 70), random(130)), {}),
    "linear.dx": ((random(9, 130), random(130, 70)), {}),
    "linear.dweight": ((random(9, 130), random(9, 70)), {}),
    "linear.dbias": ((random(9, 130),), {}),
    "relu": ((random(300, 200),), {}),
    "relu.dx": ((random(300, 200), random(300, 200)[::-1]), {}),
    "flatten": ((X,), {}),
    "flatten.dx": ((random(5, 4 * 11 * 13), X.shape), {}),
    "cross_entropy": ((random(9, 7), np.arange(9) % 7), {}),
    "cross_entropy.dlogits": ((random(9, 7), np.arange(9) % 7), {}),
    "sgd": ((random(300, 200), random(300, 200)[::-1], random(300, 200)[:, ::-1]),
            {"learning_rate": 0.1, "momentum": 0.9}),
}  # fmt: skip


class Subclass(np.ndarray):
    """Like a memory map, or a matrix."""


LAYOUTS = {
    "column-major": np.asfortranarray,
    "reversed": lambda a: np.flip(np.flip(a).copy()),
    "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "channels last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) if a.ndim > 1 else a,
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    "subclass": lambda a: a.view(Subclass),
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
}


def test_every_operator_is_called_here():
    assert list(CALLS) == list(spec.OPERATORS)


def run(name: str, *args, **kwargs) -> tuple[np.ndarray, ...]:
    result = kernels.backend("cpu")(spec.find(name), *args, **kwargs)
    return result if isinstance(result, tuple) else (result,)


def bits(arrays: tuple[np.ndarray, ...]) -> list[bytes]:
    return [array.tobytes() for array in arrays]


@pytest.mark.parametrize("name", CALLS)
def test_bits_depend_on_neither_threads_nor_blocks(name, monkeypatch):
    args, kwargs = CALLS[name]
    monkeypatch.setattr(launch, "_SHARE", 1)  # All threads, however small the problem.
    every = bits(run(name, *args, **kwargs))
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        assert bits(run(name, *args, **kwargs)) == every
    finally:
        numba.set_num_threads(threads)
    monkeypatch.setattr(launch, "_BLOCK", 1)
    assert bits(run(name, *args, **kwargs)) == every


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_bits_do_not_depend_on_layout_and_inputs_stay_as_they_are(name, layout):
    args, kwargs = CALLS[name]
    laid = [LAYOUTS[layout](each) if isinstance(each, np.ndarray) else each for each in args]
    arrays = [each for each in laid if isinstance(each, np.ndarray)]
    row_major = [np.ascontiguousarray(each, each.dtype.newbyteorder("=")) for each in arrays]
    before = bits(tuple(arrays))
    result = run(name, *laid, **kwargs)
    assert {type(each) for each in result} == {np.ndarray}
    assert bits(result) == bits(run(name, *row_major, *args[len(arrays) :], **kwargs))
    assert bits(tuple(arrays)) == before
    assert not any(np.shares_memory(each, array) for each in result for array in arrays)


@pytest.mark.parametrize("dtype", [np.float16, np.int32, object])
def test_other_scalars_are_refused_by_name(dtype):
    with pytest.raises(spec.DtypeError, match=r"relu on cpu: x is .*; needs float32 or float64"):
        kernels.relu(np.ones(3, dtype))


def python(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # The limit is for what hangs: a busy machine compiles for minutes.
    return subprocess.run(
        [sys.executable, "-c", source], env=os.environ | environment, capture_output=True, text=True, timeout=600
    )


def test_numba_is_not_imported_before_the_first_call():
    result = python("import sys, kernelproof.kernels; sys.exit('numba' in sys.modules)")
    assert result.returncode == 0, result.stderr


FORK = """
import os, sys
import numpy as np
from kernelproof import kernels, spec
x = np.ones((64, 1024), np.float32)
kernels.relu(x)
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    os._exit(0 if (kernels.relu(x) == x).all() else 1)
except spec.UnsupportedError as error:
    print(error, flush=True)
    os._exit(7)
"""


def forking() -> list[tuple[str, int, str]]:
    """Threading layer, the child's exit code, what it says: GNU OpenMP, where there is one, ends a forked child."""
    try:
        importlib.import_module("numba.np.ufunc.omppool")
    except ImportError:
        return [("workqueue", 0, "")]
    return [("omp", 7, 'get_context("spawn")'), ("workqueue", 0, "")]


@pytest.mark.skipif(sys.platform != "linux", reason="only GNU OpenMP ends a forked child")
@pytest.mark.parametrize(("layer", "code", "told"), forking())
def test_a_forked_child_computes_or_is_told_why_not(layer, code, told):
    result = python(FORK, NUMBA_THREADING_LAYER=layer)
    assert result.returncode == code, result.stderr
    assert told in result.stdout


def test_two_python_threads_may_call_at_once():
    result = python(
        """
import threading
import numpy as np
from kernelproof import kernels
x = np.arange(1 << 18, dtype=np.float32) - 1000
wrong = []
def work():
    for _ in range(50):
        if not (kernels.relu(x) == np.maximum(x, 0)).all():
            wrong.append(1)
threads = [threading.Thread(target=work) for _ in range(4)]
[each.start() for each in threads]
[each.join() for each in threads]
assert not wrong
""",
        NUMBA_THREADING_LAYER="workqueue",  # The layer that aborts when entered twice.
    )
    assert result.returncode == 0, result.stderr


def test_blocks_of_two_python_threads_have_each_its_number_of_threads():
    both, first_is_done = threading.Barrier(2), threading.Event()
    seen = {}

    def first():
        with launch.on_threads(1):
            both.wait()
            both.wait()  # The second is in its block too.
            seen["first"] = launch._threads.get()
        first_is_done.set()

    def second():
        both.wait()
        with launch.on_threads(2):
            both.wait()
            first_is_done.wait()
            seen["second"] = launch._threads.get()
        seen["after"] = launch._threads.get()

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(first), pool.submit(second)]:
            each.result()
    assert seen == {"first": 1, "second": 2, "after": None}


def test_small_calls_of_several_python_threads_do_not_meet():
    """What is known of a geometry is kept for all of them, the memory that a call works in is not."""
    generator = np.random.default_rng(0)
    problems = []
    for size in (6, 7, 9, 12):
        x, weight = (
            generator.integers(-3, 4, shape).astype(np.float32) for shape in ((2, 4, size, 6), (size, 4, 3, 3))
        )
        problems.append((x, weight, spec.conv2d(x, weight, padding=1)))

    def work(_):
        return all(np.array_equal(kernels.conv2d(x, weight, padding=1), y) for x, weight, y in problems * 100)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))


def test_ctrl_c_waits_for_one_native_call_and_no_more():
    # Counted in calls, not in seconds, which a busy machine stretches: the signal is held back until its call is over.
    result = python(
        """
import os, signal
import numba
import numpy as np
from kernelproof import kernels
from kernelproof.kernels.cpu.convolution import direct
begun, core, interrupt = [], direct._convolve, {signal.SIGINT}
signal.signal(signal.SIGINT, signal.default_int_handler)  # Where tests run in the background it is ignored.
def counted(workers, counter, last, *arguments):
    begun.append(last - int(counter[0]))
    if len(begun) == 3:
        signal.pthread_sigmask(signal.SIG_BLOCK, interrupt)
        os.kill(os.getpid(), signal.SIGINT)
    core(workers, counter, last, *arguments)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupt)
direct._convolve = counted
try:
    kernels.conv2d(np.ones((8, 64, 100, 100), np.float32), np.ones((256, 64, 31, 31), np.float32))
except KeyboardInterrupt:
    # One task is a strip of rows: as long as it takes, no call holds more than one for each thread.
    print(len(begun), max(begun) <= numba.get_num_threads())
"""
    )
    assert result.stdout.split() == ["3", "True"], result.stderr


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A cache home and a copy of the kernel sources to edit."""
    shutil.copytree(jit_cache._SOURCES, tmp_path / "sources", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(jit_cache, "_SOURCES", tmp_path / "sources")
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path / "home"))
    return tmp_path / "home" / "kernelproof"


def test_the_cache_folder_is_the_users_alone(home):
    folder = jit_cache.cache_folder()
    assert folder is not None
    assert folder.parent == home
    assert [stat.S_IMODE(each.stat().st_mode) for each in (home, folder)] == [0o700, 0o700]
    home.chmod(0o770)
    assert jit_cache.cache_folder() is None


def test_an_edit_to_any_kernel_source_changes_the_cache_folder(home, tmp_path):
    folders = {jit_cache.cache_folder()}
    for source in (tmp_path / "sources").rglob("*.py"):
        source.write_text(source.read_text() + "\n")
        folders.add(jit_cache.cache_folder())
    assert len(folders) == 1 + len(list((tmp_path / "sources").rglob("*.py")))


@pytest.mark.parametrize("setting", ["OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "DISABLE_INTEL_SVML"])
def test_what_is_compiled_otherwise_is_kept_apart(home, monkeypatch, setting):
    folder, usual = jit_cache.cache_folder(), getattr(config, setting)
    monkeypatch.setattr(config, setting, not usual)
    assert jit_cache.cache_folder() != folder
    monkeypatch.setattr(config, setting, usual)
    assert jit_cache.cache_folder() == folder


def test_caches_unused_for_long_are_removed(home):
    old, recent = home / "0123456789abcdef", home / "fedcba9876543210"
    for folder in (old, recent):
        folder.mkdir(parents=True)
    month_ago = time.time() - 31 * 24 * 3600
    os.utime(old, (month_ago, month_ago))
    home.chmod(0o700)
    current = jit_cache.cache_folder()
    assert set(home.iterdir()) == {recent, current}


def test_other_users_of_numba_keep_their_cache_setting(home):
    setting = vars(sys.modules["numba.core.config"])
    before = setting["CACHE_DIR"]
    with jit_cache.private_cache():
        assert jit_cache.is_caching()
        assert Path(setting["CACHE_DIR"]).parent == home
    assert setting["CACHE_DIR"] == before


def test_two_processes_that_compile_at_once_do_not_take_each_others_code(tmp_path, monkeypatch):
    one, other = (jit_cache._FileOfEach(str(tmp_path), "core", "sources") for _ in range(2))
    write = one._save_data

    def late(name, code):
        monkeypatch.setattr(other, "_load_index", dict)  # Read before there was one.
        other.save("float64", "code for float64")
        write(name, code)

    monkeypatch.setattr(one, "_save_data", late)
    one.save("float32", "code for float32")
    found = jit_cache._FileOfEach(str(tmp_path), "core", "sources")
    assert [found.load(key) for key in ("float32", "float64")] == ["code for float32", "code for float64"]


def test_without_a_cache_folder_kernels_still_run(tmp_path):
    (tmp_path / "file").touch()
    result = python(
        "import numpy, kernelproof.kernels as k; print(k.relu(numpy.array([-1.0, 2.0])))",
        NUMBA_CACHE_DIR="",
        XDG_CACHE_HOME=str(tmp_path / "file"),
    )
    assert result.stdout == "[0. 2.]\n", result.stderr


def test_an_infinite_weight_reaches_its_own_pixels_only():
    generator = np.random.default_rng(0)
    weight = generator.integers(-3, 4, (2, 2, 3, 2)).astype(np.float32)
    weight[0, 1, 1, 0], weight[1, 0, 2, 1] = np.inf, np.nan
    dy = generator.integers(1, 4, (2, 2, 4, 4)).astype(np.float32)
    given = (dy, weight, (2, 2, 8, 9)), {"stride": (2, 2), "padding": ((0, 1), (0, 0))}
    with np.errstate(invalid="ignore"):
        right = spec.conv2d_dx(*given[0], **given[1])
    assert np.array_equal(kernels.conv2d_dx(*given[0], **given[1]), right, equal_nan=True)


def test_the_bias_gradient_of_no_columns_is_zero():
    assert not kernels.conv2d_dbias(np.zeros((2, 3, 4, 0), np.float32)).any()


def test_a_public_function_remembers_the_calls_before(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = np.ones((1, 2, 5, 6), np.float32), np.ones((3, 2, 3, 3), np.float32)
    for precision in ("strict", "fast"):
        first = kernels.conv2d(x, weight, padding=1, precision=precision)
        with monkeypatch.context() as without:
            without.setattr(type(spec.conv2d), "perform", None)
            assert np.array_equal(kernels.conv2d(x, weight, padding=1, precision=precision), first)


def test_a_remembered_call_is_refused_what_a_first_call_is() -> None:
    cpu = kernels.backend("cpu").at("strict")
    x, weight = np.ones((1, 2, 5, 5), np.float32), np.ones((3, 2, 3, 3), np.float32)
    for _ in range(3):
        assert cpu(spec.conv2d, x, weight, padding=1).shape == (1, 3, 5, 5)
        with pytest.raises(spec.ParameterError):
            cpu(spec.conv2d, x, weight, padding=True)
        with pytest.raises(spec.DtypeError):
            cpu(spec.conv2d, x, weight.astype(np.float64), padding=1)
        with pytest.raises(spec.ShapeError):
            cpu(spec.conv2d, x, weight[:, :1], padding=1)
    logits, target = np.zeros((2, 3), np.float32), np.array([0, 1])
    for value, refused in ((1, False), (3, True), (2, False), (-1, True)):
        target[1] = value
        if refused:
            with pytest.raises(spec.KernelproofError):
                cpu(spec.cross_entropy, logits, target)
        else:
            cpu(spec.cross_entropy, logits, target)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy_dlogits"])
def test_targets_may_be_any_signed_integers(name: str, kind: type) -> None:
    # Drawn problems have int64 alone: others' kernels may ask for it.
    generator = np.random.default_rng(0)
    logits, target = generator.standard_normal((17, 33), np.float32), generator.integers(0, 33, 17)
    for module in (spec, kernels):
        came, right = (getattr(module, name)(logits, each) for each in (target.astype(kind), target))
        assert np.array_equal(came, right)
