import pytest

from scripts.pipeline.errors import UserError
from scripts.pipeline.files import check_folder, sweep, written_aside


def test_a_folder_that_cannot_be_made_is_named_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write to .*file/out: Not a directory; choose another folder with --out"
    ):
        check_folder(tmp_path / "file" / "out")


def test_files_appear_together_when_all_are_written(tmp_path):
    with written_aside(tmp_path / "out", "run") as (aside, files):
        (aside / "b").write_text("2")
        (aside / "a").write_text("1")
        assert [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")] == []
    assert files == [tmp_path / "out" / "a", tmp_path / "out" / "b"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]


def test_an_error_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "a").write_text("old")

    def fail_half_way() -> None:
        with written_aside(tmp_path, "run") as (aside, _):
            (aside / "a").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_sweeping_leaves_what_another_call_is_writing(tmp_path):
    (tmp_path / ".part-mine-1").mkdir()
    (tmp_path / ".part-other-1").mkdir()
    sweep(tmp_path, "mine")
    assert [path.name for path in tmp_path.iterdir()] == [".part-other-1"]
