"""Tables that scripts put into a page between marks, so that no figure is typed by hand."""

from __future__ import annotations

from pathlib import Path

__all__ = ["put_into"]


def put_into(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name: begin -->`` and ``<!-- name: end -->``.

    Raises
    ------
    ValueError
        When the page lacks the marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(
            f"{page} has no {begin} ... {end}; both are expected. Put them where the table belongs."
        )
    page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")
