"""Settings of the documentation site: ``python -m sphinx -W docs build/docs``.

Building needs no network: references to other projects are plain text, and the theme's files are
in its package.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import dn_core

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent

project = "napari-dnresnet"
author = "napari-dnresnet contributors"
copyright = "napari-dnresnet contributors, BSD-3-Clause"
version = release = dn_core.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc"]
highlight_language = "none"  # of code without a language: commands
default_role = "py:obj"  # `denoise` in a docstring is a link where the site has it, else plain

myst_heading_anchors = 3  # the same anchors as on the repository's pages
myst_links_external_new_tab = True

autodoc_default_options = {"members": True, "special-members": "__call__"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("ArrayLike", "DTypeLike", "NDArray")}
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
numpydoc_show_class_members = False  # autodoc lists them, each with its own docstring

html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
}

# Pages of the site that are files elsewhere in the repository: in docs/ is only a link to them.
ELSEWHERE = {
    "changes": "CHANGELOG.md",
    "cluster": "distributed/README.md",
    "contributing": "CONTRIBUTING.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def page_from_elsewhere(app: Sphinx, name: str, source: list[str]) -> None:
    """Put a file of the repository in place of the link to it; its links lead to the site."""
    if name not in ELSEWHERE:
        return
    path = ROOT / ELSEWHERE[name]
    app.env.note_dependency(str(path))
    pages = {(ROOT / file).resolve(): f"{page}.md" for page, file in ELSEWHERE.items()}

    def on_the_site(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        file = (path.parent / target).resolve()
        page = pages.get(file, os.path.relpath(file, ROOT / "docs"))
        return text if page.startswith("..") else f"[{text}]({page}{anchor or ''})"

    source[0] = LINK.sub(on_the_site, path.read_text(encoding="utf-8"))


def signature_as_code(
    app: Sphinx,
    what: str,
    name: str,
    value: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None] | None:
    """Make the signature of a dataclass one that Python, and so Sphinx, can parse."""
    return (signature.replace("<factory>", "..."), returns) if signature else None


def setup(app: Sphinx) -> None:
    """Connect what is above with Sphinx."""
    app.connect("source-read", page_from_elsewhere)
    app.connect("autodoc-process-signature", signature_as_code)
