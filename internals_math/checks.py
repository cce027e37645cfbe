"""Checks of arguments that several cores share."""


def check_sizes(**sizes: int) -> None:
    """Raise ValueError, with its name, for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
