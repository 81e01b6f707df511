"""The experiments: the question of each, its arms, and what is measured.

An arm is a set of config values and the stages that are run under them; every other stage is taken from the
base run, which all arms share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from lm_mixup.config import Config
from lm_mixup.core.draws import hash_of
from lm_mixup.core.run_dir import RunDir

Row = dict[str, str]
Stages = tuple[tuple[str, str], ...]  # (verb, stage)

_SELECT: Final[Stages] = (("augment", "select"),)
_PERPLEXITY: Final[Stages] = (("augment", "perplexity"), *_SELECT)
_INFLUENCE: Final[Stages] = (("augment", "influence"), *_SELECT)
_EVALUATE: Final[Stages] = (("evaluate", "finetune"), ("evaluate", "benchmark"))


@dataclass(frozen=True)
class Arm:
    """One column of the grid.

    Attributes:
        values: Dotted config keys and their values.
        stages: What is run, in order.
        train: Writes the rows that are fine-tuned on, of the base run, a config and a seed; None: those that
            `select` chooses.
        needs: A config key without which the arm is left out, unless it is asked for.
        measured: The model that is measured: the one that the arm trains, the one that it starts from, or
            that of a stage of the base run.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    stages: Stages = ()
    train: Callable[[RunDir, Config, int], Iterator[Row]] | None = None
    needs: str = ""
    measured: Literal["trained", "base", "sft", "grpo"] = "trained"


@dataclass(frozen=True)
class Experiment:
    """A question and the arms that answer it.

    Attributes:
        question: In a sentence.
        shared: (verb, last stage) of the base run.
        arms: By name, in the order of the table.
        reference: The arm that the others are compared with.
        measure: `benchmark`: the tasks of `benchmark.tasks`; `validation`: the last line of GRPO's
            validation; `mapping`: the outputs of the stage of that name.
        adopted: Stages that an arm may take from the base run.
    """

    question: str
    shared: tuple[tuple[str, str], ...]
    arms: Mapping[str, Arm]
    reference: str
    measure: Literal["benchmark", "validation", "mapping"]
    adopted: tuple[str, ...]


def _rows(base: RunDir) -> Iterator[dict[str, Any]]:
    columns = ["id", "prompt", "completion", "curated_score"]
    for table in base.stage("curate").iter_parts(columns):
        yield from table.to_pylist()


def whole_pool(base: RunDir, config: Config, seed: int) -> Iterator[Row]:
    """Every row of the curated pool."""
    for row in _rows(base):
        yield {name: row[name] for name in ("id", "prompt", "completion")}


def _of_low(share: float) -> Callable[[RunDir, Config, int], Iterator[Row]]:
    """A set of fixed size of which a share is rated low, the rest high; the size is that of the smaller kind.

    Low and high are as in `cluster.low_below`, where that is a score.
    """

    def draw(base: RunDir, config: Config, seed: int) -> Iterator[Row]:
        limit = config.cluster.low_below if isinstance(config.cluster.low_below, int) else 4
        kinds: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
        for row in _rows(base):
            if row["curated_score"] is not None:
                kinds[row["curated_score"] >= limit].append(row)
        size = min(map(len, kinds))
        low = round(share * size)
        for kind, count in zip(kinds, (low, size - low), strict=True):
            for row in sorted(kind, key=lambda row: hash_of(seed, row["id"]))[:count]:
                yield {name: row[name] for name in ("id", "prompt", "completion")}

    return draw


def _selected(stages: Stages = _SELECT, **values: Any) -> Arm:
    keys = {f"select.{name}": value for name, value in values.items()}
    return Arm(keys, (*stages, *_EVALUATE))


def _originals_by(method: str, stages: Stages = _SELECT, **values: Any) -> Arm:
    return _selected(stages, method=method, original_ratio=1.0, **values)


def _reward_arms() -> dict[str, Arm]:
    stages = (("train", "grpo"),)
    arms = {"all": Arm(stages=stages)}
    for name in ("quality", "alignment", "format", "faithfulness"):
        arms[f"without {name}"] = Arm({f"rewards.weights.{name}": 0.0}, stages)
    arms["faithfulness alone"] = Arm(
        {f"rewards.weights.{name}": 0.0 for name in ("quality", "alignment", "format")}, stages
    )
    return arms


def _estimator_arms() -> dict[str, Arm]:
    stages = (("train", "grpo"),)
    estimators = ("grpo", "dr_grpo", "rloo", "reinforce_plus_plus")
    return {
        "sft": Arm({"grpo.max_steps": 1}, stages, measured="base"),
        **{name: Arm({"grpo.advantage": name}, stages) for name in estimators},
    }


_MAP: Final[Stages] = (("evaluate", "mapping"),)
_SHARES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
_DATA: Final = ("ingest", "rate", "embed", "neighbors", "curate", "cluster", "distill", "rate_distilled")

EXPERIMENTS: Final[Mapping[str, Experiment]] = {
    "budget": Experiment(
        question="Does a few per cent of the pool, distilled and selected, do as well as the whole?",
        shared=(("augment", "rate_distilled"),),
        arms={
            "full": Arm(stages=_EVALUATE, train=whole_pool),
            "untrained": Arm(stages=(("evaluate", "benchmark"),), measured="base"),
            "random": _originals_by("random"),
            "longest": _originals_by("longest"),
            "perplexity": _originals_by("perplexity", _PERPLEXITY),
            "knn": _originals_by("knn_diversity"),
            "alpagasus": _originals_by("alpagasus"),
            "deita": _originals_by("deita"),
            "ds2": _originals_by("ds2"),
            "less": replace(_originals_by("less", _INFLUENCE), needs="select.less.target"),
            "originals": _selected(original_ratio=1.0),
            "distilled": _selected(original_ratio=0.0),
            "distilled 3 : originals 7": _selected(original_ratio=0.7),
            "distilled 5 : originals 5": _selected(original_ratio=0.5),
            "distilled 7 : originals 3": _selected(original_ratio=0.3),
        },
        reference="random",
        measure="benchmark",
        adopted=_DATA,
    ),
    "ratio": Experiment(
        question="How much low-quality data does a training set bear?",
        shared=(("augment", "curate"),),
        arms={f"{share:.0%} low": Arm(stages=_EVALUATE, train=_of_low(share)) for share in _SHARES},
        reference="0% low",
        measure="benchmark",
        adopted=(),
    ),
    "mapping": Experiment(
        question="Is the mapping from poor inputs to a good row accurate on held-out pairs?",
        shared=(("build", "mixture"), ("train", "grpo")),
        arms={
            "before": Arm(stages=_MAP, measured="base"),
            "sft": Arm(stages=_MAP, measured="sft"),
            "sft + grpo": Arm(stages=_MAP, measured="grpo"),
        },
        reference="before",
        measure="mapping",
        adopted=("mixture",),
    ),
    "rewards": Experiment(
        question="What does each reward do?",
        shared=(("build", "mixture"), ("train", "library")),
        arms=_reward_arms(),
        reference="all",
        measure="validation",
        adopted=("mixture", "sft", "library"),
    ),
    "estimators": Experiment(
        question="Is GRPO needed, and which advantage estimator serves best?",
        shared=(("build", "mixture"), ("train", "library")),
        arms=_estimator_arms(),
        reference="sft",
        measure="validation",
        adopted=("mixture", "sft", "library"),
    ),
}
