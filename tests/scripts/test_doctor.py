import json

from scenes.kit.typography import FILES
from scripts.pipeline import doctor
from tests.scripts.conftest import call


def test_a_machine_with_everything_gets_a_clean_bill():
    result = call("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)}
    assert result.exit_code == 0
    assert {"python", "torch", "manim", "ffmpeg", "gifsicle", "fonts", "checkpoints", "cache folder"} <= set(findings)
    assert all(finding["ok"] for finding in findings.values() if finding["needed"])


def test_missing_ffmpeg_fails_and_names_the_command_that_gets_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = call("doctor")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    row = next(index for index, line in enumerate(lines) if line.startswith("missing ffmpeg"))
    assert "apt install ffmpeg · dnf install ffmpeg · brew install ffmpeg" in lines[row + 1]


def test_gifsicle_is_wished_for_but_not_needed(tmp_path, monkeypatch):
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    result = call("doctor")
    assert result.exit_code == 0
    assert "absent  gifsicle" in result.stdout
    assert "absent  chromium" in result.stdout


def test_a_cache_folder_that_cannot_be_written_to_is_found(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLM_INTERNALS_CACHE", str(tmp_path / "file" / "cache"))
    result = call("doctor")
    assert result.exit_code == 1
    assert "missing cache folder" in result.stdout
    assert "set LLM_INTERNALS_CACHE" in result.stdout


def test_the_fonts_looked_for_are_those_the_kit_draws_with():
    assert set(doctor.FONTS) == set(FILES.values())
