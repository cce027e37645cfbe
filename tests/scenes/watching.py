"""Play one unit of a video very small, and look at every frame of it."""

from collections.abc import Callable
from typing import Any

from manim import tempconfig

from scenes.kit.tensor_grid import TensorGrid

TINY = {"pixel_width": 160, "pixel_height": 90, "frame_rate": 10, "dry_run": True, "verbosity": "ERROR"}


def watched(
    scene_class: Any, unit: str, look: Callable[[Any], Any] = lambda scene: None, trace: Any = None, **settings: Any
) -> Any:
    """Return the scene after it has played, and what `look` saw of it in every frame; settings are Manim's."""
    seen = []

    class Watched(scene_class):
        def update_to_time(self, t):
            super().update_to_time(t)
            seen.append(look(self))

    with tempconfig(TINY | settings):
        scene = Watched(unit=unit, trace=trace)
        scene.render()
    return scene, seen


def pictures(scene: Any, kind: type, field: str | None = None) -> list[Any]:
    """Return the pictures of one kind that are on screen, only those of one field of the Trace if it is named."""
    found = [picture for picture in scene.get_mobject_family_members() if isinstance(picture, kind)]
    return [picture for picture in found if field is None or picture.values.field == field]


def seen_in(
    scene_class: Any, unit: str, look: Callable[[Any], Any], trace: Any = None, **settings: Any
) -> tuple[Any, list[Any]]:
    """Play one unit; returns the scene and what `look` found in the frames where it found something."""
    scene, seen = watched(scene_class, unit, look, trace, **settings)
    return scene, [what for what in seen if what is not None]


def grids(scene: Any, field: str) -> list[Any]:
    """Return the grids of a field that can be seen."""
    return [grid for grid in pictures(scene, TensorGrid, field) if grid.opacity > 0]


def sayings(scene: Any) -> list[str]:
    """Return the captions of a scene that has played."""
    return [caption.text for caption in scene.captions]
