"""Loops for articles: GIFs whose flat colors are exact, WebP and MP4, all from the same lossless master."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageSequence

from scripts.pipeline import ffmpeg
from scripts.pipeline.encode import steady_x264, video_width
from scripts.pipeline.errors import INSTALL_GIFSICLE, UserError

GIF_WIDTH = 640
FRAME_RATES = (10, 20, 25)  # a GIF's delays are whole hundredths of a second; others would stutter
MOST_COLORS = 256
REFINEMENTS = 6  # of the palette's free half
SMALL_BATCH = 8192  # colors compared with the palette at a time


@dataclass(frozen=True)
class GifSettings:
    """What a GIF is like."""

    width: int = GIF_WIDTH  # pixels; never more than those of the master
    frame_rate: int = 25
    colors: int = MOST_COLORS
    lossy: int = 0  # gifsicle's lossiness; 0 = every pixel keeps the palette's color that is nearest to its own
    transparent: str | None = None  # the color, as #RRGGBB, through which the page is seen

    def __post_init__(self) -> None:
        if self.frame_rate not in FRAME_RATES:
            allowed = ", ".join(map(str, FRAME_RATES))
            raise ValueError(f"the frame rate of a GIF must be one of {allowed}, got {self.frame_rate}")
        if not 2 <= self.colors <= MOST_COLORS:
            raise ValueError(f"a GIF has 2 to {MOST_COLORS} colors, got {self.colors}")
        if self.width < 16 or self.lossy < 0:
            raise ValueError(f"a GIF needs a width of at least 16 and lossy >= 0, got {self.width} and {self.lossy}")


@dataclass(frozen=True)
class Clip:
    """Pictures, each different from the one before, and how long each is shown."""

    frames: tuple[np.ndarray, ...]  # (height, width, 3) of uint8
    hundredths: tuple[int, ...]  # of a second

    def at(self, hundredth: int) -> np.ndarray:
        """Return the picture shown at a time from the start."""
        ends = np.cumsum(self.hundredths)
        return self.frames[min(int(np.searchsorted(ends, hundredth, side="right")), len(self.frames) - 1)]

    @cached_property
    def color_counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Its colors, how often pixels have each, and how often inside an area of one color (by time)."""
        number_of = np.full(1 << 24, -1, np.int32)
        colors: list[np.ndarray] = []
        counts = flat = np.zeros(0)
        for frame, duration in zip(self.frames, self.hundredths, strict=True):
            packed = _pack(frame)
            new = np.unique(packed[number_of[packed] < 0])
            number_of[new] = np.arange(len(counts), len(counts) + len(new))
            colors.append(new)
            numbers = number_of[packed]
            inner = numbers[1:-1, 1:-1]
            here = (inner == numbers[:-2, 1:-1]) & (inner == numbers[2:, 1:-1])
            here &= (inner == numbers[1:-1, :-2]) & (inner == numbers[1:-1, 2:])
            total = len(counts) + len(new)
            counts, flat = (np.pad(sums, (0, len(new))) for sums in (counts, flat))
            counts += duration * np.bincount(numbers.ravel(), minlength=total)
            flat += duration * np.bincount(inner[here], minlength=total)
        return np.concatenate(colors), counts, flat


def write_gif(master: Path, target: Path, settings: GifSettings | None = None) -> bool:
    """Write a GIF with one palette for the whole loop; returns whether gifsicle could make it smaller.

    Args:
        master: lossless video.
        target: file to write.
        settings: its defaults if None.

    Raises:
        UserError: gifsicle failed, or is missing where `lossy` needs it.
    """
    chosen = settings or GifSettings()
    clip = read_clip(master, chosen.width, chosen.frame_rate)
    return write_clip_as_gif(clip, palette_of(clip, chosen.colors, chosen.transparent), target, chosen)


