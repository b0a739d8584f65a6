"""Makes foreign text safe to print: in a terminal a control character can move the cursor or hide a line."""

from __future__ import annotations


def clean(text: str) -> str:
    """Give a text without control characters, line breaks and half surrogate pairs; each becomes a space."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def one_line(text: str, length_max: int) -> str:
    """Give a text as one line of at most so many characters; an ellipsis stands for what was cut off."""
    line = " ".join(clean(text).split())
    return line if len(line) <= length_max else line[: length_max - 1] + "…"
