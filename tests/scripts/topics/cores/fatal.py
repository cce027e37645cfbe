"""The numbers are fine; the scene is deadly."""

from tests.scripts.topics.cores.tiny import Config, Trace, trace

__all__ = ["Config", "Trace", "trace"]
