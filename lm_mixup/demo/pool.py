"""The demo pool: realistic instruction rows about entities that training has not seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import Any, Final

from lm_mixup.config import BuildConfig
from lm_mixup.core.draws import split_of
from lm_mixup.core.noise import add_noise
from lm_mixup.core.task_types import TASK_TYPES, Cs, Mcq, TaskType
from lm_mixup.demo.entities import Entity
from lm_mixup.demo.facts import load_entities
from lm_mixup.demo.low_quality_rows import Fault, low_quality_row
from lm_mixup.demo.offline_teacher import Draft, write_sample

GOOD_RATE: Final = 0.25
NOISE_RATE: Final = 0.1
FAULTY_RATE: Final = 0.015
_BUFFER = 2048
_FAULTS: tuple[Fault, ...] = ("incomplete", "incomplete", "register", "redundant", "vague")

Row = dict[str, Any]


def demo_pool(rows: int, seed: int, entities: Sequence[Entity] | None = None) -> Iterator[Row]:
    """Generates a pool: groups of two to six rows on one entity and task type, shuffled.

    About `GOOD_RATE` of the rows are good, `NOISE_RATE` carry typing errors, `FAULTY_RATE` have no completion
    or no prompt. What the others state about the world is true, or correctly marked as false.

    Args:
        entities: What the rows are about; default: the test split of the default config, which neither `nano`
            nor the demo's own training has seen.

    Yields:
        Rows with `source`, `prompt` and `completion`.
    """
    yield from _shuffled(_rows(rows, seed, entities or _held_out()), Random(f"pool-order/{seed}"))


def _held_out() -> list[Entity]:
    default = BuildConfig.model_validate({})
    shares = (default.grpo_fraction, default.test_fraction)
    return [e for e in load_entities() if split_of(e.name, default.split_seed, *shares) == "test"]


def _shuffled(rows: Iterable[Row], rng: Random) -> Iterator[Row]:
    """Shuffles within a buffer, so that memory is bounded whatever the number of rows."""
    buffer: list[Row] = []
    for row in rows:
        buffer.append(row)
        if len(buffer) > _BUFFER:
            at = rng.randrange(len(buffer))
            buffer[at], buffer[-1] = buffer[-1], buffer[at]
            yield buffer.pop()
    rng.shuffle(buffer)
    yield from buffer


def _rows(rows: int, seed: int, entities: Sequence[Entity]) -> Iterator[Row]:
    """Groups, one for each entity and task type before any has a second one."""
    made = cycle = 0
    while made < rows:
        cells = [(entity, task_type) for entity in entities for task_type in TASK_TYPES]
        Random(f"pool-cells/{seed}/{cycle}").shuffle(cells)
        for group, (entity, task_type) in enumerate(cells):
            rng = Random(f"pool/{seed}/{cycle}/{group}")
            for pair in _rows_about(entity, task_type, rows - made, rng):
                made += 1
                yield _with_missing_field(entity, task_type, pair, rng)
        cycle += 1


def _rows_about(entity: Entity, task_type: TaskType, most: int, rng: Random) -> Iterator[tuple[str, str]]:
    """Rows on one entity and task type. Most state one of the facts of one good sample, each another one.

    What is told twice in other words would make clusters of one fact, and of one fact nothing can be merged.
    """
    draft = write_sample(entity, task_type, load_entities(), rng)
    told = 0
    for _ in range(min(rng.randint(2, 6), most)):
        if told == len(draft.claims):
            return
        if rng.random() < GOOD_RATE:
            yield write_sample(entity, task_type, load_entities(), rng).pair
        else:
            yield _low_quality_pair(entity, task_type, draft, told, rng)
            told += 1


def _low_quality_pair(
    entity: Entity, task_type: TaskType, draft: Draft, at: int, rng: Random
) -> tuple[str, str]:
    fault = rng.choice(_FAULTS)
    claims = draft.claims[at : at + 1] if fault != "vague" else ()
    sample = draft.sample
    poor = low_quality_row(
        entity,
        task_type,
        claims,
        fault,
        rng,
        category=sample.category if isinstance(sample, Cs) else "",
        options=sample.options if isinstance(sample, Mcq) and claims and at == 0 else None,
    )
    if rng.random() >= NOISE_RATE:
        return poor.prompt, poor.completion
    held = [entity.name, *(claim.value for claim in claims)]
    held += poor.sample.options if isinstance(poor.sample, Mcq) else ()
    return add_noise(poor.prompt, held, rng), add_noise(poor.completion, held, rng)


def _with_missing_field(entity: Entity, task_type: TaskType, pair: tuple[str, str], rng: Random) -> Row:
    """The row of the pool; at `FAULTY_RATE` with an empty or missing field."""
    # Stated, since a text alone determines only true/false and multiple choice with certainty.
    row: Row = {
        "source": f"world-{entity.topic}",
        "task_type": task_type,
        "prompt": pair[0],
        "completion": pair[1],
    }
    if rng.random() < FAULTY_RATE:
        match rng.randrange(3):
            case 0:
                row["completion"] = ""
            case 1:
                del row["prompt"]
            case _:
                row["completion"] = None
    return row
