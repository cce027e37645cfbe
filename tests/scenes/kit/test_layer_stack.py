import numpy as np
import pytest

from scenes.kit import theme
from scenes.kit.layer_stack import LayerStack
from scenes.kit.traced import Traced
from tests.scenes.kit.drawing import amount_of, color_at, halfway, pixels

CHANGE = Traced("change", np.array([[0.0, 0.0, 1.0], [0.0, 0.5, 1.0]]))  # layer 0 first


def test_layer_zero_is_at_the_bottom_and_time_runs_to_the_right():
    stack = LayerStack(CHANGE)
    assert stack.dot_center(1, 0)[1] > stack.dot_center(0, 0)[1]
    assert stack.dot_center(0, 1)[0] > stack.dot_center(0, 0)[0]
    assert stack.layer_center(1)[1] == pytest.approx(stack.dot_center(1, 2)[1])


def test_a_dot_is_as_bright_as_its_value():
    stack = LayerStack(CHANGE)
    image = pixels(stack)
    assert color_at(image, stack.dot_center(1, 2)) == theme.LOSS
    assert color_at(image, stack.dot_center(1, 1)) == theme.mix(theme.SURFACE, theme.LOSS, 0.5)
    assert color_at(image, stack.dot_center(1, 0)) == theme.SURFACE


def test_other_values_light_up_gradually():
    dark, lit = LayerStack(CHANGE, limit=1.0), LayerStack(CHANGE, limit=1.0)
    lit.set_values(Traced("later", np.ones((2, 3))))
    np.testing.assert_allclose(halfway(dark, lit).glow, [[0.5, 0.5, 1.0], [0.5, 0.75, 1.0]])


def test_a_new_token_lights_its_own_column_in_its_own_role():
    stack = LayerStack(Traced("change", np.zeros((2, 3))), limit=1.0, role="KEY").light(1)
    image = pixels(stack)
    assert color_at(image, stack.dot_center(0, 1)) == color_at(image, stack.dot_center(1, 1)) == theme.KEY
    assert color_at(image, stack.dot_center(0, 2)) == theme.SURFACE


def test_lines_lead_back_in_time_only_when_the_mask_is_lifted():
    causal, full = LayerStack(CHANGE), LayerStack(CHANGE).connect(backward=True)
    assert amount_of(pixels(full), theme.BACKGROUND) < amount_of(pixels(causal), theme.BACKGROUND)


def test_hidden_positions_draw_nothing():
    stack = LayerStack(CHANGE).hide([1, 2])
    assert color_at(pixels(stack), stack.dot_center(1, 2)) == theme.BACKGROUND
    assert color_at(pixels(stack.show(2)), stack.dot_center(1, 2)) == theme.LOSS


def test_a_stack_shows_traced_amounts_only():
    assert LayerStack(CHANGE).ledger() == [("6 dots", "change")]
    with pytest.raises(TypeError, match="LayerStack shows values of the Trace"):
        LayerStack(np.zeros((2, 3)))


def test_darkened_dots_light_up_again_with_their_values():
    stack = LayerStack(CHANGE).darken()
    assert color_at(pixels(stack), stack.dot_center(1, 2)) == theme.SURFACE
    assert color_at(pixels(stack.set_values(CHANGE)), stack.dot_center(1, 2)) == theme.LOSS


def test_without_lines_there_are_only_dots():
    bare = LayerStack(CHANGE).connect(backward=False, forward=False)
    assert amount_of(pixels(bare), theme.BACKGROUND) > amount_of(pixels(LayerStack(CHANGE)), theme.BACKGROUND)
