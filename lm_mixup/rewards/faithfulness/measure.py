"""The measure: support, coverage, binding, repetition and answering of a distilled pair in one score.

Everything is a pure function of texts: no model, no corpus.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from lm_mixup.core.task_types import TaskType
from lm_mixup.rewards.faithfulness.answering import answering
from lm_mixup.rewards.faithfulness.closed_answers import is_right_option, is_right_verdict
from lm_mixup.rewards.faithfulness.coverage import coverage, lines_again, repetition, stutters
from lm_mixup.rewards.faithfulness.facts import Fact, Reading, read
from lm_mixup.rewards.faithfulness.numbered import Piece, numbered_parts, sources_of_parts
from lm_mixup.rewards.faithfulness.polarity import polarity_faults
from lm_mixup.rewards.faithfulness.sources import (
    Source,
    SourceReading,
    options_of,
    picked_letter,
    read_source,
    rest_of_verdict,
    statement_of,
    verdict_of,
)
from lm_mixup.rewards.faithfulness.support import (
    Pool,
    Span,
    misbound,
    pool_of,
    spans,
    unsupported_facts,
    unsupported_sentences,
    unsupported_words,
    with_prompts,
)

_FACT_WEIGHT: Final = 3
_FACT_FAULT: Final = 0.5
_WRONG_ANSWER: Final = 0.1
_FREE_WORDS: Final = 0.6
_COVERAGE_POWER: Final = 3
_REPETITION_POWER: Final = 3


@dataclass(frozen=True)
class Faithfulness:
    r"""How faithful a distilled pair is to its sources; every number is in [0, 1], 1 is best.

    Attributes:
        score: All of it in one number: what a reward is made of. `measure` says how.
        fidelity: The same without coverage: how far what is said is borne out.
        support: Share of its facts (weight 3 each) and content words that the sources hold.
        coverage: Share of what the sources tell that it carries, each thing once.
        binding: Share of its supported facts that stand with what they stood with.
        repetition: Share of it that it has said before; 0 is best. 1 where a word stutters.
        answering: Whether the prompt asks what the completion tells and the other way round; 0 where the
            letter or the verdict is wrong.
        unsupported: The spans that the sources do not bear out, in `f"{prompt}\n{completion}"`.
    """

    score: float
    fidelity: float
    support: float
    coverage: float
    binding: float
    repetition: float
    answering: float
    unsupported: tuple[Span, ...]


def measure(prompt: str, completion: str, sources: Sequence[Source], task_type: TaskType) -> Faithfulness:
    """Measures a distilled pair against the sources that it was distilled from.

    fidelity = words · 0.5^f · a · (1 − repetition)³, score = fidelity · coverage³. Here `words` is the share
    of content words that the sources hold, scaled so that `_FREE_WORDS` of other wording are free; f is the
    number of facts that are unsupported, misbound or negated against the sources, and of invented sentences,
    and one more where facts or lines are told again;
    a is `answering`, or 0.1 where a letter or a verdict is wrong.

    A pair that asks and answers in numbered parts is measured part by part, each against the sources whose
    question it is most like; a part that asks "true or false" or lists options is a closed answer. The
    fidelity of the whole is the product of the parts'.

    Args:
        prompt: What the pair asks (`task_types.to_pair`); a multiple-choice prompt with its options, a
            true-or-false prompt with its statement.
        completion: What it answers.
        sources: The inputs, one or more.
        task_type: Decides what must be supported: of multiple choice not the options that are not chosen.

    Raises:
        ValueError: There are no sources.
    """
    if not sources:
        raise ValueError("faithfulness is measured against one or more sources")
    readings = [read_source(source) for source in sources]
    parts = numbered_parts(prompt, completion) if task_type == "qa" else []
    if not parts:
        asked, told = Piece(prompt, 0), Piece(completion, len(prompt) + 1)
        found = [_measure_part(asked, told, readings, task_type)]
    else:
        shares = sources_of_parts([asked for asked, _ in parts], readings)
        found = [
            _measure_part(asked, told, mine, _type_of(asked.text, told.text))
            for (asked, told), mine in zip(parts, shares, strict=True)
        ]
    whole = (read(prompt), read(completion))
    covered = coverage(whole, readings, asked=task_type == "mcq")
    listed, told_once = _repeatable(prompt, completion, task_type)
    repeated, again = repetition(listed, told_once, readings, pool_of(readings, whole).topics)
    if parts:  # parts may agree in their wording, `1. True 2. True`
        repeated, again = max(part.repetition for part in found), []
    if stutters(f"{prompt}\n{completion}", [text for s in sources for text in (s.prompt, s.completion)]):
        repeated = 1.0
    fidelity = math.prod(part.fidelity for part in found) * (1 - repeated) ** _REPETITION_POWER
    lines = lines_again(completion, [source.completion for source in sources])
    fidelity *= _FACT_FAULT if again or lines else 1.0
    body = Piece(f"{prompt}\n{completion}", 0).part(told_once.text)
    told_again = [
        piece.moved(Span(a, b, piece.text[a:b], "repeated"))
        for piece, listed in ((body, again), (Piece(completion, len(prompt) + 1), lines))
        for a, b in listed
    ]
    unsupported = {*told_again, *(span for part in found for span in part.unsupported)}
    return Faithfulness(
        score=fidelity * covered**_COVERAGE_POWER,
        fidelity=fidelity,
        support=sum(part.support for part in found) / len(found),
        coverage=covered,
        binding=min(part.binding for part in found),
        repetition=repeated,
        answering=min(part.answering for part in found),
        unsupported=tuple(sorted(unsupported, key=lambda span: (span.start, span.end, span.kind))),
    )


def _type_of(prompt: str, completion: str) -> TaskType:
    """The task type of a numbered part."""
    if statement_of(prompt) and verdict_of(completion) is not None:
        return "tfq"
    return "mcq" if options_of(prompt)[1] else "qa"


def _repeatable(prompt: str, completion: str, task_type: TaskType) -> tuple[Reading, Reading]:
    """What may say things twice: the question and its answer; of closed answers the question tells."""
    match task_type:
        case "mcq":
            return read(""), read(options_of(prompt)[0])
        case "tfq":
            return read(""), read(statement_of(prompt) or prompt)
        case "qa":
            return read(prompt), read(completion)
        case _:
            return read(""), read(completion)


@dataclass
class _Tally:
    """What was counted in the texts of one part."""

    facts: int = 0
    words: int = 0
    missing_facts: int = 0
    missing_words: int = 0
    misbound: int = 0
    other_faults: int = 0
    spans: list[Span] = field(default_factory=list)

    def add(
        self,
        piece: Piece,
        reading: Reading,
        pool: Pool,
        wrong: Sequence[Fact],
        sources: Sequence[SourceReading],
    ) -> None:
        """Counts one text: `wrong` are its misbound facts."""
        missing = unsupported_facts(reading, pool)
        flipped = polarity_faults(reading, sources)
        total, places = unsupported_words(reading, pool)
        invented = unsupported_sentences(reading, places, missing, pool.topics)
        self.facts += sum(fact.certain for fact in reading.facts)
        self.words += total
        self.missing_facts += len({fact.key for fact in missing})
        self.missing_words += len(places)
        self.misbound += len({fact.key for fact in wrong})
        self.other_faults += len(flipped) + len(invented)
        for found in (spans(reading.text, missing), spans(reading.text, wrong, "binding")):
            self.spans += [piece.moved(span) for span in found]
        for kind, listed in (("polarity", flipped), ("statement", invented), ("word", places)):
            self.spans += [piece.moved(Span(a, b, reading.text[a:b], kind)) for a, b in listed]


def _measure_part(
    prompt: Piece, completion: Piece, sources: Sequence[SourceReading], task_type: TaskType
) -> Faithfulness:
    """A pair, or a numbered part of one, against its sources; without what is measured of the whole."""
    asked, told, answer = _parts(prompt, completion, task_type, sources)
    texts = (read(asked.text), read(told.text))
    pool = pool_of(sources, texts)
    question = _last_question(texts[0]) if task_type == "mcq" else ()
    wrong = misbound(texts, pool, question, asks=task_type == "qa")
    tally = _Tally()
    tally.add(asked, texts[0], with_prompts(pool, sources), wrong[0], sources)
    tally.add(told, texts[1], pool, wrong[1], sources)
    fit, unasked = answering(*texts, sources) if task_type == "qa" else (1.0, [])
    tally.spans += [told.moved(Span(a, b, told.text[a:b], "unasked")) for a, b in unasked]
    if answer is False:
        fit = 0.0
        tally.spans.append(completion.moved(Span(0, len(completion.text), completion.text, "answer")))
    weight = _FACT_WEIGHT * tally.facts + tally.words
    held = tally.facts - tally.missing_facts
    items = tally.words + tally.facts  # facts count: two other words beside four facts are little
    share = 1 - tally.missing_words / items if items else 1.0
    faults = tally.missing_facts + tally.misbound + tally.other_faults
    fidelity = min(1.0, share / _FREE_WORDS) * _FACT_FAULT**faults * max(fit, _WRONG_ANSWER)
    return Faithfulness(
        score=0.0,
        fidelity=fidelity if weight or answer else 0.0,  # what says nothing is no use
        support=1 - (_FACT_WEIGHT * tally.missing_facts + tally.missing_words) / weight if weight else 1.0,
        coverage=1.0,
        binding=1 - min(held, tally.misbound) / held if held > 0 else 1.0,
        repetition=repetition(texts[0], texts[1], sources, pool.topics)[0],
        answering=fit,
        unsupported=tuple(tally.spans),
    )


def _last_question(asked: Reading) -> set[str]:
    """The words and names of the last sentence of a question, which its options answer."""
    last = asked.clauses[-1][2] if asked.clauses else -1
    words = {word.stem for word in asked.words if asked.clauses[word.clause][2] == last}
    return words | {f.key for f in asked.facts if f.kind == "name" and asked.clauses[f.clause][2] == last}


def _parts(
    prompt: Piece, completion: Piece, task_type: TaskType, sources: Sequence[SourceReading]
) -> tuple[Piece, Piece, bool | None]:
    """What of a pair has to be borne out, and whether its closed answer is right (None: it has none)."""
    match task_type:
        case "mcq":
            stem, options = options_of(prompt.text)
            chosen = options.get(picked_letter(completion.text, options) or "", "")
            right = bool(chosen) and is_right_option(chosen, options, sources)
            told = completion if chosen and chosen in completion.text else prompt.part(chosen)
            return prompt.part(stem), told, right
        case "tfq":
            statement = statement_of(prompt.text) or prompt.text
            right = is_right_verdict(statement, completion.text, sources)
            return prompt.part(statement), completion.part(rest_of_verdict(completion.text)), right
        case "qa":
            return prompt, completion, None
        case _:
            return Piece("", prompt.at), completion, None
