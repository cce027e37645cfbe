import math

import numpy as np
import pytest

from scenes.kit import theme
from scenes.kit.key_plane import REACH, KeyPlane
from scenes.kit.traced import Traced, TracedText
from scenes.kit.typography import Style, width
from tests.scenes.kit.drawing import FINE, amount_of, color_at, halfway, pixels

KEYS = Traced("keys", np.array([[2.0, 1.5], [-1.0, 1.0]]))
QUERY = Traced("query", np.array([3.0, 0.0]))
ANGLES = Traced("angles", np.degrees(np.arctan2([1.5, 1.0], [2.0, -1.0])))
NAMES = (TracedText("cup", "tokens[0]"), TracedText("dog", "tokens[1]"))


def plane(**changes):
    return KeyPlane(KEYS, QUERY, **({"angles": ANGLES, "names": NAMES, "unit": 1.0} | changes))


def at(start, x, y):
    return start + np.array([x, y, 0])


def test_arrows_end_at_the_real_places_of_query_and_keys():
    picture = plane().show()
    origin = picture.origin
    image = pixels(picture, FINE)
    assert color_at(image, at(origin, 1.5, 0)) == theme.QUERY
    assert color_at(image, at(origin, 1.0, 0.75)) == theme.KEY  # half way to (2, 1.5)
    assert color_at(image, at(origin, -0.5, 0.5)) == theme.KEY
    assert color_at(image, at(origin, 3.2, 0.1)) == theme.BACKGROUND


def test_a_key_is_there_only_when_it_is_shown():
    assert amount_of(pixels(plane(), FINE), theme.KEY) == 0
    assert plane().ledger() == [("query", "query")]


def test_a_dropped_key_lays_its_signed_length_along_the_query():
    picture = plane().show().drop()
    middle = picture.length_center()
    image = pixels(picture, FINE)
    for x, lies_there in ((1.9, True), (2.1, False), (-0.9, True), (-1.1, False)):
        assert (color_at(image, at(middle, x, 0)) == theme.SCORE) == lies_there
    half = pixels(halfway(plane().show(), picture), FINE)  # the length grows from the origin
    assert color_at(half, at(middle, 1.5, 0)) == theme.BACKGROUND
    assert color_at(half, at(middle, 0.9, 0)) not in (theme.BACKGROUND, theme.SCORE)


def test_the_angle_is_marked_and_written():
    picture = plane().show(0).open(0).label(0)
    origin, half = picture.origin, math.atan2(1.5, 2.0) / 2
    inside = color_at(pixels(picture, FINE), at(origin, 0.5 * math.cos(half), 0.5 * math.sin(half)))
    assert inside not in (theme.BACKGROUND, theme.KEY, theme.QUERY)
    assert picture.ledger() == [
        ("query", "query"),
        ("arrow", "keys[0, :]"),
        ("cup", "tokens[0]"),
        ("37°", "angles[0]"),
    ]


def test_no_arrow_runs_through_the_number_of_an_angle():
    far, middle = REACH + 0.38, math.atan2(1.5, 2.0) / 2
    through = Traced("keys", np.array([[2.0, 1.5], [3.0 * math.cos(middle), 3.0 * math.sin(middle)]]))
    picture = KeyPlane(through, QUERY, angles=ANGLES, names=NAMES, unit=1.0).show().recede(1).open(0)
    image = pixels(picture, FINE)
    beside = far * math.cos(middle) - width("37°", Style(theme.LABEL, bold=True)) / 2 - 0.03
    assert color_at(image, at(picture.origin, beside, beside * math.tan(middle))) == theme.BACKGROUND
    assert color_at(image, at(picture.origin, 0.95 * beside, 0.95 * beside * math.tan(middle))) != theme.BACKGROUND


def test_keys_step_back_and_lead():
    picture = plane().show().recede().lead(0)
    image = pixels(picture, FINE)
    assert color_at(image, at(picture.origin, 1.0, 0.75)) == theme.KEY
    assert color_at(image, at(picture.origin, -0.5, 0.5)) not in (theme.KEY, theme.BACKGROUND)


def test_it_needs_pairs_and_an_angle_and_a_name_for_each_key():
    with pytest.raises(TypeError, match="KeyPlane shows values of the Trace"):
        KeyPlane(np.ones((2, 2)), QUERY, angles=ANGLES, names=NAMES, unit=1.0)
    with pytest.raises(ValueError, match=r"keys are \(S, 2\) and the query \(2,\), got \(2,\) and \(2,\)"):
        KeyPlane(KEYS[0], QUERY, angles=ANGLES, names=NAMES, unit=1.0)
    with pytest.raises(ValueError, match="2 keys need as many angles and names, got 1 and 2"):
        plane(angles=ANGLES[:1])
