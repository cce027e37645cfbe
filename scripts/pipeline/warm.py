"""Imports what workers need, for the server that forks them.

Torch and Manim make so many objects that the collector takes a sixth of the time of their import, and what they made
is never garbage: it is put aside, so that no worker looks through it or copies its memory.
"""

import gc

gc.disable()

from scripts.pipeline import worker  # noqa: E402, F401

gc.freeze()
gc.enable()
