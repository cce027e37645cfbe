import numpy as np
import pytest
import torch

from scenes.kit.tile_map import TileMap
from scenes.kit.traced import traced


def numbers(*values):
    return traced(torch.tensor(values), "tiles")


def test_tiles_fill_the_square_and_the_last_ones_are_cut_off():
    tiles = TileMap(10, (4, 5), size=2.0, skipped=(numbers(0), numbers(1)))
    np.testing.assert_allclose(tiles.tile_center(0, 0), [-0.5, 0.6, 0])  # rows 0..3 of 10, columns 0..4 of 10
    np.testing.assert_allclose(tiles.tile_center(2, 1), [0.5, -0.8, 0])  # rows 8..9


def test_the_living_tile_is_in_the_ledger_until_it_is_gone():
    tiles = TileMap(8, (4, 4), size=1.0, skipped=(numbers(0), numbers(1)))
    skipped = tiles.ledger()
    assert len(tiles.light(numbers(1)[0], numbers(0)[0]).ledger()) == len(skipped) + 2
    assert tiles.clear().ledger() == skipped


def test_a_tile_without_origin_is_refused():
    with pytest.raises(TypeError, match="TileMap.light shows values of the Trace"):
        TileMap(8, (4, 4), size=1.0, skipped=(numbers(0), numbers(1))).light(1, 0)
