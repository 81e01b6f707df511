"""The measure: support, coverage, binding, repetition and answering of a distilled pair, joined into one score.

Everything is a pure function of texts: no model, no corpus. `measure` is fast enough for a reward (about a
millisecond a pair of short texts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lm_mixup.core.task_types import TaskType
from lm_mixup.rewards.faithfulness.answering import answering
from lm_mixup.rewards.faithfulness.coverage import coverage, repetition
from lm_mixup.rewards.faithfulness.facts import Reading, read
from lm_mixup.rewards.faithfulness.polarity import polarity_faults
from lm_mixup.rewards.faithfulness.sources import (
    Source,
    SourceReading,
    options_of,
    picked_letter,
    read_source,
    statement_of,
    verdict_of,
)
from lm_mixup.rewards.faithfulness.support import (
    Pool,
    Span,
    is_held,
    misbound,
    pool_of,
    spans,
    unsupported_facts,
    unsupported_sentences,
    unsupported_words,
)

_FACT_WEIGHT: Final = 3
_FACT_FAULT: Final = 0.5
_WRONG_ANSWER: Final = 0.1
_FREE_WORDS: Final = 0.6
_COVERAGE_POWER: Final = 2


@dataclass(frozen=True)
class Faithfulness:
    """How faithful a distilled pair is to its sources; every number is in [0, 1], 1 is best.

    Attributes:
        score: All of it in one number: what a reward is made of. `measure` says how.
        fidelity: The same without coverage: how far what is said is borne out.
        support: Share of its facts (weight 3 each) and content words that the sources hold.
        coverage: Share of what the sources tell that it carries, each thing once.
        binding: Share of its supported facts that stand with what they stood with.
        repetition: Share of it that it has said before; 0 is best.
        answering: Whether the prompt asks what the completion tells and the other way round; 0 where the
            letter or the verdict is wrong.
        unsupported: The spans that the sources do not bear out, in `f"{prompt}\\n{completion}"`.
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

    fidelity = words · 0.5^f · a · (1 − repetition) and score = fidelity · coverage², where `words` is the share of content words that
    the sources hold, scaled so that `_FREE_WORDS` of other wording are free; f is the number of facts that are
    unsupported, misbound or negated against the sources; and a is `answering`, or 0.1 where a letter or a
    verdict is wrong.

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
    asked, told, answer = _parts(prompt, completion, task_type, readings)
    read_asked, read_told = read(asked.text), read(told.text)
    pool = pool_of(readings, (read_asked, read_told))
    found: list[Span] = []
    facts_total = words_total = words_missing = facts_missing = bound_wrong = negated = sentences_missing = 0
    bound = misbound((read_asked, read_told), pool)
    for piece, reading, wrong in ((asked, read_asked, bound[0]), (told, read_told, bound[1])):
        missing = unsupported_facts(reading, pool)
        flipped = polarity_faults(reading, readings)
        total, places = unsupported_words(reading, pool)
        invented = unsupported_sentences(reading, places, missing)
        facts_total += sum(f.certain for f in reading.facts)
        facts_missing += len({f.key for f in missing})
        bound_wrong += len({f.key for f in wrong})
        negated += len(flipped)
        sentences_missing += len(invented)
        words_total += total
        words_missing += len(places)
        for listed in (spans(reading.text, missing), spans(reading.text, wrong, "binding")):
            found += [piece.moved(span) for span in listed]
        found += [piece.moved(Span(a, b, reading.text[a:b], "polarity")) for a, b in flipped]
        found += [piece.moved(Span(a, b, reading.text[a:b], "statement")) for a, b in invented]
        found += [piece.moved(Span(a, b, reading.text[a:b], "word")) for a, b in places]
    covered = coverage((read_asked, read_told), readings, asked=task_type == "mcq")
    repeated, again = repetition(read_asked, read_told, readings)
    found += [told.moved(Span(a, b, told.text[a:b], "repeated")) for a, b in again]
    fit, unasked = (1.0, []) if task_type != "qa" else answering(read_asked, read_told, readings)
    found += [told.moved(Span(a, b, told.text[a:b], "unasked")) for a, b in unasked]
    if answer is not None and not answer:
        fit = 0.0
        start = len(prompt) + 1
        found.append(Span(start, start + len(completion), completion, "answer"))
    weight = _FACT_WEIGHT * facts_total + words_total
    support = 1 - (_FACT_WEIGHT * facts_missing + words_missing) / weight if weight else 1.0
    held = facts_total - facts_missing
    items = words_total + facts_total  # facts count: two other words beside four facts are little
    share = 1 - words_missing / items if items else 1.0
    faults = facts_missing + bound_wrong + negated + sentences_missing
    fidelity = (
        min(1.0, share / _FREE_WORDS) * _FACT_FAULT**faults * max(fit, _WRONG_ANSWER) * (1 - repeated)
        if weight
        else 0.0  # it says nothing
    )
    unique = sorted(set(found), key=lambda span: (span.start, span.end, span.kind))
    return Faithfulness(
        score=fidelity * covered**_COVERAGE_POWER,
        fidelity=fidelity,
        support=max(0.0, support),
        coverage=covered,
        binding=1 - min(held, bound_wrong) / held if held > 0 else 1.0,
        repetition=repeated,
        answering=fit,
        unsupported=tuple(unique),
    )


