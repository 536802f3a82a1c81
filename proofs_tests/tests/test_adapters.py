"""The adapters: each framework that is installed is held to the laws, and what falls is known.

PyTorch, JAX and tinygrad are no dependencies: where they are missing their tests do not exist.
"""

import re
import subprocess
import sys
from importlib.metadata import metadata

import numpy as np
import pytest

from kernelproof import spec
from kernelproof.proofs import adapters, subject_of, verify
from kernelproof.proofs.adapters import ADAPTERS, OWN, Adapter
from kernelproof.proofs.findings import FINDINGS, finding_of
from kernelproof.proofs.laws import LAWS

INSTALLED = [name for name, adapter in ADAPTERS.items() if adapter.installed]
HAVE = {name: tuple(adapters.load(name).functions) for name in INSTALLED}
POOL = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "ceil_mode": False}

IMAGES = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)


def without(*missing: str) -> set[str]:
    return {name for name in spec.OPERATORS if not name.startswith(missing)}


FORWARDS = {"conv2d", "max_pool2d", "linear", "relu", "flatten", "cross_entropy"}
EXPECTED = {
    "torch": set(spec.OPERATORS),
    "tinygrad": set(spec.OPERATORS),
    "jax": without("sgd"),
    "onnxruntime": FORWARDS,
    "onnx.reference": {*FORWARDS, "sgd"},
}


@pytest.mark.parametrize("name", INSTALLED)
def test_an_adapter_has_every_operator_that_its_framework_has(name: str):
    assert set(HAVE[name]) == EXPECTED[name]


@pytest.mark.parametrize(("name", "operator"), [(name, operator) for name in INSTALLED for operator in HAVE[name]])
def test_what_falls_is_known(name: str, operator: str):
    report = verify(subject_of(name), operator, level=("L1", "L3"), examples=3)
    assert report.results
    assert all(finding_of(name, result) for result in report.failures), report.failures
    assert any(result.verdict == "proven" or result.failure for result in report.results)


@pytest.mark.parametrize("name", [name for name in INSTALLED if "conv2d.dx" in HAVE[name]])
@pytest.mark.parametrize("operator", ["conv2d.dx", "linear.dweight"])
def test_gradients_are_adjoint(name: str, operator: str):
    assert verify(subject_of(name), operator, level="L5", examples=3).verdict == "proven"


@pytest.mark.parametrize("name", [name for name in ("onnxruntime", "torch", "tinygrad") if name in INSTALLED])
def test_an_index_counts_within_its_image(name: str):
    came = adapters.load(name).functions["max_pool2d"](IMAGES, (2, 2), **POOL, return_indices=True)
    for got, expected in zip(came, spec.max_pool2d(IMAGES, 2, stride=1, return_indices=True), strict=True):
        np.testing.assert_array_equal(got.detach() if hasattr(got, "detach") else got, expected)


@pytest.mark.parametrize(("name", "options"), [
    ("torch", {"padding": ((0, 1), (0, 0))}),
    ("torch", {"padding": ((2, 2), (0, 0))}),
    ("onnxruntime", {"padding": ((2, 2), (0, 0)), "dilation": (3, 1)}),
    ("jax", {"ceil_mode": True}),
    ("jax", {"return_indices": True}),
])  # fmt: skip
def test_what_a_framework_does_not_have_is_declined(name: str, options: dict[str, object]):
    if name not in INSTALLED:
        pytest.skip(f"{name} is not installed")
    with pytest.raises(NotImplementedError):
        adapters.load(name).functions["max_pool2d"](IMAGES, (2, 2), **{**POOL, **options})


def test_momentum_is_a_float32_attribute():
    arrays = (np.ones(2), np.ones(2), np.ones(2))
    with pytest.raises(NotImplementedError):
        adapters.load("onnx.reference").functions["sgd"](*arrays, learning_rate=0.1, momentum=0.9)


def test_a_missing_package_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ADAPTERS, "torch", Adapter("torch", ("no_such_package",), "torch"))
    with pytest.raises(spec.UnsupportedError, match=r"pip install 'kernelproof\[torch\]'"):
        verify("torch", "relu")


def test_a_package_that_cannot_be_imported_is_told_with_its_extra():
    with pytest.raises(spec.UnsupportedError, match=r"No module named 'no_such_package'.*kernelproof\[jax\]"):
        adapters.framework("no_such_package", "jax")


def test_every_extra_exists():
    extras = metadata("kernelproof").get_all("Provides-Extra") or []
    assert {adapter.extra for adapter in ADAPTERS.values()} <= set(extras)


def test_an_unknown_backend_is_told_with_those_that_there_are():
    with pytest.raises(spec.ParameterError, match=", ".join((*OWN, *ADAPTERS))):
        verify("tensorflow")


def test_an_operator_that_an_adapter_lacks_is_told():
    with pytest.raises(spec.UnsupportedError, match=r"onnxruntime has no conv2d\.dx"):
        verify("onnxruntime", "conv2d.dx")


def test_declarations_narrow_an_adapter():
    subject = subject_of("onnxruntime", "conv2d", supports="groups == 1", precision="tf32", dtypes=("float64",))
    assert (set(subject.functions), subject.precision, subject.dtypes) == ({"conv2d"}, "tf32", ("float64",))
    assert subject.limits == "groups == 1"


def test_nothing_is_imported_before_it_is_asked_for():
    script = "import sys, kernelproof.proofs.adapters; print([name for name in sys.argv[1:] if name in sys.modules])"
    # jaxtyping imports JAX where it finds it, asked or not.
    packages = sorted({package for name, adapter in ADAPTERS.items() for package in adapter.packages if name != "jax"})
    came = subprocess.run([sys.executable, "-c", script, *packages], capture_output=True, text=True, check=True)
    assert came.stdout.strip() == "[]"


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: f"{finding.adapter}-{finding.operator}-{finding.law}")
def test_a_finding_speaks_of_an_adapter_and_a_law(finding):
    assert finding.adapter in ADAPTERS
    assert any(re.fullmatch(finding.law, law) for law in LAWS)
    assert finding.sentence.endswith(".")
    assert finding.link.startswith(("https://", "docs/semantics.md#")) or (not finding.link and not finding.documented)
