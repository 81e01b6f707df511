"""The demonstration world: a closed set of facts that text is generated from and checked against.

The rest of the package imports this module and no module below it (`tests/unit/test_layers.py`). Rows go in
and out as dicts, so no caller depends on how facts and sentences are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

from lm_mixup.core.claims import Claim
from lm_mixup.core.schemas import content_id
from lm_mixup.core.task_types import Cs, Fault, TaskType, parse_answer, task_type_of, write_answer
from lm_mixup.demo.fact_check import Recall, answer_is_true, recall
from lm_mixup.demo.facts import entities_by_name, load_entities
from lm_mixup.demo.invented_names import invent, replace_terms
from lm_mixup.demo.low_quality_rows import low_quality_row
from lm_mixup.demo.merge_samples import Bundle, Merged, merge, pair_up
from lm_mixup.demo.offline_teacher import describe
from lm_mixup.demo.offline_teacher import write_sample as _write_sample
from lm_mixup.demo.pool import demo_pool
from lm_mixup.demo.questions import QUESTIONS_TASK, write_questions

__all__ = [
    "QUESTIONS_TASK",
    "WORLD",
    "Bundle",
    "Merged",
    "Recall",
    "answer_is_true",
    "create_nano",
    "demo_pool",
    "has_entities",
    "invent",
    "merge",
    "pair_up",
    "passages",
    "recall",
    "replace_terms",
    "write_questions",
    "write_sample",
    "write_variant",
]

WORLD: Final = "world"
"""What `build.passages` and `augment.pool` call the demonstration world."""

Row = dict[str, Any]


def passages() -> Iterator[Row]:
    """One passage per entity: {id, title, text, source, entity, topic}."""
    for entity in load_entities():
        text = describe(entity)
        yield {
            "id": content_id(WORLD, entity.name, text),
            "title": entity.name,
            "text": text,
            "source": WORLD,
            "entity": entity.name,
            "topic": entity.topic,
        }


def write_sample(passage: Mapping[str, Any], task_type: TaskType, rng: Random, max_claims: int) -> Row:
    """Writes one high-quality sample about the entity of a passage.

    Samples of the split `test` use sentence templates that no training row uses.

    Returns:
        {task_type, prompt, completion, answer, cot, attributes, values}.
    """
    draft = _write_sample(
        entities_by_name()[passage["entity"]],
        task_type,
        load_entities(),
        rng,
        held_out=passage["split"] == "test",
        max_claims=max_claims,
    )
    prompt, completion = draft.pair
    return {
        "task_type": task_type_of(draft.sample),
        "prompt": prompt,
        "completion": completion,
        "answer": draft.answer,
        "cot": draft.cot,
        "attributes": [claim.attribute for claim in draft.claims],
        "values": [claim.value for claim in draft.claims],
    }


def write_variant(
    target: Mapping[str, Any],
    claims: Sequence[Claim],
    fault: Fault,
    rng: Random,
    *,
    options: tuple[str, str, str, str] | None,
    shown: Sequence[str],
) -> Row:
    """Writes one low-quality variant of a sample.

    Args:
        target: The sample: task_type, answer, entity, split.
        options: The options of the target's question, where the variant asks it.
        shown: The options that the variant shows; empty: all.

    Returns:
        {prompt, completion, answer}.
    """
    sample = parse_answer(target["task_type"], target["answer"])
    poor = low_quality_row(
        entities_by_name()[target["entity"]],
        target["task_type"],
        claims,
        fault,
        rng,
        category=sample.category if isinstance(sample, Cs) else "",
        options=options,
        shown=shown,
        held_out=target["split"] == "test",
    )
    return {"prompt": poor.prompt, "completion": poor.completion, "answer": write_answer(poor.sample)}


def has_entities(names: Iterable[str]) -> bool:
    """Whether all names are entities of the demonstration world."""
    return all(name in entities_by_name() for name in names)


def create_nano(folder: Path, texts: Iterable[str], seed: int) -> Path:
    """Writes the untrained `nano` model and a tokenizer trained on the texts; see `demo.nano`."""
    from lm_mixup.demo import nano

    return nano.create_nano(folder, texts, seed)
