"""Chaos: in each round a random worker, node or driver is killed in the middle of a stage.

    PYTHONPATH=.:tests/support python tests/chaos/rounds.py --rounds 20 --seed 0 --table TABLE.md

One undisturbed run on the same cluster is what every round must equal. A round copies that run, removes a
stage and what follows, starts the stage, kills, and gives the same command as often as it takes, three times
at most. The stage's rows, refusals and metrics must be those of the undisturbed run, every row accounted for.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ray_nodes import ROOT, RayNodes

from lm_mixup.config import Config
from lm_mixup.core.run_dir import RunDir
from lm_mixup.stages import stages_of
from lm_mixup.train.tracking import read_stage_metrics

TINY = ROOT / "tests" / "tiny.yaml"
STAGES = tuple(stages_of("run", Config()))
OPTIONS = (
    "--set",
    "data.rows_per_part=16",
    "--set",
    "grpo.rollout_actors=2",
    "--set",
    "grpo.mode=disaggregated",
)
LIMIT_S = 1200.0


@dataclass(frozen=True)
class Round:
    """How one round ended; `problem` is empty where it ended as it must."""

    stage: str
    victim: str
    tries: int
    seconds: float
    problem: str


def state_of(run: Path, stage: str) -> tuple:
    """All that a stage wrote, without what the clock decides."""
    opened = RunDir(run).stage(stage)
    timed = ("timing_s", "tokens_per_second")
    lines = read_stage_metrics(opened)
    return (
        opened.read().to_pylist(),
        opened.read(kind="rejected").to_pylist(),
        [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines],
    )


def problem_in(run: Path, calm: Path, stage: str) -> str:
    """Why a stage is not as in the undisturbed run; empty if it is."""
    manifest = RunDir(run).stage(stage).manifest()
    if manifest is None:
        return "not complete"
    if manifest.rows_used is None and manifest.rows_in != manifest.rows_out + manifest.rows_rejected:
        return f"{manifest.rows_in} rows in, {manifest.rows_out} out, {manifest.rows_rejected} refused"
    for name, ours, theirs in zip(
        ("rows", "refusals", "metrics"), state_of(run, stage), state_of(calm, stage), strict=True
    ):
        if ours != theirs:
            return f"other {name} than in the undisturbed run ({len(ours)} and {len(theirs)})"
    return ""


def has_begun(run: Path, stage: str) -> bool:
    return (run / stage / "started.json").exists()


def workers(nodes: RayNodes) -> list:
    """The processes that do the run's work, by name."""
    import psutil

    found = []
    for node in nodes.processes.values():
        for child in psutil.Process(node.pid).children(recursive=True):
            try:
                title = " ".join(child.cmdline())
            except psutil.Error:
                continue
            if title.startswith("ray::") and not title.startswith(("ray::IDLE", "ray::JobSupervisor")):
                found.append((title, child))
    return sorted(found, key=lambda pair: (pair[0], pair[1].pid))


def one_round(nodes: RayNodes, calm: Path, folder: Path, stage: str, kind: str, draw: random.Random) -> Round:
    run, log = folder / "run", folder / "log.txt"
    shutil.copytree(calm, run, ignore=shutil.ignore_patterns("lease.json"))
    for name in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(run / name, ignore_errors=True)
    command = ("run", str(TINY), "--run-dir", str(run), *OPTIONS, "--until", stage)
    started, victim = time.monotonic(), "none: it was done before"
    process = nodes.begin(log, *command)
    while process.poll() is None and not has_begun(run, stage):
        time.sleep(0.05)
    pause = draw.uniform(0.0, 6.0)
    until = time.monotonic() + pause
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    if process.poll() is None:
        if kind == "driver":
            process.send_signal(signal.SIGKILL)
            victim = "driver"
        elif kind == "node":
            name = draw.choice([name for name in sorted(nodes.processes) if name != "head"])
            nodes.kill(name)
            victim = name
            nodes.start(name)
        elif found := workers(nodes):
            title, child = draw.choice(found)
            child.kill()
            victim = title.removeprefix("ray::")[:60]
    tries, status = 1, process.wait(LIMIT_S)
    while status != 0 and tries < 3:
        tries += 1
        status = nodes.begin(log, *command).wait(LIMIT_S)
    problem = (
        problem_in(run, calm, stage) if status == 0 else f"exit status {status}: {log.read_text()[-300:]}"
    )
    return Round(stage, victim, tries, time.monotonic() - started, problem)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="Markdown, a line a round")
    parser.add_argument("--minutes", type=float, default=60.0, help="no round begins after so many")
    chosen = parser.parse_args()
    draw, begun = random.Random(chosen.seed), time.monotonic()
    order = [
        stage for _ in range(-(-chosen.rounds // len(STAGES))) for stage in draw.sample(STAGES, len(STAGES))
    ]
    lines = ["| round | stage | killed | commands | seconds | ended |", "|---|---|---|---|---|---|"]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch, RayNodes(2, Path(scratch)) as nodes:
        calm = Path(scratch) / "calm"
        ended = nodes.run("run", str(TINY), "--run-dir", str(calm), *OPTIONS, timeout=2 * LIMIT_S)
        if ended.returncode:
            sys.stderr.write(ended.stderr)
            return 1
        for number, stage in enumerate(order[: chosen.rounds], start=1):
            if time.monotonic() - begun > 60 * chosen.minutes:
                break
            folder = Path(scratch) / f"round{number}"
            folder.mkdir()
            kind = draw.choice(("worker", "worker", "node", "driver"))
            result = one_round(nodes, calm, folder, stage, kind, draw)
            failed += bool(result.problem)
            ended_as = result.problem.replace("\n", " ") or "equal"
            cells = (number, stage, result.victim, result.tries, f"{result.seconds:.0f}", ended_as)
            lines.append("| " + " | ".join(map(str, cells)) + " |")
            sys.stdout.write(lines[-1] + "\n")
            sys.stdout.flush()
            shutil.rmtree(folder, ignore_errors=True)
    text = f"Seed {chosen.seed}, {len(lines) - 2} rounds, {failed} failed.\n\n" + "\n".join(lines) + "\n"
    if chosen.table:
        chosen.table.write_text(text, encoding="utf-8")
    sys.stdout.write(text.splitlines()[0] + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
