import numpy as np
import pytest
from manim import UP, MathTypst, tempconfig

from scenes.kit import theme
from scenes.kit.camera import KitCamera
from scenes.kit.formula import Formula
from tests.scenes.kit.drawing import amount_of, pixels

SOURCE = "{{ q_(b {{ h : head }}) : query }} dot K / sqrt(d) = integral_0^1 x dif x"


def test_a_formula_is_the_picture_that_manim_draws_of_it():
    with tempconfig({"pixel_width": 1920, "pixel_height": 1080, "verbosity": "ERROR"}):
        camera = KitCamera()

        def drawn(mobject):
            camera.reset().capture_mobjects([mobject])
            return camera.pixel_array[..., :3].astype(int)

        stock = MathTypst(SOURCE, color=theme.TEXT, font_size=45, use_svg_cache=False)
        stock.select("query").set_color(theme.QUERY)
        ours = Formula(SOURCE, size=0.3, query="QUERY")
        np.testing.assert_allclose([ours.width, ours.height], [stock.width, stock.height], atol=1e-6)
        # a sixteenth of a pixel is 14 of 220 levels at the edge of a sign, and twice that in its corner
        assert np.abs(drawn(ours) - drawn(stock)).max() <= 28


def test_a_part_takes_its_color_and_moves_alone():
    formula = Formula(SOURCE, size=0.6, query="QUERY")
    query, head = formula.select("query"), formula.select("head")
    assert amount_of(pixels(query), theme.QUERY) > 0
    assert amount_of(pixels(head), theme.QUERY) > 0  # it lies in the query
    places = [part.get_center() for part in (query, head)]
    head.shift(UP).set_color(theme.LOSS)
    assert amount_of(pixels(head), theme.LOSS) > 0
    assert head in query.get_family()
    assert head in formula.get_family()
    np.testing.assert_allclose(head.get_center(), places[1] + UP)
    np.testing.assert_allclose(query.points.mean(axis=0), Formula(SOURCE, size=0.6).select("query").points.mean(axis=0))


def test_a_formula_moves_and_fades_with_all_its_parts():
    formula = Formula(SOURCE, size=0.3).shift(UP).set_opacity(0.5)
    whole = Formula(SOURCE, size=0.3)
    for ours, other in zip(formula.get_family(), whole.get_family(), strict=True):
        np.testing.assert_allclose(ours.points, other.points + UP)
        assert ours.opacity == 0.5


def test_a_part_that_is_not_there_is_answered_with_the_parts():
    with pytest.raises(KeyError, match=r"the formula has no part 'key'; it has query, head"):
        Formula(SOURCE).select("key")


def test_lines_are_as_wide_in_a_small_video_as_in_a_large_one():
    paths = []
    for width in (854, 1920):
        with tempconfig({"pixel_width": width, "verbosity": "ERROR"}):
            paths.append([points for kind, points in Formula("frac(1, 2)").path if points])
    np.testing.assert_allclose(np.concatenate(paths[0]), np.concatenate(paths[1]), atol=0.1)


def test_a_formula_that_is_one_labeled_part_can_be_placed_and_drawn():
    formula = Formula("{{ W_Q : sign }}", size=0.6, sign="QUERY").shift(UP)
    whole = Formula("W_Q", size=0.6).shift(UP)
    np.testing.assert_allclose(formula.get_center(), whole.get_center(), atol=1e-6)
    np.testing.assert_allclose([formula.width, formula.height], [whole.width, whole.height], atol=1e-6)
    assert amount_of(pixels(formula.select("sign")), theme.QUERY) > 0
    assert amount_of(pixels(formula), theme.TEXT) == 0  # nothing is left outside the part
