"""One HTML page a run: what came in, what was refused, how training went, what came out, what it cost.

The page is one file that opens without a network. Text from rows is escaped by the template, figures travel
as JSON that cannot close its script element, and a content security policy lets only the page's own scripts
run.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lm_mixup.config import ReportConfig
from lm_mixup.core.run_dir import Outcome, RunDir
from lm_mixup.core.value_counts import splits_in, tables_of, without_value_counts
from lm_mixup.report import figures
from lm_mixup.report.charts import Chart, draw_charts
from lm_mixup.report.gather import Counts, RunFacts, gather
from lm_mixup.report.verdict import judge_run

PAGE = "report/index.html"
_LONGEST_TEXT = 2400


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    label: str
    value: str
    note: str = ""


def report(run: RunDir, config: ReportConfig) -> Outcome:
    """Writes RUN/report/index.html from whatever stages the run has.

    Args:
        run: The run directory, finished or not.
        config: Title, and how many examples to show.

    Returns:
        The outcome with the page's size in bytes and its number of charts.
    """
    facts = gather(run, config.examples)
    charts = draw_charts(facts)
    page = render(facts, config, charts).encode("utf-8")
    run.write_bytes(PAGE, page)
    metrics = {"bytes": len(page), "charts": sum(map(len, charts.values()))}
    return Outcome(metrics=metrics, rows_in=0, rows_out=0, files=[PAGE])


def render(facts: RunFacts, config: ReportConfig, charts: dict[str, list[Chart]]) -> str:
    """The page as text."""
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("lm_mixup", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "seconds": _seconds,
        "clip": _clip,
        "flat": _flat,
        "mark": _mark,
        "words": _words,
    }
    # Script elements are written as they are hashed: not a byte may differ.
    scripts = {"plotly": get_plotlyjs() if charts else "", "draw": _resource("page.js")}
    mixture = facts.manifest("mixture")
    return environment.get_template("page.html.j2").render(
        facts=facts,
        splits=splits_in(mixture.metrics if mixture else {}),
        mixture=tables_of(mixture.metrics if mixture else {}),
        title=_title(facts, config),
        verdict=judge_run(facts.manifests, facts.info.get("config") or {}, facts.truth),
        charts=charts,
        tiles=_tiles(facts),
        style=Markup(_resource("page.css")),  # noqa: S704
        scripts={name: Markup(code) for name, code in scripts.items()},  # noqa: S704
        script_hashes=[_hash(code) for code in scripts.values() if code],
        command=_command(facts.info.get("command") or []),
        resolved=_yaml(facts.info.get("config")),
        versions=facts.info.get("versions") or {},
        most_rows=max((s.manifest.rows_out for s in facts.stages if s.manifest), default=0) or 1,
        total_seconds=sum(s.manifest.seconds for s in facts.stages if s.manifest),
    )


def _tiles(facts: RunFacts) -> list[Tile]:
    """The headline: the rows on their way from pool to training set, then what training did."""
    tiles = []
    named = {
        "ingest": ("pool", "rows that came in"),
        "cluster": ("clusters", "of poor, related rows"),
        "distill": ("distilled", "rows, one a cluster"),
        "select": ("training set", "rows"),
        "mixture": ("MIXTURE", "training rows, poor → rich"),
    }
    for stage, (label, note) in named.items():
        manifest = facts.manifest(stage)
        if manifest is not None:
            rows = manifest.rows_in if stage == "ingest" else manifest.rows_out
            tiles.append(Tile(label, _number(rows), note))
    pool, distilled = facts.scores.get("pool"), _all_distilled(facts)
    means = [counts.mean() if counts is not None else None for counts in (pool, distilled)]
    if means[0] is not None and means[1] is not None:
        note = "pool → all distilled rows that were rated"
        tiles.append(Tile("mean score", f"{means[0]:.2f} → {means[1]:.2f}", note))
    # The same prompts before and after: steps differ more by their prompts than by what was learned.
    steps, rewards = figures.points(facts.validation, "reward")
    if len(rewards) > 1:
        note = f"held-out prompts, step {steps[0]} → {steps[-1]}"
        tiles.append(Tile("GRPO reward", f"{rewards[0]:.2f} → {rewards[-1]:.2f}", note))
    return tiles


def _all_distilled(facts: RunFacts) -> Counts | None:
    """The scores of kept and rejected distilled rows: of survivors alone they would all be good."""
    kept, rejected = facts.scores.get("distilled"), facts.rejected_scores
    if kept is None or rejected is None:
        return kept or rejected
    return Counts(kept.values + rejected.values, kept.coverage)


def _title(facts: RunFacts, config: ReportConfig) -> str:
    """The heading: the config's, else what the run was about."""
    if config.title:
        return config.title
    pool = str(facts.info.get("config", {}).get("augment", {}).get("pool") or "")
    name = pool.rstrip("/").rpartition("/")[2]
    return f"lm-mixup: {'the demonstration pool' if pool == 'world' else name}" if pool else "lm-mixup run"


def _resource(name: str) -> str:
    return resources.files("lm_mixup.report").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """The source expression that allows exactly this script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _command(words: list[str]) -> str:
    """The command as it would be typed, without the folder the program lies in."""
    program, *rest = words or [""]
    return shlex.join([program.rsplit("/", 1)[-1], *rest]) if program else ""


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True) if value else ""


def _number(value: Any) -> str:
    """12,345 or 0.1235; a dash where there is no value."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    whole = isinstance(value, int) or (value == int(value) and abs(value) < 1e15)
    return f"{int(value):,}" if whole else f"{value:,.4g}"


def _seconds(value: float) -> str:
    """0.4 s, 12 s, 3 min 20 s or 2 h 5 min."""
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _clip(text: str) -> str:
    """A text short enough to read on a page."""
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " …"


def _mark(text: str, spans: tuple[str, ...]) -> Markup:
    """A text, escaped, with the spans that its inputs do not bear out marked."""
    found = sorted({span for span in spans if span.strip()}, key=len, reverse=True)
    if not found:
        return escape(text)
    pieces = re.split("(" + "|".join(map(re.escape, found)) + ")", text)
    return Markup("").join(
        Markup("<mark>{}</mark>").format(piece) if piece in found else escape(piece) for piece in pieces
    )


_REASONS = {
    "cut_at_max_completion_length": "did not end within the length limit",
    "answer_pattern": "does not follow the answer format of its task type",
    "repeated_mark": "holds a mark of the answer format twice",
    "text_outside_tags": "text stands outside the <think> and <answer> tags",
    "prompt_too_long": "its inputs do not fit in the prompt",
    "unrated": "could not be rated",
    "empty_answer": "the answer is empty",
}


def _words(reason: str) -> str:
    """A reject's reason in words."""
    return _REASONS.get(reason) or reason.replace("_", " ")


def _flat(metrics: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested metrics as (dotted name, value), lists cut to something that fits a line; no value counts."""
    pairs: list[tuple[str, Any]] = []
    for key, value in without_value_counts(metrics).items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", f"{value!s:.160}" if isinstance(value, list | str) else value))
    return pairs
