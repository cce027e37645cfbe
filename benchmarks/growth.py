"""How the cost of a frame grows with the number of drawn cells: grids that move, at 1080p, drawing alone."""

import time
from typing import Any

import numpy as np
from manim import Camera, Mobject, Square, VGroup, tempconfig

from scenes.kit import theme
from scenes.kit.camera import KitCamera
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.traced import Traced

SIDES = (3, 10, 32, 100)  # squared: 9 to 10,000 cells
FRAMES = 6
LARGEST_STOCK = 1024  # cells; more take minutes


def frame_seconds(camera: Camera, mobject: Mobject) -> float:
    """Return the CPU seconds of moving and drawing a mobject, the mean over some frames after two to warm up."""
    for frame in range(FRAMES + 2):
        if frame == 2:
            start = time.process_time()
        mobject.shift([0.011, 0.007, 0])
        camera.reset()
        camera.capture_mobjects([mobject])
    return (time.process_time() - start) / FRAMES


def measure() -> list[dict[str, Any]]:
    """Return milliseconds a frame by number of cells, for the kit and for stock squares."""
    found = []
    with tempconfig({"pixel_width": 1920, "pixel_height": 1080, "verbosity": "ERROR"}):
        for side in SIDES:
            size = 6 / side
            values = np.random.default_rng(0).uniform(-1, 1, (side, side))
            grid = TensorGrid(Traced("benchmark", values), cell=(size, size), number=None)
            row: dict[str, Any] = {"cells": side * side, "ours_ms": 1e3 * frame_seconds(KitCamera(), grid)}
            if side * side <= LARGEST_STOCK:
                squares = VGroup(
                    *(
                        Square(0.9 * size, stroke_width=0, fill_opacity=1, fill_color=theme.signed_color(value))
                        for value in values.ravel()
                    )
                ).arrange_in_grid(side, side, buff=0.1 * size)
                row["stock_ms"] = 1e3 * frame_seconds(Camera(), squares)
            found.append({name: round(value, 2) for name, value in row.items()})
    return found
