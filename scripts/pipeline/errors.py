"""The errors a user reads: one line that says what was wrong and the way out, shown without a traceback."""


class UserError(Exception):
    """The work could not be done: something is missing on this machine or a program failed. Exit code 1."""


class WrongUse(UserError):
    """What was asked for does not exist or is out of range. Exit code 2."""


INSTALL_FFMPEG = "apt install ffmpeg · dnf install ffmpeg · brew install ffmpeg"
INSTALL_GIFSICLE = "apt install gifsicle · dnf install gifsicle · brew install gifsicle"
