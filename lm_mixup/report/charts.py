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
        "Zero-std groups",
        "Share of groups whose rewards are equal.",
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


@dataclass(frozen=True)
class Chart:
    """A figure with its caption, as the template shows it."""

    id: str
    title: str
    note: str
    json: Markup


def draw_charts(facts: RunFacts) -> dict[str, list[Chart]]:
    """The charts of each section; sections without any are absent."""
    charts: dict[str, list[Chart]] = {}
    for section, title, note, figure in _drawn(facts):
        if figure is not None:
            listed = charts.setdefault(section, [])
            listed.append(Chart(f"{section}-{len(listed)}", title, note, _json(figure)))
    return charts


def _drawn(facts: RunFacts) -> Iterator[tuple[str, str, str, go.Figure | None]]:
    """Section, title, caption and figure, in the order of the page."""
    note = f"0-5, of the pool and of what was distilled from it.{_sampled(*facts.scores.values())}"
    yield "scores", "Scores", note, figures.score_histogram(facts.scores)
    note = f"Rows in a cluster.{_sampled(facts.sizes)}"
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
    note = "Mean of each step; the line is its moving average."
    drawn = figures.curves(facts.grpo, _REWARD, unit="reward", smooth=True, height=320)
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


def _json(figure: go.Figure) -> Markup:
    """The figure as JSON that cannot close the script element it stands in."""
    text: str = figure.to_json()
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # noqa: S704


def _sampled(*counts: Counts | None) -> str:
    """Says so where not every part of a stage was counted."""
    short = [c.coverage for c in counts if c is not None and c.coverage.read < c.coverage.parts]
    return "".join(f" Counted over {cover.read} of {cover.parts} parts." for cover in short[:1])
