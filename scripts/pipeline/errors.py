"""The errors a user reads: one line that says what was wrong and the way out."""


class UserError(Exception):
    """Wrong use or a missing part of the machine; shown without a traceback."""
