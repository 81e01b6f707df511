"""The flow of the pool's rows as a Sankey diagram: plain SVG, coloured by the page's style sheet."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from lm_mixup.report import fates
from lm_mixup.report.fates import COLUMNS, Fates

_WIDTH, _HEIGHT = 1080, 400
_NODE, _GAP, _LABEL = 12, 16, 150
_LINES = 18.0
# The class of a node's colour: where a row may still end well, where it did, where it did not.
_KINDS: Final = {
    fates.CHOSEN: "won",
    fates.KEPT: "won",
    fates.NO_KIN: "lost",
    fates.BROKEN: "lost",
    fates.REFUSED: "lost",
    fates.UNRATED: "lost",
    fates.LEFT: "idle",
}


@dataclass
class _Node:
    name: str
    column: int
    rows: int = 0
    top: float = 0.0
    taken_in: float = 0.0
    taken_out: float = 0.0


def draw_flow(found: Fates) -> Markup | None:
    """The diagram; None where there is nothing to draw. Widths are pool rows."""
    if not found.rows:
        return None
    nodes, links = _nodes_and_links(found)
    columns: dict[int, list[_Node]] = {}
    for node in nodes.values():
        columns.setdefault(node.column, []).append(node)
    order = [name for column in COLUMNS for name in column]
    for number, members in columns.items():
        if number:
            members.sort(key=lambda node: order.index(node.name))
        else:
            members.sort(key=lambda node: (node.name == fates.OTHER, -node.rows, node.name))
    most = max(len(members) for members in columns.values())
    scale = (_HEIGHT - 40 - _GAP * (most + 1)) / found.rows
    # Good rows pass over the columns of the distilled ones: those begin below them.
    good = nodes[fates.GOOD].rows if fates.GOOD in nodes else 0
    for number, members in columns.items():
        top = 24.0 + (good * scale + _GAP if 2 <= number < len(COLUMNS) else 0.0)
        for node in members:
            node.top = top
            top += max(node.rows * scale, _LINES) + _GAP  # a thin node has a label of two lines too
    step = (_WIDTH - _LABEL - _NODE) / len(COLUMNS)
    shapes = Markup("")
    ordered = sorted(links.items(), key=lambda item: (nodes[item[0][0]].top, nodes[item[0][1]].top))
    for (one, other), rows in ordered:
        shapes += _ribbon(nodes[one], nodes[other], rows, scale, step)
    for node in nodes.values():
        shapes += _box(node, found.rows, scale, step)
    height = max(node.top + node.rows * scale for node in nodes.values()) + 24
    return Markup('<svg class="flow-chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, round(height), f"Flow of {found.rows:,} pool rows to the training set", shapes
    )


def _nodes_and_links(found: Fates) -> tuple[dict[str, _Node], Counter[tuple[str, str]]]:
    column_of = {name: number for number, names in enumerate(COLUMNS, start=1) for name in names}
    nodes: dict[str, _Node] = {}
    links: Counter[tuple[str, str]] = Counter()
    for (source, path), rows in found.paths.items():
        start = f"source\t{source}"  # a source may bear the name of a step
        for name in (start, *path):
            node = nodes.setdefault(name, _Node(name, column_of.get(name, 0)))
            node.rows += rows
        way = (start, *path)
        for one, other in itertools.pairwise(way):
            links[one, other] += rows
    return nodes, links


def _ribbon(one: _Node, other: _Node, rows: int, scale: float, step: float) -> Markup:
    width = rows * scale
    x0, x1 = one.column * step + _NODE, other.column * step
    y0, y1 = one.top + one.taken_out + width / 2, other.top + other.taken_in + width / 2
    one.taken_out += width
    other.taken_in += width
    bend = min((x1 - x0) / 2, step / 2)
    kind = _KINDS.get(other.name, "way")
    return Markup(
        '<path class="ribbon {}" stroke-width="{:.2f}" d="M{:.1f},{:.1f} C{:.1f},{:.1f} {:.1f},{:.1f} '
        '{:.1f},{:.1f}"><title>{}</title></path>'
    ).format(
        *(kind, max(1.0, width), x0, y0, x0 + bend, y0, x1 - bend, y1, x1, y1),
        f"{_label(one)} → {_label(other)}: {rows:,} rows",
    )


def _box(node: _Node, total: int, scale: float, step: float) -> Markup:
    height, x = max(1.0, node.rows * scale), node.column * step
    kind, label = _KINDS.get(node.name, "way"), _label(node)
    shown = label if len(label) <= 22 else label[:21] + "…"
    share = f"{node.rows:,} · {node.rows / total:.0%}"
    middle = node.top + height / 2
    return Markup(
        '<g><title>{}</title><rect class="{}" x="{:.1f}" y="{:.1f}" width="{}" height="{:.1f}" rx="2"/>'
        '<text x="{:.1f}" y="{:.1f}">{}</text><text class="of" x="{:.1f}" y="{:.1f}">{}</text></g>'
    ).format(
        *(f"{label}: {node.rows:,} of {total:,} pool rows", kind, x, node.top, _NODE, height),
        *(x + _NODE + 6, middle - 2, shown, x + _NODE + 6, middle + 12, share),
    )


def _label(node: _Node) -> str:
    return node.name.removeprefix("source\t")
