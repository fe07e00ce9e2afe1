"""Parts of messages: counts with their nouns, and suggestions for misspelt names."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["counted", "did_you_mean", "unknown_settings"]


def counted(count: int, one: str, several: str = "") -> str:
    """A number with its noun in the singular or plural.

    Parameters
    ----------
    count : int
        How many.
    one : str
        The noun for 1.
    several : str, default ""
        The noun for other numbers; by default with an ``s``.

    Examples
    --------
    >>> counted(1, "scene"), counted(0, "scene"), counted(2, "pixel that is", "pixels that are")
    ('1 scene', '0 scenes', '2 pixels that are')
    """
    return f"{count} {one if count == 1 else several or one + 's'}"


def did_you_mean(text: str, names: Iterable[str], *, cutoff: float = 0.5) -> str:
    """A question with the names that are similar to `text`; empty if none is.

    Examples
    --------
    >>> did_you_mean("dn-fst", ["dn-fast", "paper-ds"])
    'Did you mean dn-fast?'
    """
    import difflib  # only for errors

    near = difflib.get_close_matches(text, list(names), n=3, cutoff=cutoff)
    return f"Did you mean {' or '.join(near)}?" if near else ""


def unknown_settings(unknown: Iterable[str], known: Iterable[str]) -> str:
    """The end of a message about settings that do not exist, with a similar one if there is one.

    Examples
    --------
    >>> unknown_settings(["minuts"], ["minutes", "steps"])
    "unknown setting 'minuts'. Did you mean 'minutes'?"
    >>> unknown_settings(["size"], ["minutes", "steps"])
    "unknown settings ['size']; known are ['minutes', 'steps']."
    """
    wrong, right = sorted(unknown), sorted(known)
    if len(wrong) == 1 and (hint := did_you_mean(wrong[0], map(repr, right), cutoff=0.6)):
        return f"unknown setting {wrong[0]!r}. {hint}"
    return f"unknown settings {wrong}; known are {right}."
