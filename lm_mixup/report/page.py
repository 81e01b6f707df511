"""One HTML page a run: what came in, what was refused, how training went, what came out, what it cost.

The page is one file that opens without a network. Text from rows is escaped by the template, figures travel
as JSON that cannot close its script element, and a content security policy lets only the page's own scripts
run.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lm_mixup.config import ReportConfig
from lm_mixup.core.run_dir import Outcome, RunDir
from lm_mixup.core.value_counts import splits_in, tables_of, without_value_counts
from lm_mixup.report import figures
from lm_mixup.report.charts import Chart, draw_charts
from lm_mixup.report.examples import Example
from lm_mixup.report.flow import draw_flow
from lm_mixup.report.gather import RunFacts, gather
from lm_mixup.report.marks import clip, kept_words, mark_invented, mark_parent
from lm_mixup.report.reasons import in_words
from lm_mixup.report.verdict import judge_run, training_command

PAGE = "report/index.html"
_LIBRARY = "vendor/plotly-basic.min.js"  # bars and lines: a quarter of the whole library


_STATES = {"chosen": "in the training set", "kept": "kept, not chosen", "rejected": "rejected"}


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
        "clip": clip,
        "flat": _flat,
        "invented": mark_invented,
        "parent": mark_parent,
        "kept_words": kept_words,
        "words": in_words,
    }
    # Script elements are written as they are hashed: not a byte may differ.
    scripts = {"plotly": _resource(_LIBRARY) if charts else "", "draw": _resource("page.js")}
    mixture = facts.manifest("mixture")
    resolved = facts.info.get("config") or {}
    verdict = judge_run(facts.manifests, resolved, facts.truth)
    is_trainable = verdict is not None and verdict.level != "bad" and facts.manifest("select") is not None
    return environment.get_template("page.html.j2").render(
        facts=facts,
        splits=splits_in(mixture.metrics if mixture else {}),
        mixture=tables_of(mixture.metrics if mixture else {}),
        title=_title(facts, config),
        verdict=verdict,
        training=training_command(facts.uri) if is_trainable else "",
        charts=charts,
        tiles=_tiles(facts),
        style=Markup(_resource("page.css")),  # noqa: S704
        scripts={name: Markup(code) for name, code in scripts.items()},  # noqa: S704
        script_hashes=[_hash(code) for code in scripts.values() if code],
        command=_command(facts.info.get("command") or []),
        resolved=yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True) if resolved else "",
        versions=facts.info.get("versions") or {},
        flow=draw_flow(facts.fates) if facts.fates else None,
        states=_STATES,
        filters=_filters(facts.examples),
        results=facts.results,
        links=_links(facts),
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
    pool, distilled = facts.scores.get("pool"), facts.scores.get("distilled")
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


def _filters(examples: list[Example]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """The filters of the examples: (name, label, options as value and text) where there is a choice."""
    scores = sorted({example.score for example in examples if example.score is not None})
    filters = [
        (
            "state",
            "kept or rejected",
            [(k, v) for k, v in _STATES.items() if any(e.state == k for e in examples)],
        ),
        ("source", "source", [(name, name) for name in sorted({e.source for e in examples} - {""})]),
        ("task", "task", [(name, name) for name in sorted({e.task_type for e in examples})]),
        ("score", "score", [(str(score), str(score)) for score in scores]),
        ("faithful", "true to its inputs", [("yes", "all of it"), ("no", "not all of it")]),
    ]
    if all(example.faithfulness is None for example in examples):
        filters.pop()
    return [entry for entry in filters if len(entry[2]) > 1]


def _links(facts: RunFacts) -> list[tuple[str, str]]:
    """What lies beside the page: (path relative to it, what it is)."""
    links = []
    if facts.manifest("select") is not None:
        links.append(("../select/train.jsonl", "the training set"))
    for stage in facts.stages:
        if stage.manifest is not None and stage.manifest.rows_rejected:
            links.append((f"../{stage.name}/rejected/", f"rows rejected by {stage.name}"))
    return links


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


def _flat(metrics: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested metrics as (dotted name, value), lists cut to something that fits a line.

    Left out: value counts, which have tables; what is empty or did not happen; and the judge's errors, which
    are drawn.
    """
    pairs: list[tuple[str, Any]] = []
    for key, value in without_value_counts(metrics).items():
        if value in (None, 0, "", [], {}) or key in ("transition", "prior"):
            continue
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", f"{value!s:.160}" if isinstance(value, list | str) else value))
    return pairs
