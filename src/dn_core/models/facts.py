"""What a model is, in words: the facts of its card and its file, for a reader."""

from __future__ import annotations

from typing import Any

from dn_core.checkpoints import Card
from dn_core.models.index import Entry

__all__ = ["model_facts"]


def model_facts(entry: Entry) -> dict[str, str]:
    """Say what a model is, what it learnt from and under which terms it may be used.

    Parameters
    ----------
    entry : Entry
        A model on this machine or of a registry; of the latter less is known.

    Returns
    -------
    dict of str to str
        Texts by what they are about, in the order to show them; some have several lines.

    Raises
    ------
    CheckpointError, OSError
        When the file is damaged or cannot be read.

    Examples
    --------
    >>> from dn_core.models import entries
    >>> model_facts(entries()[0])["Model"]
    'dn-fast@1, bundled'
    """
    card = entry.card()
    origin = f" from {entry.source}" if entry.source else ""
    facts = {
        "Model": f"{entry.reference}, {entry.kind}{origin}",
        "What": card.description,
        "Made for": card.noise or "not stated",
        "Learnt from": _learnt_from(card),
        "Trained": _trained(card),
        "Terms": card.terms or "not stated",
        "License": card.license or "not stated",
        "Scores": ", ".join(
            f"{name.replace('_', ' ')} {value:.2f} dB" if isinstance(value, (int, float)) else name
            for name, value in card.scores.items()
        ),
        "File": f"{entry.bytes / 1000:,.0f} kB, sha256 {entry.sha256}",
    }
    return {name: _printable(text) for name, text in facts.items() if text}


def _printable(text: str) -> str:
    """Without the control characters by which a card could change what a terminal shows."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in text)


def _learnt_from(card: Card) -> str:
    """The images, a source a line."""
    count, sources = _images_in_words(card.data), card.data.get("sources")
    lines = [str(source) for source in sources] if isinstance(sources, list) else []
    return "\n".join([f"{count}:" if count and lines else count, *lines]).strip()


def _images_in_words(data: dict[str, Any]) -> str:
    """How many images; the sources count those that were held out as well."""
    images, held_out, made_up = (data.get(name) for name in ("images", "held_out", "phantoms"))
    if made_up == 1:
        return "made-up images"
    if not isinstance(images, int):
        return ""
    if made_up:
        return f"{images:,} images, and made-up ones for {made_up:.0%} of the patches"
    return f"{images:,} images" + (f", and {held_out:,} for its score" if held_out else "")


def _trained(card: Card) -> str:
    """How long, and from which model."""
    base = card.training.get("base")
    start = base.get("name") if isinstance(base, dict) else card.recipe.get("start")
    made_from = f"from {start}, " if start else ""
    steps, megapixels = card.training.get("steps"), card.training.get("megapixels")
    if not isinstance(steps, int) or not isinstance(megapixels, (int, float)):
        return made_from.removesuffix(", ")
    return f"{made_from}{steps:,} steps, {megapixels:,.0f} megapixels"
