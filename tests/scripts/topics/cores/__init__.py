"""The cores of the small topics."""
