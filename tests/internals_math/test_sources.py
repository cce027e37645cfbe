import pytest

from internals_math import sources
from internals_math.sources import source_files, source_hash


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of its own: writes modules and returns the hash of `internals_math.topic`."""
    (tmp_path / "internals_math").mkdir()
    (tmp_path / "internals_math" / "__init__.py").touch()
    monkeypatch.setattr(sources, "ROOT", tmp_path)

    def write(**modules):
        for name, text in modules.items():
            (tmp_path / "internals_math" / f"{name}.py").write_text(text)
        source_files.cache_clear()
        source_hash.cache_clear()
        return source_hash("internals_math.topic")

    yield write
    source_files.cache_clear()
    source_hash.cache_clear()


def names(module):
    return {path.name for path in source_files(module)}


@pytest.mark.parametrize(
    "statement",
    [
        "from internals_math.helper import value",
        "from internals_math import helper",
        "import internals_math.helper",
        "import internals_math.helper as h",
        "from . import helper",
        "from .helper import value",
        "def trace():\n    from internals_math import helper",
    ],
)
def test_a_change_in_an_imported_module_changes_the_hash(project, statement):
    before = project(topic=statement, helper="value = 1")
    assert project(helper="value = 2") != before
    assert project(helper="value = 1") == before


def test_a_change_two_imports_away_changes_the_hash(project):
    before = project(topic="from internals_math import near", near="import internals_math.far", far="value = 1")
    assert project(far="value = 2") != before


def test_modules_that_are_not_imported_do_not_count(project):
    before = project(topic="import math", other="value = 1")
    assert project(other="value = 2") == before


def test_modules_that_import_each_other_are_read_once(project):
    project(topic="from internals_math import other", other="from internals_math import topic")
    assert names("internals_math.topic") == {"__init__.py", "topic.py", "other.py"}


def test_moving_text_from_one_file_to_the_next_changes_the_hash(project):
    before = project(topic="from internals_math import a, b", a="x = 1\n", b="y = 2\n")
    assert project(a="x = 1\ny = 2\n", b="") != before


def test_the_core_of_a_real_topic_stands_on_the_model_and_not_on_the_pictures():
    assert {"rope.py", "trace.py", "model.py", "grammar.py"} <= names("internals_math.rope")
    assert not any("scenes" in path.parts for path in source_files("internals_math.rope"))
    assert "rope.py" in names("internals_math.kv_cache")


def test_a_module_of_someone_else_is_refused():
    with pytest.raises(ValueError, match=r"torch\.nn is not a module of this project"):
        source_files("torch.nn")
    with pytest.raises(ValueError, match="internals_math.no_such_topic is not a module"):
        source_hash("internals_math.no_such_topic")
