import numpy as np
import pytest

from scenes.kit import theme
from scenes.kit.gantt import Gantt
from scenes.kit.traced import Traced
from tests.scenes.kit.drawing import color_at, halfway, pixels

START, END = (Traced(name, np.array(times)) for name, times in (("start", [0.0, 1.0, 4.0]), ("end", [1.0, 4.0, 5.0])))


def schedule(**options):
    settings = {"lanes": ("small", "large"), "lane": [0, 1, 0], "roles": ["WEIGHT", "VALUE", "WEIGHT"], "width": 5.0}
    return Gantt(START, END, **(settings | options))


def test_a_block_lies_on_its_lane_from_its_start_to_its_end():
    gantt = schedule()
    np.testing.assert_allclose(gantt.block_center(1), [0.0, -0.4, 0])  # times 1 to 4 of 0 to 5, one unit each
    np.testing.assert_allclose(gantt.block_end(0), [-1.5, 0.4, 0])
    image = pixels(gantt)
    assert color_at(image, gantt.block_center(1)) == theme.VALUE
    assert color_at(image, gantt.moment(1.1, 1)) == color_at(image, gantt.moment(3.9, 1)) == theme.VALUE
    assert color_at(image, gantt.block_center(0)) == theme.WEIGHT


def test_idle_time_is_the_empty_ground_of_the_lane():
    gantt = schedule()
    assert color_at(pixels(gantt), gantt.moment(2.5, 0)) == theme.SURFACE


def test_blocks_are_drawn_as_far_as_time_has_come():
    gantt = schedule(now=0)
    image = pixels(gantt)
    assert color_at(image, gantt.moment(0.5, 0)) == theme.SURFACE
    later = halfway(gantt, gantt.copy().run_to(4))  # at time 2
    image = pixels(later)
    assert color_at(image, later.moment(1.9, 1)) == theme.VALUE
    assert color_at(image, later.moment(2.1, 1)) == theme.SURFACE


def test_two_schedules_of_one_span_can_be_compared():
    short = Gantt(START[:1], END[:1], lanes=("one",), span=(0, 5), width=5.0)
    np.testing.assert_allclose(short.block_end(0)[0], schedule().block_end(0)[0])


def test_the_ledger_lists_the_blocks_that_have_begun():
    assert [origin for _, origin in schedule(now=1.5).ledger()] == ["end[0]", "end[1]"]
    assert schedule(now=0).ledger() == []


def test_the_data_are_the_times_of_the_blocks():
    start, end = schedule().data()
    assert start.drawn.tolist() == START.values.tolist()
    assert end.drawn.tolist() == END.values.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lane": [0, 2, 0]}, "one of the 2 lanes"), ({"lane": [0, 1]}, "3 blocks need"), ({"roles": ["KEY"]}, "a role")],
)
def test_blocks_without_a_lane_or_a_role_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        schedule(**options)


def test_starts_without_ends_are_refused():
    with pytest.raises(ValueError, match="as many starts as ends"):
        Gantt(START, END[:2], lanes=("one",))


def test_times_without_origin_are_refused():
    with pytest.raises(TypeError, match="Gantt shows values of the Trace"):
        Gantt(np.array([0.0]), END[:1], lanes=("one",))
