import numpy as np
import pytest

from scenes.kit.label import Label
from scenes.kit.motion import Stream

PLACES = [np.array([4.0, y, 0.0]) for y in (2.0, 0.0, -2.0)]


def streaming(share, lag=0.5, **options):
    words = [Label(text) for text in ("one", "day", "the")]
    motion = Stream(words, PLACES, lag=lag, **options)
    motion.begin()
    motion.interpolate(share)
    return words


def test_words_of_a_stream_are_seen_from_the_moment_they_leave():
    assert [float(word.opacity) for word in streaming(0.0)] == [0, 0, 0]
    assert [float(word.opacity) for word in streaming(0.2)] == [1, 0, 0]
    assert [float(word.opacity) for word in streaming(0.4)] == [1, 1, 0]
    far = [word.get_center()[0] for word in streaming(0.4)]
    assert far == sorted(far, reverse=True)


def test_a_stream_ends_with_every_word_in_its_place():
    for word, place in zip(streaming(1.0), PLACES, strict=True):
        np.testing.assert_allclose(word.get_center(), place, atol=1e-9)
        assert word.opacity == 1


def test_a_stream_needs_a_place_for_each_word():
    with pytest.raises(ValueError, match="1 pictures need as many places, got 3"):
        Stream([Label("one")], PLACES)


def test_what_is_to_happen_at_the_end_of_a_way_happens_there_and_not_before():
    for share, landed in ((0.4, []), (0.6, [0]), (0.8, [0, 1]), (1.0, [0, 1, 2])):
        seen = []
        streaming(share, on_landing=seen.append)
        assert sorted(set(seen)) == landed
