"""Where loops are published: what each place accepts, from its own documentation. Imports nothing heavy."""

from dataclasses import dataclass

MB = 1_000_000


@dataclass(frozen=True)
class Platform:
    """What a GIF may be, and the width that suits the place.

    `pixels` counts width x height x frames.
    """

    width: int
    max_bytes: int
    max_width: int = 4096
    max_height: int = 4096
    max_frames: int | None = None
    max_pixels: int | None = None


PLATFORMS = {
    # docs.github.com, "Attaching files": 10 MB for images and GIFs. A README's column is about 800 px wide.
    "github": Platform(width=800, max_bytes=10 * MB),
    # docs.x.com, media upload, "Best practices": 15 MB, 1280 x 1080, 350 frames, 300 million pixels in all frames.
    "x": Platform(
        width=1280, max_bytes=15 * MB, max_width=1280, max_height=1080, max_frames=350, max_pixels=300_000_000
    ),
    # Forem, which runs dev.to, in app/uploaders/base_uploader.rb: 25 MB, 500 frames, 4096 x 4096.
    "devto": Platform(width=800, max_bytes=25 * MB, max_frames=500),
    # Medium, as reported by its writers (its own page was not at hand): 25 MB; it wants 1400 px for a dense display,
    # more than our masters have.
    "medium": Platform(width=1280, max_bytes=25 * MB),
    # Notion, as reported by its users (its own page was not at hand): 5 MB a file in a free workspace.
    "notion": Platform(width=720, max_bytes=5 * MB),
    # LinkedIn, as reported (its own pages were not at hand): 250 frames of a GIF, 5 MB for a photo of a post.
    "linkedin": Platform(width=1200, max_bytes=5 * MB, max_frames=250),
}
