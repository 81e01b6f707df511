"""The command line: verbs, options, and how a run's end is shown. No logic of the method lives here."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from lm_mixup.core.errors import InputError
from lm_mixup.core.progress import console, say

if TYPE_CHECKING:
    from lm_mixup.core.run_dir import Manifest, RunDir
    from lm_mixup.pipeline import StageResult

app = typer.Typer(
    help="Distil clusters of poor instruction rows into dense, correct ones (LM-mixup, arXiv 2510.20449).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path, typer.Argument(help="YAML configuration, e.g. configs/quickstart.yaml")]
RunDirOption = Annotated[str, typer.Option("--run-dir", help="Run directory: a local path or URI (s3://…).")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="key.path=value", help="Override a config value.")
]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")]
OnlyOption = Annotated[str | None, typer.Option("--only", metavar="STAGE", help="Run this stage alone.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Do the stages again, even if they are done.")]
MaxCostOption = Annotated[
    float | None, typer.Option("--max-cost", help="Stop when the judge has cost so much: rate.max_cost.")
]
_RUN_DIR = "runs/default"


_VERBS = {
    "build": "Write MIXTURE: passages, high-quality samples, their poor variants, and the pairing of both.",
    "train": "Train the distiller on MIXTURE: SFT cold start, then GRPO.",
    "augment": "Turn a pool into a training set: rate, cluster the poor rows, distil, rate again, select.",
    "evaluate": "Fine-tune a model on the training set (benchmarks are not available yet).",
    "run": "Do it all: build, train, augment.",
}


def _add_verb(verb: str, summary: str) -> None:
    """Adds a command that runs stages; all of them take the same options."""

    @app.command(verb, help=summary)
    def command(
        config: ConfigPath,
        run_dir: RunDirOption = _RUN_DIR,
        set_: SetOption = None,
        until: UntilOption = None,
        only: OnlyOption = None,
        fresh: FreshOption = False,
        max_cost: MaxCostOption = None,
    ) -> None:
        limit = [] if max_cost is None else [f"rate.max_cost={max_cost}"]
        _run(verb, config, run_dir, [*(set_ or ()), *limit], until, only, fresh)


for _verb, _summary in _VERBS.items():
    _add_verb(_verb, _summary)


@app.command()
def status(run_dir: Annotated[str, typer.Argument(help="Run directory.")]) -> None:
    """Show which stages of a run are done."""
    with _Errors(None):
        from lm_mixup.config import Config
        from lm_mixup.stages import STAGES, stages_of

        opened = _open(run_dir)
        found = {stage.name: opened.stage(stage.name).manifest() for stage in STAGES}
        always = stages_of("run", Config())
        console.print(
            _table({name: manifest for name, manifest in found.items() if manifest or name in always}, ())
        )


@app.command()
def report(run_dir: Annotated[str, typer.Argument(help="Run directory.")]) -> None:
    """Write the report of a run again, finished or not."""
    with _Errors(None):
        from lm_mixup.config import ReportConfig
        from lm_mixup.report.page import report as write

        opened = _open(run_dir)
        settings = (opened.read_json("run.json") or {}).get("config", {}).get("report", {})
        write(opened, ReportConfig.model_validate(settings))
        say(f"report: {escape(opened.uri)}/report/index.html")


@app.command()
def export(
    run_dir: Annotated[str, typer.Argument(help="Run directory.")],
    to: Annotated[str | None, typer.Option("--to", metavar="FOLDER", help="A new local folder.")] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="ORG/NAME", help="A data set on the Hub; token in HF_TOKEN."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Everyone may read it on the Hub.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="For the card, e.g. cc-by-4.0.")
    ] = None,
) -> None:
    """Write MIXTURE and training set as a Hugging Face data set: Parquet and a card."""
    with _Errors(None):
        import tempfile

        from lm_mixup.export.folder import export as write
        from lm_mixup.export.hub import check_token, push

        if to is None and push_to_hub is None:
            raise InputError("export: say where to, with --to FOLDER, --push-to-hub ORG/NAME or both")
        opened = _open(run_dir)
        if push_to_hub is not None:
            check_token()
        with tempfile.TemporaryDirectory(prefix="lm-mixup-export-") as scratch:
            folder = to or f"{scratch}/export"
            for subset in write(opened, folder, licence, (push_to_hub or "").rpartition("/")[2] or None):
                splits = ", ".join(f"{split} {rows:,}" for split, rows in subset.splits.items())
                say(f"{subset.name}: {splits}")
            if to is not None:
                say(f"folder: {escape(to)}")
            if push_to_hub is not None:
                say(f"on the Hub: {escape(push(Path(folder), push_to_hub, public=public))}")


@app.command()
def config(config: ConfigPath, set_: SetOption = None) -> None:
    """Print the resolved configuration as YAML."""
    with _Errors(None):
        import yaml

        from lm_mixup.config.load import load_config

        resolved = load_config(config, set_ or ())
        sys.stdout.write(
            yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        )


def _run(
    verb: str,
    config: Path,
    run_dir: str,
    overrides: list[str],
    until: str | None,
    only: str | None,
    fresh: bool,
) -> None:
    with _Errors(run_dir):
        from lm_mixup.config.load import load_config

        resolved = load_config(config, overrides)
        from lm_mixup.core.run_dir import RunDir
        from lm_mixup.pipeline import Options, run_verb

        options = Options(until=until, only=only, fresh=fresh, command=tuple(sys.argv))
        results = run_verb(verb, resolved, RunDir(run_dir), options)
        _show(results, run_dir)


def _show(results: dict[str, StageResult], run_dir: str) -> None:
    """The closing table, and where the outcome lies."""
    skipped = [name for name, result in results.items() if result.skipped]
    console.print(_table({name: result.manifest for name, result in results.items()}, skipped))
    census = _census(results["mixture"].manifest.metrics) if "mixture" in results else None
    if census is not None and census.row_count > 1:  # a manifest of before has no such figures
        console.print()
        console.print(census)
    if "select" in results:
        say(f"training set: {escape(run_dir)}/select/train.jsonl")
    if "finetune" in results:
        say(f"fine-tuned:   {escape(run_dir)}/finetune/model")
    say(f"report:       {escape(run_dir)}/report/index.html")


def _table(manifests: dict[str, Manifest | None], skipped: object) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("stage", "rows in", "out", "rejected", "left out", "seconds", ""):
        table.add_column(heading, justify="left" if heading in ("stage", "") else "right")
    for name, manifest in manifests.items():
        if manifest is None:
            table.add_row(name, "", "", "", "", "", "[dim]not done[/]")
            continue
        state = "[dim]done before[/]" if name in skipped else "[green]done[/]"  # type: ignore[operator]
        figures = (
            manifest.rows_in,
            manifest.rows_out,
            manifest.rows_rejected,
            sum(manifest.left_out.values()),
        )
        table.add_row(name, *(f"{figure:,}" for figure in figures), f"{manifest.seconds:.1f}", state)
    return table


def _census(figures: Mapping[str, Any]) -> Table:
    """The rows of MIXTURE by split and by each thing that tells them apart."""
    from lm_mixup.core.value_counts import splits_in, tables_of

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


def _open(run_dir: str) -> RunDir:
    from lm_mixup.core.run_dir import RunDir

    opened = RunDir(run_dir)
    if not opened.exists("run.json"):
        raise InputError(f"{run_dir}: not a run directory (no run.json in it)")
    return opened


class _Errors:
    """Turns what goes wrong into one line and an exit status: 2 for the user's to mend, 1 for the rest."""

    def __init__(self, run_dir: str | None) -> None:
        self._run_dir = run_dir

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):  # Ctrl-C, or SIGTERM
            again = "; the same command again goes on where it stopped" if self._run_dir else ""
            say(f"[bold red]stopped[/]{again}")
            raise typer.Exit(1)
        if not isinstance(error, Exception):
            return
        theirs = input_error_in(error)
        if theirs is not None:
            say(f"[bold red]error[/]: {escape(str(theirs))}")
            raise typer.Exit(2)
        say(f"[bold red]failed[/]: {escape(_first_line(error))}")
        if self._run_dir and Path(self._run_dir).is_dir():
            log = Path(self._run_dir) / "failure.log"
            log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            say(f"details: {escape(str(log))}; the same command again goes on where it stopped")
        else:
            traceback.print_exception(error)
        raise typer.Exit(1)


def input_error_in(error: BaseException | None) -> InputError | None:
    """The InputError behind an exception, also through Ray's wrapping of what was raised in a worker."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None)
        if isinstance(error, InputError) and not isinstance(cause, Exception):
            return error
        error = cause if isinstance(cause, Exception) else error.__cause__
    return None


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def main() -> None:
    """Entry point of `lm-mixup`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # GPU kernels that are compiled on first use call ninja by name; it lies beside this interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    app()


if __name__ == "__main__":
    main()
