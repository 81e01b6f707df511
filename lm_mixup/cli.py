"""The command line: verbs, options, and how a run's end is shown. No logic of the method lives here.

Results go to stdout; progress, notes and errors go to stderr.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm_mixup import __version__
from lm_mixup.core.errors import InputError, input_error_in, reason_of
from lm_mixup.core.progress import say

if TYPE_CHECKING:
    from lm_mixup.core.run_dir import RunDir

app = typer.Typer(
    help="Distil clusters of poor instruction rows into dense, correct ones (LM-mixup, arXiv 2510.20449).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[
    Path, typer.Argument(help="YAML file, or the name of a packaged recipe such as quickstart.")
]
RunDirOption = Annotated[str, typer.Option("--run-dir", help="Run directory: a local path or URI (s3://…).")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="key.path=value", help="Override a config value.")
]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")]
OnlyOption = Annotated[str | None, typer.Option("--only", metavar="STAGE", help="Run this stage alone.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Run the stages again, even if they are done.")]
MaxCostOption = Annotated[
    float | None, typer.Option("--max-cost", help="Stop when the judge has cost this much: rate.max_cost.")
]
DemoPolicyOption = Annotated[
    bool,
    typer.Option("--demo-policy", help="Allow the demonstration model on your own pool."),
]
TakeOverOption = Annotated[
    bool, typer.Option("--take-over", help="Take the run directory from a run that holds it; that one stops.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_RUN_DIR = "runs/default"


_VERBS = {
    "build": "Write MIXTURE: passages, high-quality samples, their poor variants, and the pairing of both.",
    "train": "Train the distiller on MIXTURE: SFT cold start, then GRPO.",
    "augment": "Turn a pool into a training set: rate, cluster the poor rows, distil, rate again, select.",
    "evaluate": "Fine-tune a model on the training set and measure it on benchmarks.",
    "run": "Run build, train and augment.",
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
        demo_policy: DemoPolicyOption = False,
        take_over: TakeOverOption = False,
    ) -> None:
        overrides = [*(set_ or ())]
        if max_cost is not None:
            overrides.append(f"rate.max_cost={max_cost}")
        if demo_policy:
            overrides.append("augment.demo_policy=true")
        _run(verb, config, run_dir, overrides, until, only, fresh, take_over)


for _verb, _summary in _VERBS.items():
    _add_verb(_verb, _summary)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lm-mixup {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="budget, ratio, mapping, rewards or estimators.")],
    config: ConfigPath,
    run_dir: Annotated[
        str | None, typer.Option("--run-dir", help="A local folder for all runs; default: runs/NAME.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Seeds of each arm.")] = 3,
    arms: Annotated[
        str | None, typer.Option("--arms", metavar="A,B", help="These arms alone; default: all.")
    ] = None,
    set_: SetOption = None,
    take_over: TakeOverOption = False,
) -> None:
    """Run the arms of an experiment under several seeds, and compare them in a table and a plot."""
    run_dir = run_dir or f"runs/{name}"
    with _Errors(run_dir):
        from lm_mixup.config.load import load_config
        from lm_mixup.experiments.grid import Grid, failed, run_experiment

        if "://" in run_dir:
            raise InputError(f"--run-dir {run_dir}: an experiment links files between runs; give a folder")
        chosen = tuple(arm.strip() for arm in arms.split(",")) if arms else ()
        resolved = load_config(config, set_ or ())
        grid = Grid(name, resolved, Path(run_dir), seeds, chosen, take_over, tuple(sys.argv))
        missing = failed(run_experiment(grid))
        typer.echo(f"{run_dir}/table.md")
        if missing:
            say(f": {len(missing)} runs; run the same command again to retry them", lead="failed")
    if missing:
        raise typer.Exit(1)


@app.command()
def status(run_dir: Annotated[str, typer.Argument(help="Run directory.")], json_: JsonOption = False) -> None:
    """Show which stages of a run are done."""
    with _Errors(None):
        from lm_mixup.config import Config
        from lm_mixup.report.terminal import out, stage_table
        from lm_mixup.stages import STAGES, stages_of

        opened = _open(run_dir)
        always = stages_of("run", Config())
        found = {name: opened.stage(name).manifest() for name in STAGES}
        shown = {name: manifest for name, manifest in found.items() if manifest or name in always}
        if json_:
            _print_json({name: manifest and asdict(manifest) for name, manifest in shown.items()})
        else:
            out().print(stage_table(shown, ()))


@app.command()
def report(run_dir: Annotated[str, typer.Argument(help="Run directory.")]) -> None:
    """Write the report of a run again, finished or not."""
    with _Errors(None):
        from lm_mixup.config import ReportConfig
        from lm_mixup.report.page import report as write

        opened = _open(run_dir)
        settings = (opened.read_json("run.json") or {}).get("config", {}).get("report", {})
        write(opened, ReportConfig.model_validate(settings))
        typer.echo(f"{opened.uri}/report/index.html")


@app.command()
def export(
    run_dir: Annotated[str, typer.Argument(help="Run directory.")],
    to: Annotated[str | None, typer.Option("--to", metavar="FOLDER", help="A new local folder.")] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="ORG/NAME",
            help="A data set on the Hub; token of `hf auth login` or HF_TOKEN.",
        ),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="LAYOUT",
            help="parquet: MIXTURE and training set; messages, alpaca, sharegpt: the training set as JSONL.",
        ),
    ] = "parquet",
    public: Annotated[bool, typer.Option("--public", help="Everyone may read it on the Hub.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="For the card, e.g. cc-by-4.0.")
    ] = None,
) -> None:
    """Write MIXTURE and training set as a Hugging Face data set with a card, or in a trainer's layout."""
    with _Errors(None):
        import tempfile

        from lm_mixup.export.folder import export as write
        from lm_mixup.export.hub import check_token, push
        from lm_mixup.export.layouts import LAYOUTS, export_layout

        if format_ not in ("parquet", *LAYOUTS):
            raise InputError(f"export: --format {format_} is not known; choose parquet, {', '.join(LAYOUTS)}")
        if to is None and push_to_hub is None:
            raise InputError("export: say where to, with --to FOLDER, --push-to-hub ORG/NAME or both")
        opened = _open(run_dir)
        if push_to_hub is not None:
            check_token()
        with tempfile.TemporaryDirectory(prefix="lm-mixup-export-") as scratch:
            folder = to or f"{scratch}/export"
            title = (push_to_hub or "").rpartition("/")[2] or None
            if format_ == "parquet":
                subsets = write(opened, folder, licence, title)
            else:
                layout = next(layout for layout in LAYOUTS if layout == format_)
                subsets = [export_layout(opened, folder, layout, licence, title)]
            for subset in subsets:
                splits = ", ".join(f"{split} {rows:,}" for split, rows in subset.splits.items())
                say(f"{subset.name}: {splits}")
            if to is not None:
                say(f"folder: {to}")
            if push_to_hub is not None:
                say(f"on the Hub: {push(Path(folder), push_to_hub, public=public)}")


