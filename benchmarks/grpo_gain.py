"""Whether GRPO learns: held-out reward, format and facts before and after it, over seeds.

    python benchmarks/grpo_gain.py [--config configs/quickstart.yaml] [--seeds 0 1 2] [--steps 24] [--flip]
        [--without-faithfulness]

Every seed is a whole run of its own: other samples, other SFT, other rollouts. With --flip each seed's GRPO
is run again from the same SFT model with the sign of the quality weight turned: if the reward is what moves
the policy, quality then falls. With --without-faithfulness it is run again with the weight of faithfulness at
0: what is gained in facts without it is not its doing. Answers are drawn as the config says
(`grpo.eval_temperature`), to prompts of the dev split, whose entities and wordings training never saw.
Intervals are Student's, 95%, over seeds. A killed benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import harness

from lm_mixup.config.load import load_config
from lm_mixup.core.task_types import TASK_TYPES

SHOWN = (
    "reward",
    "rewards/quality/mean",
    "rewards/alignment/mean",
    "rewards/format/mean",
    "rewards/faithfulness/mean",
    "format/compliance",
    "facts/recall",
    "facts/other",
)
_STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # by number of seeds


def arguments() -> argparse.Namespace:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="GRPO steps; default: the config's")
    parser.add_argument("--prompts", type=int, default=256, help="held-out prompts")
    parser.add_argument("--flip", action="store_true", help="also with the quality weight's sign turned")
    parser.add_argument(
        "--without-faithfulness", action="store_true", help="also with the weight of faithfulness at 0"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/grpo-gain"), help="where the runs are written"
    )
    parser.add_argument("--set", action="append", default=[], help="further overrides of the config")
    return parser.parse_args()


def train(args: argparse.Namespace, seed: int, run: Path, more: list[str]) -> dict[str, dict[str, float]]:
    """Builds and trains one run; the first and the last line of its validation."""
    overrides = [f"seed={seed}", f"grpo.eval_prompts={args.prompts}", *args.set, *more]
    if args.steps:
        overrides += [f"grpo.max_steps={args.steps}", f"grpo.eval_steps={args.steps}"]
    for verb, until in (("build", "mixture"), ("train", "grpo")):
        command = [sys.executable, "-m", "lm_mixup.cli", verb, args.config, "--run-dir", str(run)]
        command += ["--until", until, *(part for word in overrides for part in ("--set", word))]
        subprocess.run(command, check=True, stdout=sys.stderr)
    lines = (run / "grpo" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    return {"before": first, "after": last}


def flipped_weights(args: argparse.Namespace) -> list[str]:
    """The overrides that turn the sign of every quality weight."""
    rewards = load_config(args.config, args.set).rewards
    flipped = [f"rewards.weights.quality={-rewards.weights.quality}"]
    sets = {task: rewards.task_weights[task] for task in TASK_TYPES if task in rewards.task_weights}
    turned = {task: w.model_copy(update={"quality": -w.quality}).model_dump() for task, w in sets.items()}
    return [*flipped, f"rewards.task_weights={json.dumps(turned)}"] if turned else flipped


def without_faithfulness(args: argparse.Namespace) -> list[str]:
    """The overrides that set every weight of faithfulness to 0."""
    rewards = load_config(args.config, args.set).rewards
    sets = {
        task: weights.model_copy(update={"faithfulness": 0.0}).model_dump()
        for task, weights in rewards.task_weights.items()
    }
    overrides = ["rewards.weights.faithfulness=0.0"]
    return [*overrides, f"rewards.task_weights={json.dumps(sets)}"] if sets else overrides


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95% interval; of a single value, nan."""
    if len(values) < 2:
        return values[0], math.nan
    return statistics.mean(values), _STUDENT_95[len(values)] * statistics.stdev(values) / math.sqrt(
        len(values)
    )


def table(title: str, results: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Prints before, after and gain of each figure over the seeds."""
    print(f"{title}\n{'':26}{'before':>9}{'after':>9}{'gain':>9}{'±':>7}  of each seed")
    rows: dict[str, Any] = {}
    for key in SHOWN:
        gains = [result["after"][key] - result["before"][key] for result in results]
        gain, half = interval(gains)
        before, after = (statistics.mean(r[side][key] for r in results) for side in ("before", "after"))
        rows[key] = {"before": before, "after": after, "gain": gain, "interval": half, "gains": gains}
        each = "  ".join(f"{value:+.3f}" for value in gains)
        print(f"{key:26}{before:9.3f}{after:9.3f}{gain:+9.3f}{half:7.3f}  {each}")
    return rows


def main() -> None:
    args = arguments()
    if args.quick:
        args.seeds, args.steps = args.seeds[:1], min(args.steps or 8, 8)
    others = {
        "flipped": flipped_weights(args) if args.flip else None,
        "without_faithfulness": without_faithfulness(args) if args.without_faithfulness else None,
    }
    results: dict[str, list[dict[str, dict[str, float]]]] = {"reward": []}
    for seed in args.seeds:
        run = args.work / f"seed-{seed}"
        results["reward"].append(train(args, seed, run, []))
        for name, overrides in others.items():
            if overrides is None:
                continue
            other = args.work / f"seed-{seed}-{name.replace('_', '-')}"
            if not other.is_dir():
                left_out = shutil.ignore_patterns("grpo", "library", "report", "lease.json")
                shutil.copytree(run, other, ignore=left_out)
            results.setdefault(name, []).append(train(args, seed, other, overrides))
    titles = {
        "reward": f"GRPO over {len(args.seeds)} seeds",
        "flipped": "with the quality weight's sign turned",
        "without_faithfulness": "with the weight of faithfulness at 0",
    }
    found = {name: table(titles[name], of_seeds) for name, of_seeds in results.items()}
    if args.json:
        config = {"config": args.config, "seeds": args.seeds, "steps": args.steps, "prompts": args.prompts}
        config["set"] = args.set
        result = {"name": "grpo_gain", "machine": harness.machine(), "config": config, **found}
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
