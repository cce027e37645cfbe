"""One picture of a unit at one time, without drawing what comes before it; then what the rest of the unit says.

A unit is played in full, but its animations jump from their begin to their end, and only the frame that is wanted is
drawn. It is the frame that a render would have written at that place.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from manim import CairoRenderer, config, tempconfig

from internals_math.trace import TopicTrace
from scenes.kit import theme
from scenes.kit.camera import KitCamera
from scenes.kit.picture import Picture
from scenes.kit.recorder import TEXT, RecordingPainter
from scripts.pipeline.quality import Quality

Text = tuple[float, float, float, float, float]  # left, bottom, right, top, height of a capital; in units of the frame


@dataclass(frozen=True)
class Outline:
    """What a unit says about itself; times are seconds from its start."""

    seconds: float
    captions: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    key_times: list[float]


class JumpRenderer(CairoRenderer):
    """Counts frames as a render does, and draws the one that is wanted."""

    def __init__(self, wanted: int | None, on_picture: Callable[[np.ndarray, list[Text]], None]) -> None:
        super().__init__(camera_class=KitCamera)
        self.wanted = wanted
        self.on_picture = on_picture
        self.frames = 0

    def play(self, scene: Any, *args: Any, **kwargs: Any) -> None:
        scene.compile_animation_data(*args, **kwargs)
        rate = config.frame_rate
        is_still = scene.is_current_animation_frozen_frame()
        times = np.arange(0, scene.duration, 1 / rate)
        count = int(scene.duration * rate) if is_still else len(times)
        scene.begin_animations()
        if self.wanted is not None and self.frames <= self.wanted < self.frames + count:
            self.save_static_frame_data(scene, scene.static_mobjects)
            if not is_still:
                scene.update_to_time(times[self.wanted - self.frames])
            self._draw(scene, scene.moving_mobjects)
        if not is_still:
            for animation in scene.animations:
                animation.finish()
                animation.clean_up_from_scene(scene)
        self.frames += count
        self.time += count / rate
        self.num_plays += 1

    def scene_finished(self, scene: Any) -> None:
        if self.wanted is not None:  # beyond the end: the last picture
            self._draw(scene, None)

    def _draw(self, scene: Any, moving: Any) -> None:
        self.update_frame(scene, moving)
        self.static_image = None
        self.wanted = None
        self.on_picture(self.get_frame(), list(self._texts(scene)))

    def _texts(self, scene: Any) -> Iterator[Text]:
        """Yield where the words on screen are."""
        for picture in self.camera.get_mobjects_to_display(scene.mobjects):
            if isinstance(picture, Picture) and picture.opacity > 0:
                for mark in RecordingPainter.marks_of(picture):
                    if mark.kind == TEXT:
                        left, bottom, right, top = (round(float(edge), 3) for edge in mark[1:5])
                        yield left, bottom, right, top, round(float(mark.size), 4)


def play_to(
    scene_class: Any,
    trace: TopicTrace,
    unit: str,
    seconds: float | None,
    size: Quality,
    theme_name: str,
    on_picture: Callable[[np.ndarray, list[Text]], None],
) -> Outline:
    """Play one unit without drawing, but for the RGBA frame at `seconds`.

    Args:
        scene_class: a TopicScene.
        trace: what it draws.
        unit: one of its units.
        seconds: from the start of the unit; None draws nothing, what is beyond the end draws the last frame.
        size: of the picture; the frame rate decides which times there are.
        theme_name: "dark" or "light".
        on_picture: gets the frame, and where its texts are, before the rest of the unit is played.
    """
    theme.use(theme_name)
    settings = {**size.manim_settings(), "background_color": theme.BACKGROUND, "dry_run": True}
    wanted = None if seconds is None else int(seconds * size.frame_rate + 1e-3)
    with tempconfig(settings):
        renderer = JumpRenderer(wanted, on_picture)
        scene = scene_class(renderer, trace=trace, unit=unit)
        scene.render()
    captions = [asdict(caption) for caption in scene.captions]
    return Outline(renderer.frames / size.frame_rate, captions, scene.ledger, scene.key_times)