@app.command()
def config(
    config: ConfigPath,
    set_: SetOption = None,
    json_: JsonOption = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of every config, for editors.")
    ] = False,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="KEY", help="Explain a key: type, value, meaning.")
    ] = None,
    diff: Annotated[
        Path | None, typer.Option("--diff", metavar="CONFIG", help="Print what differs from another config.")
    ] = None,
) -> None:
    """Print the resolved configuration as YAML."""
    with _Errors(None):
        import yaml

        from lm_mixup.config import Config
        from lm_mixup.config.load import differences, explain_key, load_config

        resolved = load_config(config, set_ or ())
        if schema:
            _print_json(Config.model_json_schema())
        elif explain is not None:
            typer.echo(explain_key(resolved, explain))
        elif diff is not None:
            for key, (ours, theirs) in differences(resolved, load_config(diff)).items():
                typer.echo(f"{key}: {ours!r} (there {theirs!r})")
        elif json_:
            _print_json(resolved.model_dump(mode="json"))
        else:
            value = resolved.model_dump(mode="json")
            sys.stdout.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


@app.command()
def doctor(
    config: Annotated[Path, typer.Argument(help="YAML file or packaged recipe.")] = Path("quickstart"),
    run_dir: RunDirOption = _RUN_DIR,
    set_: SetOption = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Examine every node of the Ray cluster in RAY_ADDRESS.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Say what a machine, or a cluster, lacks for a run, and what to do; exit status 1 if anything does."""
    with _Errors(None):
        from lm_mixup.config.load import load_config
        from lm_mixup.core.run_dir import RunDir
        from lm_mixup.doctor import examine

        checks = []
        for check in examine(load_config(config, set_ or ()), RunDir(run_dir), cluster=cluster):
            checks.append(check)
            if not json_:
                where = f" [{check.node}]" if check.node else ""
                typer.echo(f"{'ok    ' if check.ok else 'FAILED'} {check.name}{where}: {check.detail}")
        ok = all(check.ok for check in checks)
        if json_:
            _print_json({"ok": ok, "checks": [asdict(check) for check in checks]})
    if not ok:
        raise typer.Exit(1)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The config to write.")] = Path("lm-mixup.yaml"),
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="The packaged recipe to start from; asked for if left out."),
    ] = None,
    pool: Annotated[
        str | None, typer.Option("--pool", help="Your pool: JSONL, Parquet, hf:ORG/NAME.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", help="The distiller: folder or Hub name; empty: train one.")
    ] = None,
) -> None:
    """Write a commented config after three questions, or from the options alone."""
    with _Errors(None):
        from lm_mixup.config.load import load_config, recipes, set_in_yaml

        if file.exists():
            raise InputError(f"init: {file} exists; name another file")
        if sys.stdin.isatty():
            recipe = recipe or typer.prompt(f"Recipe ({', '.join(recipes())})", default="quickstart")
            pool = pool or typer.prompt("Your pool (a path, or `world` for the demo pool)", default="world")
            if policy is None:
                policy = typer.prompt("Distiller (folder or Hub name; empty: train one)", default="")
        recipe = recipe or "quickstart"
        if recipe not in recipes():
            raise InputError(f"init: {recipe} is no packaged recipe; recipes are {', '.join(recipes())}")
        values = {"augment.pool": pool, "augment.policy": policy}
        chosen = {key: value for key, value in values.items() if value}
        text = set_in_yaml(recipes()[recipe].read_text(encoding="utf-8"), chosen)
        file.write_text(text, encoding="utf-8")
        load_config(file)
        typer.echo(f"{file}: the recipe {recipe}; run it with `lm-mixup run {file}`")


def _run(
    verb: str,
    config: Path,
    run_dir: str,
    overrides: list[str],
    until: str | None,
    only: str | None,
    fresh: bool,
    take_over: bool,
) -> None:
    with _Errors(run_dir):
        from lm_mixup.config.load import load_config

        resolved = load_config(config, overrides)
        from lm_mixup.core.last_words import last_words
        from lm_mixup.core.run_dir import RunDir
        from lm_mixup.pipeline import Options, run_verb
        from lm_mixup.report.terminal import show_results

        options = Options(until, only, fresh, take_over, command=tuple(sys.argv))
        run = RunDir(run_dir)
        with last_words():
            results = run_verb(verb, resolved, run, options)
        show_results({name: (result.manifest, result.skipped) for name, result in results.items()}, run)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


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
            atexit.register(_ignore_further_signals)  # runs before what Ray registered earlier
            again = "; the same command again goes on where it stopped" if self._run_dir else ""
            say(again, lead="stopped")
            raise typer.Exit(1)
        if not isinstance(error, Exception):
            return
        theirs = input_error_in(error)
        if theirs is not None:
            say(f": {theirs}", lead="error")
            raise typer.Exit(2)
        say(f": {reason_of(error)}", lead="failed")
        self._keep_traceback(error)
        raise typer.Exit(1)

    def _keep_traceback(self, error: Exception) -> None:
        """Writes the traceback into the run directory, or to the terminal where that is not possible."""
        text = "".join(traceback.format_exception(error))
        if self._run_dir and Path(self._run_dir).is_dir():
            log = Path(self._run_dir) / "failure.log"
            try:
                log.write_text(text, encoding="utf-8")
            except OSError as problem:  # a full disk is often the very reason
                say(f"the details cannot be kept in {log} ({problem.strerror})")
                return
            say(f"details: {log}; the same command again goes on where it stopped")
        else:
            sys.stderr.write(text)


def _ignore_further_signals() -> None:
    """A second Ctrl-C while Ray shuts down would print the traceback of its exit handlers."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def main() -> None:
    """Entry point of `lm-mixup`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # GPU kernels that are compiled on first use call ninja by name; it lies beside this interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    app()


if __name__ == "__main__":
    main()
