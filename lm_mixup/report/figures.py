"""The report's charts, as Plotly figures.

Each function takes plain numbers and returns a figure, or None where there is nothing to draw. Colours of
text, grid and background are the page's, which follows the reader's light or dark scheme; only the colours of
series are set here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_mixup.report.gather import Counts, Metrics, StageFacts
from lm_mixup.report.pool_map import Point

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Mid-tones that keep 3:1 contrast on white and on near-black, told apart by colour-blind readers too.
INDIGO, TEAL, AMBER, ROSE, SKY, GREY = "#6e6ade", "#12a594", "#d98a04", "#e5484d", "#3b9eff", "#8b8d98"
SERIES = (INDIGO, TEAL, AMBER, ROSE, SKY, GREY)
VERB_COLOURS = {"build": SKY, "train": INDIGO, "augment": TEAL, "evaluate": AMBER}
PHASES = ("rollout", "reward", "advantage", "update", "sync")

MOST_POINTS = 400
LEAST_POINTS = 3  # two points are no trend
_SMOOTHING = 0.15


def score_histogram(scores: Mapping[str, Counts]) -> go.Figure | None:
    """Shares of rows by score 0-5: pool as rated, pool as curated, distilled rows."""
    import plotly.graph_objects as go

    if not scores:
        return None
    figure = _figure(xaxis_title="score", yaxis_title="share of rated rows", height=320)
    colours = {"pool": GREY, "curated": AMBER, "distilled": TEAL}
    for name, counts in scores.items():
        rows = sum(count for score, count in counts.values.items() if score is not None)
        if not rows:
            continue
        shares = [counts.values.get(score, 0) / rows for score in range(6)]
        figure.add_trace(
            go.Bar(
                x=list(range(6)),
                y=shares,
                name=name,
                marker_color=colours.get(name, INDIGO),
                hovertemplate="score %{x}: %{y:.1%}<extra>" + name + "</extra>",
            )
        )
    figure.update_layout(barmode="group", bargap=0.25, yaxis_tickformat=".0%", xaxis_dtick=1)
    return figure if figure.data else None


def cluster_sizes(sizes: Counts | None) -> go.Figure | None:
    """How many clusters there are of each size."""
    import plotly.graph_objects as go

    if sizes is None:
        return None
    order = sorted(sizes.values)
    figure = _figure(xaxis_title="rows in the cluster", yaxis_title="clusters")
    figure.add_trace(
        go.Bar(
            x=order,
            y=[sizes.values[size] for size in order],
            marker_color=INDIGO,
            hovertemplate="%{y:,} clusters of %{x}<extra></extra>",
        )
    )
    figure.update_layout(xaxis_dtick=1, bargap=0.25)
    return figure


def cohesion_histogram(cohesion: Counts | None, bins: int = 40) -> go.Figure | None:
    """How alike the rows of a cluster are: mean cosine to the centre, in bins over the observed range."""
    import plotly.graph_objects as go

    known = {} if cohesion is None else {v: n for v, n in cohesion.values.items() if v is not None}
    if not known:
        return None
    values = np.array(list(known), dtype=np.float64)
    low, high = values.min(), values.max()
    span = (low, high) if high > low else (low - 0.01, high + 0.01)
    heights, edges = np.histogram(values, bins=bins, range=span, weights=list(known.values()))
    figure = _figure(xaxis_title="cohesion (mean cosine)", yaxis_title="clusters")
    figure.add_trace(
        go.Bar(
            x=((edges[:-1] + edges[1:]) / 2).round(4).tolist(),
            y=heights.astype(int).tolist(),
            width=float(np.diff(edges)[0]) * 0.92,
            marker_color=INDIGO,
            hovertemplate="%{y:,} clusters near %{x:.3f}<extra></extra>",
        )
    )
    return figure


def curves(
    metrics: Metrics,
    series: Mapping[str, str],
    *,
    unit: str = "",
    smooth: bool = False,
    band: str = "",
    height: int = 260,
) -> go.Figure | None:
    """Lines of some metrics over the steps; none where no metric has `LEAST_POINTS` of them.

    Args:
        metrics: One dict a step.
        series: Metric key → name in the legend; metrics that never occur are left out.
        unit: Title of the vertical axis; a `share` goes from 0 to 1.
        smooth: Draws the raw values faintly and an exponential moving average over them.
        band: Metric key of a standard deviation, drawn as a band around the first line.
        height: Pixels.
    """
    import plotly.graph_objects as go

    figure = _figure(xaxis_title="step", yaxis_title=unit, height=height)
    for place, (key, name) in enumerate(series.items()):
        colour = SERIES[place % len(SERIES)]
        steps, values = points(metrics, key)
        if len(steps) < LEAST_POINTS:
            continue
        line = {"color": colour, "width": 2}
        if smooth and len(steps) > 8:
            raw = go.Scatter(x=steps, y=values, mode="lines", line={"color": colour, "width": 1})
            figure.add_trace(raw.update(opacity=0.45, showlegend=False, hoverinfo="skip"))
            values = moving_average(values)
        spreads = points(metrics, band)[1] if band and not place else []
        if len(spreads) == len(values):
            spreads = moving_average(spreads) if smooth else spreads
            low, high = zip(*((v - s, v + s) for v, s in zip(values, spreads, strict=True)), strict=True)
            edges = go.Scatter(
                x=[*steps, *reversed(steps)], y=[*high, *reversed(low)], mode="lines", fill="toself"
            )
            edges.update(line={"width": 0, "color": colour}, fillcolor=_faint(colour), hoverinfo="skip")
            figure.add_trace(edges.update(name="± one standard deviation", showlegend=False))
        trace = go.Scatter(x=steps, y=values, mode="lines", line=line, marker_color=colour, name=name)
        figure.add_trace(trace.update(hovertemplate="%{y:.4g}"))
    named = [trace for trace in figure.data if trace.showlegend is not False]
    figure.update_layout(hovermode="x unified", showlegend=len(named) > 1)
    if unit == "share":
        figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    if metrics and metrics[-1]["step"] - metrics[0]["step"] < 10:
        figure.update_xaxes(dtick=1)  # no half steps
    return figure if figure.data else None


def _faint(colour: str) -> str:
    """A colour #rrggbb with little opacity."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def pool_map(found: Sequence[Point]) -> go.Figure | None:
    """The pool on a plane: rows in clusters, poor rows without kin, good rows; hover shows the row."""
    import plotly.graph_objects as go

    if not found:
        return None
    groups = {
        "in a cluster": (TEAL, [point for point in found if point.cluster]),
        "not clustered": (GREY, [point for point in found if not point.cluster]),
    }
    figure = _figure(height=460)
    for name, (colour, members) in groups.items():
        if members:
            figure.add_trace(
                go.Scatter(
                    x=[point.x for point in members],
                    y=[point.y for point in members],
                    mode="markers",
                    name=name,
                    marker={"color": colour, "size": 6, "opacity": 0.75},
                    customdata=[[point.cluster, *_hover(point)] for point in members],
                    hovertemplate="%{customdata[1]}<br><i>%{customdata[2]}</i><extra></extra>",
                )
            )
    figure.update_layout(dragmode="select", hovermode="closest", legend_itemsizing="constant")
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def _hover(point: Point) -> tuple[str, str]:
    """A row's text in lines, and where it is from, escaped: Plotly reads some tags in hover texts."""
    short = escape(" ".join(point.text.split())[:160])
    lines = textwrap.wrap(short, 60, break_long_words=False)
    score = "not rated" if point.score is None else f"score {point.score}"
    return "<br>".join(lines), escape(f"{point.source} · {score}"[:80])


