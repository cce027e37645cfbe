import numpy as np
import pytest

from scenes.kit import theme
from scenes.kit.number_line import NumberLine, SlideThrough
from scenes.kit.traced import Traced, TracedText
from tests.scenes.kit.drawing import FINE, color_at, halfway, pixels

PLACES = Traced("positions", np.array([2, 4]))
NAMES = (TracedText("fox", "tokens[5]"), TracedText("a", "tokens[7]"))


def line(values=PLACES, **options):
    return NumberLine(values, **({"span": (0, 10), "length": 5.0, "roles": "KEY"} | options))


def test_a_bead_hangs_at_its_value():
    beads = line()
    assert [beads.bead(k)[0] for k in range(2)] == pytest.approx([-1.5, -0.5])
    assert color_at(pixels(beads), beads.bead(1)) == theme.KEY
    np.testing.assert_allclose(beads.point(4), beads.bead(1))


def test_equal_factors_are_equal_distances_on_a_log_line():
    beads = line(Traced("bytes", np.array([10.0])), span=(1, 100), log=True)
    assert beads.bead(0)[0] == pytest.approx(0.0)


def test_beads_slide_to_other_values():
    beads = line()
    later = beads.copy().set_values(Traced("later", np.array([4, 6])))
    assert halfway(beads, later).places.tolist() == [3.0, 5.0]
    assert later.ledger()[0] == ("bead", "later[0]")


def test_a_zoom_moves_the_beads_along():
    beads = line().set_span(0, 20)
    assert beads.bead(1)[0] == pytest.approx(5.0 * (4 / 20 - 0.5))


def test_the_gap_is_marked_between_the_first_two_beads():
    beads = line(Traced("positions", np.array([2, 8]))).show_gap()
    assert color_at(pixels(beads), beads.point(5)) == theme.SCORE
    assert color_at(pixels(beads, FINE), beads.point(9.5)) == theme.MUTED


def test_sliding_through_stops_keeps_two_words_at_their_distance():
    beads = line(span=(0, 60))
    first, second = (Traced(name, np.arange(45) + start) for name, start in (("key", 2), ("query", 4)))
    sliding = SlideThrough(beads, first, second)
    sliding.begin()
    for alpha in np.linspace(0, 1, 7):
        sliding.interpolate_mobject(alpha)
        assert beads.places[1] - beads.places[0] == pytest.approx(2)
    assert beads.places.tolist() == [46, 48]


def test_the_ledger_lists_beads_and_names():
    assert line(names=NAMES).ledger() == [
        ("bead", "positions[0]"),
        ("bead", "positions[1]"),
        ("fox", "tokens[5]"),
        ("a", "tokens[7]"),
    ]


def test_a_line_refuses_what_it_cannot_show():
    with pytest.raises(TypeError, match="NumberLine shows values of the Trace"):
        line([2, 4])
    with pytest.raises(ValueError, match=r"the span must rise from above 0, got 0\.\.10"):
        line(log=True)
    with pytest.raises(ValueError, match="2 beads need as many roles and names, got 2 and 1"):
        line(names=NAMES[:1])
    with pytest.raises(ValueError, match="set_values needs 2 values, got 1"):
        line().set_values(PLACES[:1])
    with pytest.raises(ValueError, match=r"a field of stops for each of 2 beads, got \(3,\)"):
        SlideThrough(line(), Traced("key", np.arange(3)))
