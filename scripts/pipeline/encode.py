"""Frames to one video stream for each unit, with settings that let units be joined without encoding them again."""

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace
from manim.scene.scene_file_writer import SceneFileWriter

from scripts.pipeline.errors import UserError
from scripts.pipeline.quality import ENCODERS, Quality

# Chosen by measurement against x264's defaults (`benchmarks/encoder.py`): their size and SSIM for half the CPU time.
# Flat pictures lose most in their colors, so chroma gets the bits; a finer search for motion, trellis and a choice of
# B-frames cost time and win nothing on them.
VIDEO_OPTIONS = {"crf": "23.5", "preset": "fast", "subq": "1", "rc-lookahead": "20"}
PARAMETERS = "chroma-qp-offset=-8:b-adapt=0:ref=1:trellis=0:me=dia"
LOSSLESS_OPTIONS = {"crf": "0", "preset": "veryfast"}
HARDWARE_OPTIONS = {
    "nvenc": {"preset": "p5", "rc": "vbr", "cq": "24"},
    "qsv": {"preset": "medium", "global_quality": "23"},
    "amf": {"quality": "balanced", "rc": "cqp", "qp_i": "22", "qp_p": "24"},
    "videotoolbox": {"q": "60"},
}
BT709 = 1


@cache
def steady_x264() -> str:
    """Return the x264 parameter that gives the same bytes in every run: its AVX-512 code reads beyond its data."""
    try:
        has_avx512 = "avx512" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    return "asm=AVX2" if has_avx512 else ""


def x264_options(*, lossless: bool) -> dict[str, str]:
    """Return x264's options for a master of a GIF (to the bit) or for a video."""
    parameters = [steady_x264(), "" if lossless else PARAMETERS]
    options = LOSSLESS_OPTIONS if lossless else VIDEO_OPTIONS
    return {**options, "x264-params": ":".join(part for part in parameters if part)}


class Encoder:
    """One x264 stream in an mp4 file; the same frames always give the same bytes.

    Args:
        path: file to write.
        quality: width and height in pixels, both even, and frames per second.
        lossless: keep RGB to the bit (the master of a GIF); else YUV 4:2:0, which every player shows.
        encoder: one of ENCODERS; a lossless master is always x264's.
    """

    def __init__(self, path: Path, quality: Quality, *, lossless: bool = False, encoder: str = "x264") -> None:
        self.quality = quality
        self.lossless = lossless
        self.frames = 0
        # bitexact leaves out the time of day and the version of the library
        self.container = av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"})
        codec = "libx264rgb" if lossless else ENCODERS[encoder]
        options = x264_options(lossless=lossless) if lossless or encoder == "x264" else HARDWARE_OPTIONS[encoder]
        self.stream: Any = self.container.add_stream(codec, rate=quality.frame_rate, options=options)
        self.stream.width, self.stream.height = quality.width, quality.height
        self.stream.pix_fmt = "rgb24" if lossless else "yuv420p"
        context = self.stream.codec_context
        context.thread_count = 1  # processes share the cores, and one thread is deterministic
        context.gop_size = 4 * quality.frame_rate
        if not lossless:
            context.colorspace = Colorspace.ITU709
            context.color_range = ColorRange.MPEG
            context.color_primaries = context.color_trc = BT709

    @property
    def seconds(self) -> float:
        """Length of what was written."""
        return self.frames / self.quality.frame_rate

    def write(self, pixels: np.ndarray, repeat: int = 1) -> None:
        """Add an RGBA frame, which the caller may then overwrite; a frame held still is converted once."""
        frame = av.VideoFrame.from_numpy_buffer(pixels, format="rgba")  # no copy: it is converted at once
        if self.lossless:
            frame = frame.reformat(format="rgb24", threads=1)
        else:
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
            )
        frame.time_base = Fraction(1, self.quality.frame_rate)
        for _ in range(repeat):
            frame.pts = self.frames
            self.frames += 1
            self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Write what is left and finish the file."""
        self.container.mux(self.stream.encode())
        self.container.close()


def require_encoder(name: str) -> None:
    """Encode one frame.

    Raises:
        UserError: this machine has no such encoder.
    """
    try:
        encoder = Encoder(Path(os.devnull), Quality(256, 144, 30), encoder=name)
        encoder.write(np.zeros((144, 256, 4), np.uint8))
        encoder.close()
    except (FFmpegError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the {name} encoder does not work here ({reason}); leave out --encoder to use x264") from error


class UnitWriter(SceneFileWriter):
    """Manim's file writer with one encoder for the whole scene in place of one file for each animation.

    It also keeps the picture at each key time of the scene, which costs less than to look for it in the video.
    """

    def __init__(self, settings: Any, encoder: Encoder, on_frame: Callable[[float], None] | None = None) -> None:
        super().__init__(settings)
        self.encoder = encoder
        self.on_frame = on_frame
        self.scene: Any = None  # the scene whose key times are watched
        self.stills: list[np.ndarray] = []
        self.last_frame: np.ndarray | None = None  # overwritten by the next one

    def add_partial_movie_file(self, hash_animation: str | None) -> None:
        pass

    def is_already_cached(self, hash_invocation: str) -> bool:
        return False

    def begin_animation(self, allow_write: bool = False, **_: Any) -> None:
        self._keep_stills()

    def end_animation(self, allow_write: bool = False) -> None:
        pass

    def write_frame(self, pixels: np.ndarray, *, repeat: int = 1) -> None:
        self.encoder.write(pixels, repeat)
        self.last_frame = pixels
        if self.on_frame is not None:
            self.on_frame(self.encoder.seconds)

    def finish(self) -> None:
        self._keep_stills()
        self.encoder.close()

    def abort_encode_jobs(self, reraise_encoder_failures: bool = False) -> None:
        self.encoder.container.close()

    def _keep_stills(self) -> None:
        """Keep the frame that was shown at a key time the scene has noted since."""
        if self.scene is not None and self.last_frame is not None:
            missing = len(self.scene.key_times) - len(self.stills)
            self.stills += [self.last_frame.copy()] * missing if missing else []


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """Yield the RGB frames of a video, in order."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def read_stills(path: Path, times: list[float]) -> list[np.ndarray]:
    """Return the RGB frames shown at some times (seconds, rising); times beyond the end give the last frame."""
    stills: list[np.ndarray] = []
    waiting = list(times)
    shown = None
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            while waiting and shown is not None and frame.time is not None and frame.time > waiting[0] + 1e-6:
                stills.append(shown.to_ndarray(format="rgb24"))
                waiting.pop(0)
            if not waiting:
                return stills
            shown = frame
    return stills + ([shown.to_ndarray(format="rgb24")] * len(waiting) if shown is not None else [])


def video_width(path: Path) -> int:
    """Return the width of a video in pixels."""
    with av.open(str(path)) as container:
        return container.streams.video[0].width