def points(metrics: Metrics, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric, joined into at most `MOST_POINTS` means."""
    pairs = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
    stride = -(-len(pairs) // MOST_POINTS) if pairs else 1
    groups = [pairs[start : start + stride] for start in range(0, len(pairs), stride)]
    return [group[-1][0] for group in groups], [sum(v for _, v in group) / len(group) for group in groups]


def moving_average(values: Sequence[float]) -> list[float]:
    """Exponential moving average, with the bias of its start taken out (as Adam does)."""
    smoothed, mean = [], 0.0
    for step, value in enumerate(values, start=1):
        mean += _SMOOTHING * (value - mean)
        smoothed.append(mean / (1 - (1 - _SMOOTHING) ** step))
    return smoothed


def stage_seconds(stages: Sequence[StageFacts]) -> go.Figure | None:
    """Wall time of each verb as one stacked bar, a segment a stage."""
    import plotly.graph_objects as go

    done = [facts for facts in stages if facts.manifest is not None and facts.manifest.seconds > 0]
    if not done:
        return None
    verbs = list(dict.fromkeys(facts.verb for facts in done))
    longest = max(sum(_seconds(facts) for facts in done if facts.verb == verb) for verb in verbs)
    figure = _figure(xaxis_title="seconds", height=max(200, 90 + 50 * len(verbs)))
    for facts in done:
        place = [other.name for other in done if other.verb == facts.verb].index(facts.name)
        figure.add_trace(
            go.Bar(
                y=[facts.verb],
                x=[_seconds(facts)],
                orientation="h",
                name=facts.name,
                marker={
                    "color": VERB_COLOURS.get(facts.verb, GREY),
                    "opacity": (1.0, 0.72, 0.5)[place % 3],
                    "line": {"width": 0},
                },
                text=facts.name if _seconds(facts) > 0.08 * longest else "",
                insidetextanchor="middle",
                textangle=0,
                hovertemplate="%{x:,.1f} s<extra>" + facts.name + "</extra>",
            )
        )
    figure.update_layout(barmode="stack", bargap=0.35, showlegend=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def _seconds(facts: StageFacts) -> float:
    return facts.manifest.seconds if facts.manifest is not None else 0.0


def step_timing(metrics: Metrics) -> go.Figure | None:
    """Where each GRPO step's time went, stacked by phase."""
    import plotly.graph_objects as go

    figure = _figure(xaxis_title="step", yaxis_title="seconds", height=300)
    for colour, phase in zip(SERIES, PHASES, strict=False):
        steps, values = points(metrics, f"timing_s/{phase}")
        if steps:
            trace = go.Bar(x=steps, y=values, name=phase, marker={"color": colour, "line": {"width": 0}})
            figure.add_trace(trace.update(hovertemplate="%{y:.2f} s"))
    figure.update_layout(barmode="stack", bargap=0.1, hovermode="x unified", legend_traceorder="normal")
    return figure if figure.data else None


def _figure(height: int = 260, **layout: Any) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 56, "r": 12, "t": 10, "b": 38},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        **layout,
    )
    return figure
