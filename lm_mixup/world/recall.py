"""How much of what its reference says a distilled answer says too, checked fact by fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lm_mixup.backends.wording import Claim
from lm_mixup.rewards.format import answer_of
from lm_mixup.tasks import TaskType
from lm_mixup.world.facts import entities_by_name
from lm_mixup.world.truth import truth


@dataclass(frozen=True)
class Recall:
    """Facts of one answer against its reference.

    Attributes:
        parsed: Whether the completion follows the output format and its task's answer format.
        wanted: Claims of the reference.
        found: Those of them that the answer makes.
        other: Claims of the answer that the reference does not make: invented, or of the wrong entity.
    """

    parsed: bool
    wanted: int
    found: int
    other: int


def recall(task_type: TaskType, completion: str, reference: str, entities: Sequence[str]) -> Recall:
    """Compares the claims of a completion with those of its reference.

    Args:
        task_type: The task of both.
        completion: The policy's raw text, tags included. One that does not parse claims nothing.
        reference: The target's answer text.
        entities: Names of what the reference is about.
    """
    answer = answer_of(task_type, completion)
    wanted = _claims(reference, entities)
    made = _claims(answer, entities) if answer is not None else set()
    return Recall(answer is not None, len(wanted), len(wanted & made), len(made - wanted))


def _claims(text: str, entities: Sequence[str]) -> set[tuple[str, Claim]]:
    by_name = entities_by_name()
    return {(name, claim) for name in entities for claim in truth(text, by_name[name]).claimed}
