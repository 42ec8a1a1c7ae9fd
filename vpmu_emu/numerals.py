"""A number as users write it: `42`, `0x2a`, `0b10_1010`; whatever else it is, it is no number."""

from __future__ import annotations

LONGEST = 80  # characters: 64 bits in binary, with room for `_`


def whole(text: str) -> int | None:
    """The number that `text` is, None if it is none or has more than 64 bits."""
    text = text.strip()
    if len(text) > LONGEST or not text.isascii():
        return None
    try:
        value = int(text, 0)
    except ValueError:
        return None
    return value if abs(value) < 1 << 64 else None


def shown(value: object) -> str:
    """`value` as a message quotes it: what is long is cut."""
    if isinstance(value, int) and abs(value) >> 128:
        text = hex(value)  # Python writes no decimal number of any length
    else:
        try:
            text = repr(value)
        except (ValueError, RecursionError):
            return f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
