from PIL import Image

from scenes import series
from scripts.pipeline import gallery


def test_the_readme_shows_every_loop_of_the_gallery_with_its_alt_text():
    shown = gallery.TABLE.search(gallery.README.read_text())
    assert shown is not None
    assert shown[0] == gallery.table()  # else: llm-internals gallery


def test_every_loop_of_the_gallery_is_of_a_finished_topic_and_small():
    loops = sorted(gallery.FOLDER.glob("*"))
    assert loops
    assert {path.stem for path in loops} <= {topic.slug for topic in series.finished()}
    for path in loops:
        assert path.stat().st_size <= gallery.MAX_BYTES == 600_000, path.name
        with Image.open(path) as image:
            assert (image.format, image.width, image.info["loop"]) == ("GIF", 640, 0), path.name
