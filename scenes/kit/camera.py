"""A camera that lets the kit's pictures draw themselves, and a renderer that hands its frames on without copies.

Everything else stays Manim's.
"""

import itertools
from collections.abc import Iterable
from typing import Any

from manim import CairoRenderer, Camera, Mobject, Scene, config

from scenes.kit import stamps, theme
from scenes.kit.picture import Picture


class KitCamera(Camera):
    """Manim's camera, on the theme's background, for stock mobjects and Pictures in one order."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("background_color", theme.BACKGROUND)
        super().__init__(**kwargs)
        stamps.SHARED.clear()  # each scene draws the same pixels, whatever its process drew before

    def capture_mobjects(self, mobjects: Iterable[Mobject], **kwargs: Any) -> None:
        """Draw the mobjects back to front: runs of pictures draw themselves, other runs go to Manim."""
        shown = self.get_mobjects_to_display(mobjects, **kwargs)
        for is_picture, run in itertools.groupby(shown, lambda mobject: isinstance(mobject, Picture)):
            if is_picture:
                context = self.get_cairo_context(self.pixel_array)
                for picture in run:
                    picture.render_to(context)  # type: ignore[attr-defined]
            else:
                super().capture_mobjects(list(run), include_submobjects=False)


class DirectRenderer(CairoRenderer):
    """Manim's renderer for a file writer that is done with a frame when `write_frame` returns: it gets the camera's
    own pixels, which the next frame overwrites."""

    def render(self, scene: Scene, time: float, moving_mobjects: Iterable[Mobject] | None = None) -> None:
        self.update_frame(scene, moving_mobjects)
        self.add_frame(self.camera.pixel_array)

    def freeze_current_frame(self, duration: float) -> None:
        self.add_frame(self.camera.pixel_array, num_frames=int(duration * config.frame_rate))
