import json

import pytest

from scripts.pipeline import manifest
from scripts.pipeline.manifest import FORMATS, request_hash
from scripts.pipeline.quality import QUALITIES
from tests.scripts.topics import tiny


def write(folder, theme="dark", request="r1", names=("a.mp4",)):
    files = [folder / name for name in names]
    for file in files:
        file.write_text(f"{theme} {file.name}")
    render = {"request": request, "seconds": 1.0, "units": [{"name": "grid", "seconds": 2.5}]}
    return manifest.write(folder, {"topic": "tiny"}, theme, render, files)


def test_files_of_the_same_request_are_unchanged(tmp_path):
    write(tmp_path)
    assert manifest.unchanged_files(tmp_path, "dark", "r1") == [tmp_path / "a.mp4", tmp_path / "manifest.json"]


def test_another_request_a_missing_or_an_edited_file_is_a_change(tmp_path):
    write(tmp_path)
    assert manifest.unchanged_files(tmp_path, "dark", "r2") is None
    assert manifest.unchanged_files(tmp_path, "light", "r1") is None
    (tmp_path / "a.mp4").write_text("edited")
    assert manifest.unchanged_files(tmp_path, "dark", "r1") is None
    (tmp_path / "a.mp4").unlink()
    assert manifest.unchanged_files(tmp_path, "dark", "r1") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"renders": 3}', '"x"'])
def test_a_damaged_manifest_counts_as_none(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    assert manifest.read(tmp_path) == {}
    assert manifest.unchanged_files(tmp_path, "dark", "r1") is None
    assert manifest.known_seconds(tmp_path) == {}


def test_rendering_one_theme_keeps_what_is_known_of_the_other(tmp_path):
    write(tmp_path, "light", names=("a-light.mp4",))
    write(tmp_path, "dark")
    renders = json.loads((tmp_path / "manifest.json").read_text())["renders"]
    assert list(renders) == ["dark", "light"]
    assert list(renders["light"]["files"]) == ["a-light.mp4"]
    assert manifest.known_seconds(tmp_path) == {"grid": 2.5}


def test_the_request_changes_with_everything_it_names():
    quality = QUALITIES["l"]
    base = request_hash(tiny.TOPIC, quality, ["seed=1"], FORMATS)
    assert base == request_hash(tiny.TOPIC, quality, ["seed=1"], FORMATS[::-1])
    others = [
        request_hash(tiny.TOPIC, QUALITIES["m"], ["seed=1"], FORMATS),
        request_hash(tiny.TOPIC, quality, ["seed=2"], FORMATS),
        request_hash(tiny.TOPIC, quality, ["seed=1"], FORMATS[1:]),
        request_hash(tiny.TOPIC, quality, ["seed=1"], FORMATS, "nvenc"),
    ]
    assert len({base, *others}) == 5
