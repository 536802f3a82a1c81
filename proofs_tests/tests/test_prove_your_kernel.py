"""The page "Prove your kernel": its kernels are judged as it says, by the commands that it shows."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "prove-your-kernel.md").read_text()
FILES = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL)
"""File names and contents; the first is the wrong kernel, of which the second is the corrected one."""
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
VERIFY = [line for line in COMMANDS if line.startswith("kernelproof verify")]


def run(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    arguments = shlex.split(command)[1:]
    return subprocess.run(
        [sys.executable, "-m", "kernelproof", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def written(folder: Path, files: list[tuple[str, str]]) -> Path:
    for name, content in files:
        (folder / name).write_text(content)
    return folder


def test_the_wrong_kernel_is_refuted_as_shown_and_its_cases_are_replayed(tmp_path: Path) -> None:
    written(tmp_path, FILES[:1])
    came = run(tmp_path, VERIFY[0])
    assert came.returncode == 1
    # The law's smallest case is drawn: its form is what the page promises, a zero that wins over a negative number.
    form = r"max_pool2d at \[n,c,p,q\] = \(.*\): the kernel gives 0, the specification -\d+ "
    assert re.search(form, PAGE)
    assert re.search(form, came.stdout)
    assert run(tmp_path, "kernelproof replay").returncode == 1
    written(tmp_path, FILES[1:2])
    assert run(tmp_path, "kernelproof replay").returncode == 0


@pytest.mark.parametrize("command", VERIFY, ids=lambda command: shlex.split(command)[2])
def test_the_other_kernels_are_proven(command: str, tmp_path: Path) -> None:
    came = run(written(tmp_path, FILES), f"{command} --examples 20")
    assert came.returncode == 0, came.stdout


def test_a_fused_rectifier_that_is_dropped_is_refuted_as_the_page_says(tmp_path: Path) -> None:
    source = dict(FILES)["myfused.py"]
    dropped = re.sub(r"np\.maximum\((.*), 0\)", r"\1 if options['stride'] != (1, 1) else np.maximum(\1, 0)", source)
    assert dropped != source
    written(tmp_path, [("myfused.py", dropped)])
    came = run(tmp_path, "kernelproof verify myfused:conv2d --op conv2d --level L1")
    assert came.returncode == 1
    [got, expected] = map(int, re.findall(r"the kernel gives (-?\d+), the specification (-?\d+)", came.stdout)[0])
    assert got == 2 * expected


def test_the_kernels_are_proven_in_pytest(tmp_path: Path) -> None:
    written(tmp_path, FILES)
    options = ["--kernelproof-examples", "2", "--kernelproof-level", "L1", "-p", "no:cacheprovider"]
    came = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, "test_mylinear.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert came.returncode == 0, came.stdout
    assert "4 passed" in came.stdout


def test_the_options_exist() -> None:
    plugin = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"], capture_output=True, text=True, check=True
    ).stdout
    verify = run(Path(), "kernelproof verify --help").stdout
    told = re.sub(r"\s+", " ", plugin), re.sub(r"[\s│]+", " ", verify)
    for option in set(re.findall(r"--[a-z][a-z-]+", PAGE)):
        assert any(option in each for each in told), option
