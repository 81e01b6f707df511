"""What `mkdocs build` does to the pages: configuration reference, equations, links to the repository."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `mkdocs` need not run where the package is installed

_OUT_OF_DOCS = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")
_EQUATION = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)
_CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites one page before it is rendered."""
    if page.file.src_uri == "configuration.md":
        from lm_mixup.config.reference import reference

        markdown += "\n" + reference()
    if page.file.src_uri == "method.md":
        pieces = _CODE.split(markdown)
        markdown = "".join(
            piece if piece.startswith("`") else _EQUATION.sub(_as_mathml, piece) for piece in pieces
        )
    return _OUT_OF_DOCS.sub(_as_path, markdown)


def _as_mathml(found: re.Match[str]) -> str:
    """An equation as MathML, which browsers draw without a script."""
    from latex2mathml.converter import convert

    display = "block" if found[1] is not None else "inline"
    drawn = str(convert(found[1] or found[2], display=display))
    return (
        drawn if display == "block" else f"<span>{drawn}</span>"
    )  # else it ends a paragraph where it begins a line


def _as_path(found: re.Match[str]) -> str:
    """A link to a file of the repository as its name: the site does not hold it."""
    text, path = found[1], found[2]
    return f"{text} (`{path}`)" if path not in text else text
