"""Closed answers: whether a letter or a verdict is the one that the sources give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from lm_mixup.rewards.faithfulness.facts import Reading, read
from lm_mixup.rewards.faithfulness.sources import SourceReading, verdict_of
from lm_mixup.rewards.faithfulness.support import Pool, is_held, pool_of, unsupported_words

_MOST: Final = 0.75
_SAME_OPTIONS: Final = 2


def is_right_option(chosen: str, options: dict[str, str], sources: Sequence[SourceReading]) -> bool:
    """Whether the chosen option is the one that the sources pick or hold.

    Where a source was asked the same question with options, its pick decides. Else the option has to be held,
    and no other option better.
    """
    fold = str.casefold
    offered = {fold(text) for text in options.values()}
    asked = [source for source in sources if source.picked and source.rejected]
    picked = {fold(source.picked) for source in asked if source.picked}
    rejected = {fold(text) for source in sources for text in source.rejected} - picked
    # Its other options tell the question where the pick itself was miscopied ("Vanuatu" of "Vanuatu vatu").
    others = (len({fold(text) for text in source.rejected} & offered) for source in asked)
    if picked & offered or any(count >= _SAME_OPTIONS for count in others):
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


def is_right_verdict(statement: str, completion: str, sources: Sequence[SourceReading]) -> bool:
    """Whether a verdict follows from the sources': false where a claim that they call false is part of it."""
    given = verdict_of(completion)
    if given is None:
        return False
    return given == expected_verdict(read(statement), sources)


def expected_verdict(statement: Reading, sources: Sequence[SourceReading]) -> bool:
    """The verdict on a statement that the sources' verdicts give.

    It is false where the statement holds what a source denies: all numbers of that claim and half of its
    names (typing errors make names of words), or most of its words where it has neither. Names that other
    claims have too do not count: they are what all of them are about, and not what is denied.
    """
    keys = {f.key for f in statement.facts} | set(statement.keys)
    stems = {w.stem for w in statement.words}
    named = [{f.key for f in source.claim.facts if f.certain and f.kind == "name"} for source in sources]
    recurring = Counter(key for keys_of_claim in named for key in keys_of_claim)
    for source, own in zip(sources, named, strict=True):
        if source.verdict is not False:
            continue
        exact = {f.key for f in source.claim.facts if f.certain and f.kind in ("number", "code")}
        names = {key for key in own if recurring[key] == 1}
        words = {w.stem for w in source.claim.words}
        if exact or names:
            if exact <= keys and len(names & keys) >= len(names) / 2:
                return False
        elif words and len(words & stems) >= _MOST * len(words):
            return False
    return True