@dataclass(frozen=True)
class _Piece:
    """A part of the pair to be measured, and where it stands in `prompt\\ncompletion`."""

    text: str
    at: int

    def moved(self, span: Span) -> Span:
        return Span(span.start + self.at, span.end + self.at, span.text, span.kind)


def _parts(
    prompt: str, completion: str, task_type: TaskType, sources: Sequence[SourceReading]
) -> tuple[_Piece, _Piece, bool | None]:
    """What of a pair has to be borne out, and whether its closed answer is right (None: it has none)."""
    after = len(prompt) + 1
    whole = f"{prompt}\n{completion}"
    match task_type:
        case "mcq":
            stem, options = options_of(prompt)
            letter = picked_letter(completion, options)
            chosen = options.get(letter or "", "")
            right = bool(chosen) and _is_right_option(stem, chosen, options, sources)
            at = prompt.find(chosen) if chosen else 0
            return _Piece(stem, max(0, whole.find(stem))), _Piece(chosen, max(0, at)), right
        case "tfq":
            statement = statement_of(prompt) or prompt
            at = max(0, whole.find(statement))
            return _Piece("", 0), _Piece(statement, at), _is_right_verdict(statement, completion, sources)
        case "cs":
            return _Piece("", 0), _Piece(completion, after), None
        case "para":
            return _Piece("", 0), _Piece(completion, after), None
        case _:
            return _Piece(prompt, 0), _Piece(completion, after), None


def _is_right_option(
    stem: str, chosen: str, options: dict[str, str], sources: Sequence[SourceReading]
) -> bool:
    """Whether the chosen option is the one that the sources pick or hold.

    Where a source was asked the same question with options, its pick decides. Else the option has to be held,
    and no other option better.
    """
    fold = str.casefold
    picked = {fold(source.picked) for source in sources if source.picked and source.rejected}
    rejected = {fold(text) for source in sources for text in source.rejected} - picked
    offered = {fold(text) for text in options.values()}
    if picked & offered:
        return fold(chosen) in picked
    if fold(chosen) in rejected:
        return False
    pool = pool_of(sources)
    held = {text: _held_share(read(text), pool) for text in options.values()}
    return held[chosen] > 0 and held[chosen] >= max(held.values())


def _held_share(reading: Reading, pool: Pool) -> float:
    """The share of an option's facts and words that the sources hold; 0 with a fact that they do not."""
    if any(f.certain and not is_held(f, pool) for f in reading.facts):
        return 0.0
    total, missing = unsupported_words(reading, pool)
    if total == 0:
        return 1.0 if reading.facts else float(f" {' '.join(reading.keys)} " in pool.keys)
    return 1 - len(missing) / total


def _is_right_verdict(statement: str, completion: str, sources: Sequence[SourceReading]) -> bool:
    """Whether a verdict follows from the sources': false where a claim that they call false is part of it."""
    given = verdict_of(completion)
    if given is None:
        return False
    return given == expected_verdict(read(statement), sources)


def expected_verdict(statement: Reading, sources: Sequence[SourceReading]) -> bool:
    """The verdict on a statement that the sources' verdicts give.

    It is false where the statement holds what a source denies: all facts of that claim, or most of its words
    where it has none. Facts that only a denied claim holds make no statement true.
    """
    facts = {f.key for f in statement.facts}
    stems = {w.stem for w in statement.words}
    for source in sources:
        if not source.is_claim or source.verdict is not False:
            continue
        wanted = {f.key for f in source.told.facts if f.certain and f.kind in ("number", "name", "code")}
        words = {w.stem for w in source.told.words}
        if wanted and wanted <= facts:
            return False
        if not wanted and words and len(words & stems) >= 0.75 * len(words):
            return False
    return True
