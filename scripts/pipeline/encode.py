"""Frames to one video stream for each unit, with settings that let units be joined without encoding them again."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, ColorRange
from manim.scene.scene_file_writer import SceneFileWriter

# veryfast at this CRF is no larger than x264's medium at Manim's default and visually the same on flat pictures
VIDEO_OPTIONS = {"crf": "17", "preset": "veryfast"}
LOSSLESS_OPTIONS = {"crf": "0", "preset": "veryfast"}


class Encoder:
    """One x264 stream in an mp4 file; the same frames always give the same bytes.

    Args:
        path: file to write.
        size: width and height in pixels, both even.
        frame_rate: whole frames per second.
        lossless: keep RGB to the bit (the master of a loop); else YUV 4:2:0 that every player shows.
    """

    def __init__(self, path: Path, size: tuple[int, int], frame_rate: int, *, lossless: bool = False) -> None:
        self.lossless = lossless
        self.time_base = Fraction(1, frame_rate)
        self.frames = 0
        # bitexact leaves out the time of day and the library version
        self.container = av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"})
        options = LOSSLESS_OPTIONS if lossless else VIDEO_OPTIONS
        self.stream: Any = self.container.add_stream("libx264rgb" if lossless else "libx264", rate=frame_rate)
        self.stream.options = dict(options)
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt = "rgb24" if lossless else "yuv420p"
        context = self.stream.codec_context
        context.time_base = self.time_base
        context.thread_count = 1  # processes share the cores, and one thread is deterministic
        context.gop_size = 2 * frame_rate
        if not lossless:
            context.colorspace = Colorspace.ITU709
            context.color_range = ColorRange.MPEG
            context.color_primaries = context.color_trc = 1  # bt709

    def write(self, pixels: np.ndarray, repeat: int = 1) -> None:
        """Add an RGB(A) frame; a frame held still is converted once."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[..., :3]), format="rgb24")
        if not self.lossless:
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
        frame.time_base = self.time_base
        for _ in range(repeat):
            frame.pts = self.frames
            self.frames += 1
            for packet in self.stream.encode(frame):
                self.container.mux(packet)

    def close(self) -> None:
        """Write what is left and finish the file."""
        for packet in self.stream.encode():
            self.container.mux(packet)
        self.container.close()


def unit_writer(path: Path, size: tuple[int, int], frame_rate: int, lossless: bool) -> type[SceneFileWriter]:
    """Return a file writer class for Manim's renderer that writes all frames of a scene as one stream."""

    class UnitWriter(SceneFileWriter):
        """In place of one file for each animation: one encoder for the whole unit."""

        def __init__(self, settings: Any) -> None:
            super().__init__(settings)
            self.encoder = Encoder(path, size, frame_rate, lossless=lossless)

        def add_partial_movie_file(self, hash_animation: str | None) -> None:
            pass

        def is_already_cached(self, hash_invocation: str) -> bool:
            return False

        def begin_animation(self, allow_write: bool = False, **_: Any) -> None:
            pass

        def end_animation(self, allow_write: bool = False) -> None:
            pass

        def write_frame(self, pixels: np.ndarray, *, repeat: int = 1) -> None:
            self.encoder.write(pixels, repeat)

        def finish(self) -> None:
            self.encoder.close()

        def abort_encode_jobs(self, reraise_encoder_failures: bool = False) -> None:
            self.encoder.container.close()

    return UnitWriter


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """Yield the RGB frames of a video, in order."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def read_stills(path: Path, times: list[float]) -> list[np.ndarray]:
    """Return the frames shown at some times (seconds, rising); times beyond the end give the last frame."""
    stills: list[np.ndarray] = []
    last = None
    with av.open(str(path)) as container:
        waiting = list(times)
        for frame in container.decode(video=0):
            last = frame
            while waiting and frame.time is not None and frame.time + 1e-6 >= waiting[0]:
                stills.append(frame.to_ndarray(format="rgb24"))
                waiting.pop(0)
            if not waiting:
                break
    stills += [last.to_ndarray(format="rgb24")] * (len(times) - len(stills)) if last is not None else []
    return stills
