"""Which charts the page shows, section by section."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from lm_mixup.report import figures
from lm_mixup.report.gather import Counts, Metrics, RunFacts

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Title, caption, unit, metric → name in the legend.
_REWARD = {"reward": "reward"}
_GRPO = (
    ("Completion length", "Mean, in tokens.", "tokens", {"completions/mean_length": "tokens"}),
    (
        "Clipped completions",
        "Share cut at the length limit.",
        "share",
        {"completions/clipped_ratio": "share"},
    ),
    ("KL", "To the reference model.", "nats", {"kl": "KL"}),
    ("Entropy", "Of the policy, per token.", "nats", {"entropy": "entropy"}),
    (
        "Engine against learner",
        "|Δ log-probability| of the sampled tokens.",
        "nats",
        {"sampling/logp_difference/mean": "mean", "sampling/logp_difference/max": "max"},
    ),
    (
        "Groups without a signal",
        "Share of groups whose completions all have the same reward: nothing is learned from them.",
        "share",
        {"frac_reward_zero_std": "share"},
    ),
)
_SFT = (
    ("Loss", "Per target token; the line is its moving average.", "loss", {"loss": "loss"}),
    # On axes of its own: it may lie far above, and what training gained would look flat.
    ("Held-out loss", "Per target token of rows of the test split.", "loss", {"eval_loss": "loss"}),
    ("Gradient norm", "Before clipping.", "norm", {"grad_norm": "norm"}),
)


_MOST_LINES = 12


@dataclass(frozen=True)
class Chart:
    """A figure with its caption, as the template shows it."""

    id: str
    title: str
    note: str
    json: Markup
    table: tuple[tuple[str, ...], ...] = ()


def draw_charts(facts: RunFacts) -> dict[str, list[Chart]]:
    """The charts of each section; sections without any are absent."""
    charts: dict[str, list[Chart]] = {}
    for section, title, note, figure in _drawn(facts):
        if figure is not None:
            listed = charts.setdefault(section, [])
            listed.append(Chart(f"{section}-{len(listed)}", title, note, _json(figure), as_table(figure)))
    return charts


def _drawn(facts: RunFacts) -> Iterator[tuple[str, str, str, go.Figure | None]]:
    """Section, title, caption and figure, in the order of the page."""
    note = f"All rated rows, refused ones among them, 0 to 5.{_sampled(*facts.scores.values())}"
    yield "scores", "Scores", note, figures.score_histogram(facts.scores)
    note = f"Rows in a cluster.{_sampled(facts.sizes)}"
    note_map = (
        "Rows that say similar things lie near each other (t-SNE of a sample of the embeddings). "
        "Point at one to read it; draw a box to see the examples of its clusters."
    )
    yield "map", "The pool", note_map, figures.pool_map(facts.points)
    yield "clusters", "Size", note, figures.cluster_sizes(facts.sizes)
    note = "How alike the rows of a cluster are."
    yield "clusters", "Cohesion", note, figures.cohesion_histogram(facts.cohesion)
    for title, note, unit, series in _SFT:
        drawn = figures.curves(facts.sft, series, unit=unit, smooth="loss" in series, height=300)
        yield "sft", title, note, drawn
    yield from _reward_charts(facts)
    yield from _fact_charts(facts)
    for title, note, unit, series in _GRPO:
        yield "grpo", title, note, figures.curves(facts.grpo, series, unit=unit)
    yield "time", "Stages", "Wall time, a bar a verb.", figures.stage_seconds(facts.stages)
    yield "time", "A GRPO step", "Where each step's time went.", figures.step_timing(facts.grpo)


def _reward_charts(facts: RunFacts) -> Iterator[tuple[str, str, str, go.Figure | None]]:
    note = "Mean of each step; the line is its moving average, the band one standard deviation."
    drawn = figures.curves(facts.grpo, _REWARD, unit="reward", smooth=True, band="reward_std", height=320)
    yield "grpo", "Reward", note, drawn
    drawn = figures.curves(facts.grpo, _components(facts.grpo), unit="reward", smooth=True, height=320)
    yield "grpo", "Components", "The same, before they are weighted.", drawn
    note = "Greedy, on prompts never trained on."
    yield "grpo", "Held-out reward", note, figures.curves(facts.validation, _REWARD, unit="reward")
    series = _components(facts.validation)
    series.pop("rewards/format/mean", None)  # the share in perfect format says more
    series |= {"format/compliance": "in format"}
    drawn = figures.curves(facts.validation, series, unit="reward")
    yield "grpo", "Held-out components", "The same, with the share in perfect format.", drawn


def _fact_charts(facts: RunFacts) -> Iterator[tuple[str, str, str, go.Figure | None]]:
    """In the closed world the answers can be checked: the facts that held-out completions state."""
    series = {"facts/recall": "share of the reference's facts"}
    drawn = figures.curves(facts.validation, series, unit="share")
    yield "grpo", "Facts stated", "Of held-out prompts, checked against the closed world.", drawn
    drawn = figures.curves(facts.validation, {"facts/other": "facts"}, unit="per completion")
    yield "grpo", "Other statements", "Facts stated that the reference does not hold.", drawn


def _components(metrics: Metrics) -> dict[str, str]:
    """Metric → name of each reward component, custom ones too, in the order of the log."""
    keys = dict.fromkeys(key for line in metrics for key in line if key.startswith("rewards/"))
    return {key: key.split("/")[1] for key in keys}


def as_table(figure: go.Figure) -> tuple[tuple[str, ...], ...]:
    """The figure's numbers as a table, for readers without JavaScript or sight: a heading, then lines.

    Of long curves at most `_MOST_LINES` places are listed, evenly spread. Maps and bars of names have none.
    """
    traces = [trace for trace in figure.data if trace.showlegend is not False]
    if not traces or traces[0].orientation == "h" or ("mode" in traces[0] and traces[0].mode == "markers"):
        return ()
    places = sorted({x for trace in traces for x in trace.x})
    if len(places) > _MOST_LINES:
        places = [places[i * (len(places) - 1) // (_MOST_LINES - 1)] for i in range(_MOST_LINES)]
    axis = figure.layout.xaxis.title.text or ""
    unit = figure.layout.yaxis.title.text or "value"
    heads = (axis, *(trace.name or unit for trace in traces))
    values = [dict(zip(trace.x, trace.y, strict=True)) for trace in traces]
    lines = [
        (f"{x:.4g}", *(f"{found[x]:.4g}" if found.get(x) is not None else "–" for found in values))
        for x in places
    ]
    return (heads, *lines)


def _json(figure: go.Figure) -> Markup:
    """The figure as JSON that cannot close the script element it stands in."""
    text: str = figure.to_json()
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # noqa: S704


def _sampled(*counts: Counts | None) -> str:
    """Says so where not every part of a stage was counted."""
    short = [c.coverage for c in counts if c is not None and c.coverage.read < c.coverage.parts]
    return "".join(f" Counted over {cover.read} of {cover.parts} parts." for cover in short[:1])
