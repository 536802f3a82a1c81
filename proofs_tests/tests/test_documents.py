"""The README's code runs as printed, its output is what comes out, and the reference pages are up to date."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_the_readme_code_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_the_readme_shows_what_verify_prints(tmp_path: Path) -> None:
    kernel, printed = blocks("python")[0], blocks("text")[0]
    (tmp_path / "mykernels.py").write_text(kernel)
    command = [sys.executable, "-m", "kernelproof", "verify", "mykernels:conv2d", "--op", "conv2d"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert printed in run.stdout


@pytest.mark.parametrize("command", re.findall(r"^kernelproof (\w+)", "".join(blocks("console")), re.MULTILINE))
def test_the_readme_commands_exist(command: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "kernelproof", command, "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage: kernelproof" in run.stdout


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]), ids=lambda page: page.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_reference_pages_are_up_to_date() -> None:
    specification = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert specification is not None
    assert specification.loader is not None
    reference = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(reference)
    for page, text in reference.PAGES.items():
        assert (ROOT / "docs" / page).read_text() == text(), f"run: python docs/reference.py ({page} is old)"