def read_clip(master: Path, width: int, frame_rate: int) -> Clip:
    """Read a master at another width and frame rate; a mean over whole pixels keeps flat colors as they are."""
    frames: list[np.ndarray] = []
    hundredths: list[int] = []
    width = min(width, video_width(master))
    for frame in _frames_at(master, frame_rate):
        if frame.width != width:
            height = 2 * round(width * frame.height / frame.width / 2)
            frame = frame.resize((width, height), Image.Resampling.BOX)
        pixels = np.asarray(frame)
        if frames and np.array_equal(frames[-1], pixels):
            hundredths[-1] += 100 // frame_rate
        else:
            frames.append(pixels)
            hundredths.append(100 // frame_rate)
    return Clip(tuple(frames), tuple(hundredths))


def _frames_at(master: Path, frame_rate: int) -> Iterator[Image.Image]:
    """Yield the pictures shown at the times of another frame rate."""
    with av.open(str(master)) as container:
        rate = container.streams.video[0].average_rate or Fraction(frame_rate)
        wanted = 0
        for number, frame in enumerate(container.decode(video=0)):
            while wanted * rate // frame_rate == number:
                wanted += 1
                yield Image.fromarray(frame.to_ndarray(format="rgb24"))


def palette_of(clip: Clip, colors: int = MOST_COLORS, transparent: str | None = None) -> np.ndarray:
    """Return one palette for a whole clip, (n, 3) with n <= colors.

    Half of it holds the colors that fill areas (cells, grounds, bars), to the bit; the other half serves edges and what
    moves: weighted k-means over the colors that are left. The transparent color, if there is one, comes first.
    """
    packed, counts, flat = clip.color_counts
    ranked = packed[np.lexsort((packed, -counts, -flat))]
    if transparent is not None:
        key = int(transparent[1:], 16)
        ranked = np.concatenate([[key], ranked[ranked != key]]).astype(np.uint32)
    if len(ranked) <= colors:
        return _unpack(ranked)
    exact = ranked[: max(1, colors // 2)]
    left = ~np.isin(packed, exact)
    return np.concatenate([_unpack(exact), _clusters(_unpack(packed[left]), counts[left], _unpack(exact), colors)])


def _clusters(colors: np.ndarray, counts: np.ndarray, fixed: np.ndarray, total: int) -> np.ndarray:
    """Return total - len(fixed) colors that, beside the fixed ones, leave the least error."""
    free = total - len(fixed)
    often = np.repeat(colors, np.maximum(1, np.sqrt(counts / counts.min())).astype(np.int64).clip(max=256), axis=0)
    quantized = Image.fromarray(often[None]).quantize(free, method=Image.Quantize.MEDIANCUT)
    start = np.array(quantized.getpalette(), dtype=np.float32).reshape(-1, 3)[:free]
    for _ in range(REFINEMENTS):
        nearest = _nearest(colors, np.concatenate([fixed, start])) - len(fixed)
        ours = nearest >= 0
        weights = np.bincount(nearest[ours], counts[ours], len(start))
        for channel in range(3):
            sums = np.bincount(nearest[ours], counts[ours] * colors[ours, channel], len(start))
            start[:, channel] = np.where(weights > 0, sums / np.maximum(weights, 1), start[:, channel])
    return np.unique(start.round().astype(np.uint8), axis=0)


def _nearest(colors: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return for each color the number of the palette's entry with the least squared distance."""
    entries = palette.astype(np.float32)
    squares = (entries**2).sum(axis=1)
    found = np.empty(len(colors), np.int64)
    for start in range(0, len(colors), SMALL_BATCH):
        batch = colors[start : start + SMALL_BATCH].astype(np.float32)
        found[start : start + SMALL_BATCH] = (squares - 2 * batch @ entries.T).argmin(axis=1)
    return found


def write_clip_as_gif(clip: Clip, palette: np.ndarray, target: Path, settings: GifSettings) -> bool:
    """Write a clip in the colors of a palette; returns whether gifsicle could make it smaller."""
    gifsicle = shutil.which("gifsicle")
    if settings.lossy and gifsicle is None:
        raise UserError(f"lossy GIFs need the program `gifsicle`; install it ({INSTALL_GIFSICLE}) and try again")
    entries = np.zeros((MOST_COLORS, 4), np.uint8)  # alpha, red, green, blue
    entries[:, 0] = 255
    entries[: len(palette), 1:] = palette
    if settings.transparent is not None:
        entries[0] = 0
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        raw = Path(folder) / "raw.gif"
        _encode(clip, palette, entries, raw)
        if gifsicle is not None:
            _shrink(gifsicle, raw, settings.lossy)
        raw.replace(target)
    return gifsicle is not None


def _encode(clip: Clip, palette: np.ndarray, entries: np.ndarray, target: Path) -> None:
    index_of = np.zeros(1 << 24, np.uint8)  # of every color that occurs
    known = np.zeros(1 << 24, bool)
    height, width = clip.frames[0].shape[:2]
    with av.open(str(target), "w", format="gif", options={"loop": "0", "fflags": "+bitexact"}) as container:
        stream = container.add_stream("gif", rate=100)
        stream.width, stream.height, stream.pix_fmt = width, height, "pal8"
        start = 0
        for pixels, duration in zip(clip.frames, clip.hundredths, strict=True):
            packed = _pack(pixels)
            new = np.unique(packed[~known[packed]])
            index_of[new] = _nearest(_unpack(new), palette)
            known[new] = True
            picture: Any = (index_of[packed], entries)
            frame = av.VideoFrame.from_ndarray(picture, format="pal8")
            frame.time_base, frame.pts, frame.duration = Fraction(1, 100), start, duration
            start += duration
            for packet in stream.encode(frame):
                packet.duration = duration  # the muxer would give the last frame the shortest delay
                container.mux(packet)
        container.mux(stream.encode())


def _shrink(gifsicle: str, path: Path, lossy: int) -> None:
    """Let gifsicle rewrite a GIF in fewer bytes."""
    options = ["-O3", "--no-warnings", *([f"--lossy={lossy}"] if lossy else [])]
    command = [gifsicle, *options, str(path), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise UserError(f"gifsicle failed with exit code {done.returncode}:\n{tail}")


def read_gif(path: Path) -> Clip:
    """Read a GIF as it is shown, on black where it is transparent."""
    frames, hundredths = [], []
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            frames.append(np.array(frame.convert("RGB")))
            hundredths.append(frame.info["duration"] // 10)
    return Clip(tuple(frames), tuple(hundredths))


def write_webp(
    master: Path, target: Path, *, width: int = GIF_WIDTH, frame_rate: int = 25, transparent: str | None = None
) -> None:
    """Write an animated WebP; through the color `transparent`, as #RRGGBB, the page is seen."""
    filters = [f"fps={frame_rate}", f"scale={min(width, video_width(master))}:-2:flags=area"]
    if transparent is not None:
        # 0.01 is the least that the filter takes: four steps of one channel, less than lie between two roles
        filters.append(f"colorkey=0x{transparent[1:]}:0.01:0")
    settings = {"vf": ",".join(filters), "c:v": "libwebp_anim", "quality": 82, "loop": 0, "f": "webp"}
    ffmpeg.convert(master, target, settings)


def write_loop_mp4(master: Path, target: Path, *, width: int | None = None) -> None:
    """Write a silent MP4 that starts at once, as wide as its master unless a width is given."""
    size = "" if width is None else f"{min(width, video_width(master))}:-2:flags=area:"
    color = {"vf": f"scale={size}out_color_matrix=bt709:out_range=tv", "pix_fmt": "yuv420p", "color_range": "tv"}
    color |= {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}
    settings = {"c:v": "libx264", "crf": 20, "preset": "slow", "threads": 1, "movflags": "+faststart", "f": "mp4"}
    settings |= {"x264-params": steady_x264(), "fflags": "+bitexact"}
    ffmpeg.convert(master, target, {**color, **settings})


def make_transparent(picture: Image.Image, color: str) -> Image.Image:
    """Return a picture through whose pixels of exactly one color, as #RRGGBB, the page is seen."""
    pixels = np.array(picture.convert("RGBA"))
    pixels[_pack(pixels) == int(color[1:], 16)] = 0
    return Image.fromarray(pixels)


def _pack(pixels: np.ndarray) -> np.ndarray:
    """Return each pixel's color as one number."""
    wide = pixels.astype(np.uint32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _unpack(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=-1).astype(np.uint8)
