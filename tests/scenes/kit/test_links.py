import numpy as np
import pytest

from scenes.kit import theme
from scenes.kit.links import Links
from scenes.kit.traced import Traced
from tests.scenes.kit.drawing import color_at, halfway, pixels

STARTS = [np.array([0.0, -1.0, 0.0])]
ENDS = [np.array([x, 1.0, 0.0]) for x in (-2.0, 0.0, 2.0)]
WEIGHTS = Traced("weights", np.array([[0.0, 1.0, 0.5]]))


def test_a_link_joins_its_ends_as_strongly_as_its_weight():
    image = pixels(Links(WEIGHTS, STARTS, ENDS))
    assert color_at(image, np.array([0.0, 0.0, 0.0])) == theme.SCORE  # full weight, straight up
    assert color_at(image, np.array([1.0, 0.0, 0.0])) not in (theme.SCORE, theme.BACKGROUND)  # half weight
    assert color_at(image, np.array([-1.0, 0.0, 0.0])) == theme.BACKGROUND  # no weight, no link


def test_a_weak_link_can_be_made_visible_but_never_one_that_is_not_there():
    weak = Traced("weights", np.array([[0.0, 1.0, 0.005]]))
    right, left = np.array([1.0, 0.0, 0.0]), np.array([-1.0, 0.0, 0.0])
    assert color_at(pixels(Links(weak, STARTS, ENDS)), right) == theme.BACKGROUND
    image = pixels(Links(weak, STARTS, ENDS, faintest=0.5))
    assert color_at(image, right) != theme.BACKGROUND
    assert color_at(image, left) == theme.BACKGROUND


def test_other_weights_glide():
    links = Links(WEIGHTS, STARTS, ENDS)
    later = links.copy().set_values(Traced("later", np.array([[1.0, 0.0, 0.5]])))
    np.testing.assert_allclose(halfway(links, later).strength, [[0.5, 0.5, 0.5]])


def test_links_follow_their_ends():
    links = Links(WEIGHTS[0], STARTS, ENDS).aim([ENDS[2], ENDS[1], ENDS[0]])
    image = pixels(links)
    assert color_at(image, np.array([-1.0, 0.0, 0.0])) != theme.BACKGROUND
    assert color_at(image, np.array([1.0, 0.0, 0.0])) == theme.BACKGROUND


def test_links_move_with_their_picture():
    links = Links(WEIGHTS, STARTS, ENDS).shift([1.0, 0, 0])
    assert color_at(pixels(links), np.array([1.0, 0.0, 0.0])) == theme.SCORE


def test_links_of_other_starts_recede():
    both = Traced("weights", np.ones((2, 1)))
    links = Links(both, [np.array([-2.0, -1, 0]), np.array([2.0, -1, 0])], [np.array([0.0, 1, 0])]).focus(0)
    image = pixels(links)
    assert color_at(image, np.array([-1.0, 0, 0])) == theme.SCORE
    assert color_at(image, np.array([1.0, 0, 0])) not in (theme.SCORE, theme.BACKGROUND)


def test_the_ledger_lists_the_links_that_are_there():
    assert Links(WEIGHTS, STARTS, ENDS).ledger() == [("link", "weights[0, 1]"), ("link", "weights[0, 2]")]


def test_links_need_a_weight_for_every_pair():
    with pytest.raises(TypeError, match="Links shows values of the Trace"):
        Links(np.ones((1, 3)), STARTS, ENDS)
    with pytest.raises(ValueError, match=r"1 starts and 2 ends need as many weights, got \(1, 3\)"):
        Links(WEIGHTS, STARTS, ENDS[:2])
