"""What in a text is a number that a person typed, or makes another number of a traced value beside it.

Traced values stand between OPEN and CLOSE here: `loss ⟦0.37⟧ nats`, with two signs that no font draws for ⟦ and ⟧.
"""

import re

OPEN, CLOSE = "\ue000", "\ue002"

_MAGNITUDES = ("thousand", "million", "billion", "trillion")
_SMALL = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
_IN_WORDS = re.compile(
    r"\b((twen|thir|for|fif|six|seven|eigh|nine)ty|(thir|four|fif|six|seven|eigh|nine)teen"
    rf"|(a|{_SMALL}|dozen) (hundred|{'|'.join(_MAGNITUDES)})|({_SMALL}) percent)\b",
    re.IGNORECASE,
)
_RUNS_ON = rf"[0-9]{CLOSE}[.,e'’]?{OPEN}[0-9]"
_SIGN = rf"(?:^|(?<=[\s(=\[]))[-−–]{OPEN}[0-9]"
_UNIT = rf"[0-9.,]*[0-9]{CLOSE}(?:[%‰]|[kKMGT](?![A-Za-z]))"
_ALTERS = re.compile(f"{_RUNS_ON}|{_SIGN}|{_UNIT}")
_ALTERS_IN_FORMULA = re.compile(rf"[0-9]{CLOSE}?\.?{OPEN}[0-9]|[0-9]{CLOSE}\.?[0-9]|(?:^|(?<=[=(,:<>]))[-−]{OPEN}[0-9]")
_TYPST_SPACES = re.compile(r"\b(?:thin|med|thick|quad|wide|space|zws|zwj|wj)\b(?:\.\w+)*")
_TYPST_STYLES = re.compile(
    r"\b(?:upright|bold|italic|serif|sans|mono|cal|frak|bb|text|op|display|inline|script|sscript)\(([^()]*)\)"
)


def is_name(notation: str) -> bool:
    """Return whether it names something: each number is part of a word (FP16), follows a capital one (Gemma 3) or
    counts a magnitude (540 billion)."""
    words = notation.split()
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        is_bare = _is_number(word) and not any(sign.isalpha() for sign in word)
        if is_bare and not (word.isdecimal() and (before[:1].isupper() or after in _MAGNITUDES)):
            return False
    return True


def typed(text: str) -> str | None:
    """Return a number in digits of any kind (7, ³, ½), or one in words that is more than a glance can count."""
    number = next((word for word in text.split() if _is_number(word)), None)
    in_words = _IN_WORDS.search(text)
    return number or (in_words[0] if in_words else None)


def typed_in_formula(source: str) -> str | None:
    """Return a number of more than one digit, or Typst's code, which can write one."""
    code = re.search(r"#(?!h\()\S*|\\u\{\S*", source)
    number = re.search(r"\S*\d\.?\d\S*", _digits(source)) or re.search(r"\d\.?\d", _digits(_drawn_signs(source)))
    found = code or number
    return found[0] if found else None


def altered(text: str) -> str | None:
    """Return a traced value with what makes another number of it: a sign, a unit, a second value that runs on."""
    return _without_marks(_ALTERS.search(text))


def altered_in_formula(source: str) -> str | None:
    """Return a traced value with what makes another number of it: a sign, or digits that run on."""
    return _without_marks(_ALTERS_IN_FORMULA.search(_drawn_signs(source)))


def _without_marks(match: re.Match[str] | None) -> str | None:
    return None if match is None else match[0].replace(OPEN, "").replace(CLOSE, "")


def _drawn_signs(source: str) -> str:
    """Return Typst's source without what draws no sign, so that digits that will stand together do."""
    source = re.sub(r"/\*.*?\*/", "", source)
    source = re.sub(r"\{\{(.*?):\s*\w+\s*\}\}", r"\1", source)
    source = _TYPST_STYLES.sub(r"\1", _TYPST_SPACES.sub("", source))
    return re.sub(r"[\s\"{}&]", "", source)


def _digits(text: str) -> str:
    """Return the text with a digit for every sign that is a number of its own, such as ½."""
    return "".join("0" if sign.isnumeric() and sign not in "0123456789" else sign for sign in text)


def _is_number(text: str) -> bool:
    return any(sign.isnumeric() for sign in text)
