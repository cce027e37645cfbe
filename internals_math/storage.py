"""Where results that can be made again are kept. Imports nothing heavy."""

import os
from pathlib import Path

from platformdirs import user_cache_dir


def cache_folder() -> Path:
    """Return the cache folder of this user; LLM_INTERNALS_CACHE chooses another place."""
    return Path(os.environ.get("LLM_INTERNALS_CACHE") or user_cache_dir("llm-internals"))
