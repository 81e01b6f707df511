"""What a command ends with on the terminal: the stages, the yield of the pool, and where the results lie."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lm_mixup.core.progress import say
from lm_mixup.core.run_dir import Manifest, RunDir
from lm_mixup.core.value_counts import splits_in, tables_of
from lm_mixup.report.gather import demo_truth
from lm_mixup.report.verdict import judge_run, training_command
from lm_mixup.stages import STAGES


def out() -> Console:
    """The console of results: stdout, whatever it is now (a test or a pipe may have taken its place)."""
    return Console(soft_wrap=True, highlight=False)


def show_results(results: Mapping[str, tuple[Manifest, bool]], run: RunDir) -> None:
    """Prints the closing table, what was rejected, and where the results lie.

    Args:
        results: The manifest of each stage, and whether it was skipped as done before.
        run: The run directory.
    """
    skipped = [name for name, (_, was_done) in results.items() if was_done]
    manifests = {name: manifest for name, (manifest, _) in results.items()}
    console = out()
    console.print(stage_table(manifests, skipped))
    mixture = manifests.get("mixture")
    if mixture is not None:
        counts = _mixture_table(mixture.metrics)
        if counts.row_count > 1:  # manifests of earlier versions have no such figures
            console.print()
            console.print(counts)
    for line in losses(manifests):
        say(f": {line}", lead="note", style="bold yellow")
    verdict = None
    if "distill" in manifests:
        config = (run.read_json("run.json") or {}).get("config") or {}
        done = {name: run.stage(name).manifest() for name in STAGES}
        verdict = judge_run(done, config, demo_truth(run, config))
    if verdict is not None:
        console.print(escape(verdict.summary))
        for warning in verdict.warnings:
            console.print(f"[bold red]warning[/]: {escape(warning)}")
        console.print(f"next: {escape(verdict.advice)}")
        if verdict.level != "bad" and "select" in manifests:
            console.print(f"  {escape(training_command(run.uri))}")
    where = {"select": "select/train.jsonl", "finetune": "finetune/model", "report": "report/index.html"}
    labels = {"select": "training set", "finetune": "fine-tuned", "report": "report"}
    for name, path in where.items():
        if name in manifests or name == "report":
            console.print(f"{labels[name] + ':':<14}{escape(run.uri)}/{path}")


def losses(manifests: Mapping[str, Manifest | None]) -> list[str]:
    """One line per stage that rejected rows or left them unrated: how many, and the most frequent reasons."""
    lines = [_unrated(name, manifest) for name, manifest in manifests.items() if manifest is not None]
    ignored = {name: int(m.metrics.get("files_ignored", 0)) for name, m in manifests.items() if m is not None}
    lines += [
        f"{name}: {count:,} files not read (hidden, or of a format that is not known)"
        for name, count in ignored.items()
        if count
    ]
    lines += [_unread(name, manifest) for name, manifest in manifests.items() if manifest is not None]
    lines = [line for line in lines if line]
    for name, manifest in manifests.items():
        if manifest is None or not manifest.rows_rejected:
            continue
        reasons = sorted(manifest.rejected_by_reason.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{reason} {count:,}" for reason, count in reasons[:3])
        more = f" and {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
        lines.append(
            f"{name}: {manifest.rows_rejected:,} of {manifest.rows_in:,} rejected ({listed}{more}); "
            f"see {name}/rejected/"
        )
    return lines


def _unread(name: str, manifest: Manifest) -> str:
    """The pool's columns that went into no row; empty where there are none."""
    prefix = "column_not_read/"
    found = {k.removeprefix(prefix): int(n) for k, n in manifest.metrics.items() if k.startswith(prefix)}
    columns = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{column} ({count:,} rows)" for column, count in columns[:5])
    more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
    return f"{name}: columns not read: {listed}{more}" if columns else ""


def _unrated(name: str, manifest: Manifest) -> str:
    """How many rows of a stage that rates have no rating, and why; empty where all have one."""
    unrated = int(manifest.metrics.get("unrated", 0))
    if not unrated:
        return ""
    codes = {key.removeprefix("unrated_"): int(n) for key, n in manifest.metrics.items() if "unrated_" in key}
    listed = ", ".join(f"{code} {n:,}" for code, n in sorted(codes.items(), key=lambda item: -item[1]))
    return f"{name}: {unrated:,} of {manifest.rows_in:,} rows not rated ({listed}); see column `error`"


def stage_table(manifests: Mapping[str, Manifest | None], skipped: Collection[str]) -> Table:
    """The stages with their rows and seconds."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("stage", "rows in", "out", "rejected", "left out", "seconds", ""):
        table.add_column(heading, justify="left" if heading in ("stage", "") else "right")
    for name, manifest in manifests.items():
        if manifest is None:
            table.add_row(name, "", "", "", "", "", "[dim]not done[/]")
            continue
        state = "[dim]done before[/]" if name in skipped else "[green]done[/]"
        left_out = sum(manifest.left_out.values())
        figures = (manifest.rows_in, manifest.rows_out, manifest.rows_rejected, left_out)
        table.add_row(name, *(f"{figure:,}" for figure in figures), f"{manifest.seconds:.1f}", state)
    return table


def _mixture_table(figures: Mapping[str, Any]) -> Table:
    """The rows of MIXTURE by split and by each column that was counted."""
    splits = splits_in(figures)
    table = Table(box=None, header_style="bold", pad_edge=False, title="MIXTURE", title_justify="left")
    for heading in ("", "", *splits, "all"):
        table.add_column(heading, justify="right" if heading else "left")
    _add_counts(table, "rows", "", list(splits.values()))
    for label, lines in tables_of(figures).items():
        for number, (value, counts) in enumerate(lines):
            _add_counts(table, "" if number else label, value, counts)
    return table


def _add_counts(table: Table, label: str, value: str, counts: list[int]) -> None:
    table.add_row(label, value, *(f"{count:,}" for count in (*counts, sum(counts))))
