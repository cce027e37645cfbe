"""scripts/run and scripts/test on a machine that lacks something, without touching this one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHELL = shutil.which("dash") or shutil.which("sh") or "sh"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the set-up files and programs that do nothing."""
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "scripts").mkdir()
    for name in ("setup.sh", "run", "test"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    return tmp_path


def program(folder: Path, name: str, script: str = "exit 0") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def run(checkout: Path, command: str, path: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [SHELL, "-c", command], cwd=checkout, env={"PATH": path}, capture_output=True, text=True, check=False
    )


def test_a_machine_that_is_ready_is_left_alone(checkout):
    bin_folder = checkout / ".venv" / "bin"
    program(bin_folder, "python", "echo 'python was called' >&2; exit 1")
    program(bin_folder, "llm-internals", 'echo "called with $*"')
    stamp = run(checkout, ". scripts/setup.sh; wanted_stamp", os.environ["PATH"]).stdout
    (checkout / ".venv" / ".ready-run").write_text(stamp)
    done = run(checkout, "scripts/run list --json", os.environ["PATH"])
    assert (done.stdout, done.stderr, done.returncode) == ("called with list --json\n", "", 0)


def test_a_changed_pin_asks_for_another_installation(checkout):
    before = run(checkout, ". scripts/setup.sh; wanted_stamp", os.environ["PATH"]).stdout
    (checkout / "constraints.txt").write_text("torch==1.0\n")
    assert run(checkout, ". scripts/setup.sh; wanted_stamp", os.environ["PATH"]).stdout != before


def test_missing_libraries_are_named_for_three_systems_where_they_cannot_be_installed(checkout):
    tools = checkout / "bin"
    for name in ("cat", "cksum", "dirname", "uname", "sh"):
        tools.mkdir(exist_ok=True)
        (tools / name).symlink_to(shutil.which(name) or "")
    program(tools, "id", "echo 1000")
    program(tools, "python3")
    done = run(checkout, "scripts/run list", str(tools))
    assert done.returncode != 0
    for line in (
        "sudo apt install ffmpeg libcairo2-dev libpango1.0-dev",
        "sudo dnf install ffmpeg",
        "brew install ffmpeg",
    ):
        assert line in done.stderr
    assert not (checkout / ".venv").exists()


def test_an_old_python_is_refused_with_the_way_out(checkout):
    tools = checkout / "bin"
    for name in ("cat", "cksum", "dirname", "sh"):
        tools.mkdir(exist_ok=True)
        (tools / name).symlink_to(shutil.which(name) or "")
    program(tools, "python3", "exit 1")
    done = run(checkout, "scripts/test", str(tools))
    assert done.returncode != 0
    assert "Python 3.11 or newer was not found" in done.stderr
    assert "PYTHON=/path/to/python3" in done.stderr
