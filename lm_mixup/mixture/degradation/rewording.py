"""Poor wording by rule: hasty questions and careless answers that tell what the good ones tell, or less."""

from __future__ import annotations

import re
from random import Random
from typing import Final

import regex

from lm_mixup.mixture.degradation.pieces import Piece, sentences

_GREETINGS: Final = (
    "hey",
    "hi",
    "hello",
    "pls",
    "please",
    "ok so",
    "um",
    "quick question:",
    "so",
    "question:",
)
_ENDINGS: Final = ("pls", "please", "thanks", "thx", "??", "anyone?", "asap", "...", "")
_HEDGES: Final = (
    "I think ", "well, ", "basically ", "I guess ", "so ", "as far as I know ", "hmm, ", "ok, ", "maybe ",
    "not sure but ", "like I said, ",
)  # fmt: skip
_TRAILS: Final = (" etc", " and so on", " or something like that", " I think", "...", " ok?", " you know")
_VAGUE: Final = (
    "It depends.", "There are many things to say about that.", "Not sure, look it up.", "Hard to say.",
    "It is complicated.", "Some things are known about it.", "I would have to check.", "Lots of stuff.",
    "You can find that online.", "Good question!", "Well, it is what it is.",
)  # fmt: skip
_REASON: Final = re.compile(
    r",?\s+(?:because|since|so that|in order to|due to|which means|as a result of|thanks to)\s.+?(?=[.!?]?$)",
    re.IGNORECASE,
)
_JOINTS: Final = ("for", "in", "with", "from", "and", "about", "that", "of")
# The first that fits is taken, so the longer beginnings stand in front.
_HEADS: Final = (
    ("What are some", "List some"),
    ("What is known about", "Tell me something about"),
    ("What can you say about", "What do you know about"),
    ("What should I know about", "Tell me about"),
    ("Give me some facts about", "What are facts about"),
    ("Write a few sentences about", "Write something about"),
    ("Tell me about", "What do you know about"),
    ("True or false?", "Is this true?"),
    ("How can I", "How do I"),
    ("How do I", "What is the way to"),
    ("What is the", "Name the"),
    ("What is", "Explain what is"),
    ("Who was", "Tell me who was"),
    ("Who is", "Tell me who is"),
    ("Why", "For what reason"),
    ("Name", "List"),
    ("List", "Name"),
    ("Give", "Provide"),
    ("Describe", "Tell me about"),
    ("Explain", "Describe"),
    ("Identify", "Find"),
    ("Classify", "Sort"),
    ("Write", "Compose"),
    ("Generate", "Make"),
    ("Create", "Make up"),
)
_SHORTEST: Final = 12  # characters of what is left of a sentence that lost its reason
_CODE: Final = re.compile(r"[{}<>=;\\]|```|\t")


def vague_answer(rng: Random) -> str:
    """An answer that tells nothing."""
    return rng.choice(_VAGUE)


def casual_question(prompt: str, rng: Random) -> str:
    """The question as one types it in haste: every content word and all further lines stay."""
    first, line_end, rest = prompt.partition("\n")
    if _CODE.search(first):
        return prompt
    if rng.random() < 0.6:
        first = _lowered(first)
    if rng.random() < 0.6:
        first = re.sub(r"[.?!]+$", "", first)
    if rng.random() < 0.35:
        first = f"{rng.choice(_GREETINGS)} {_lowered(first)}"
    if rng.random() < 0.3:
        first = f"{re.sub(r'[.?!]+$', '', first)} {rng.choice(_ENDINGS)}".strip()
    return f"{first}{line_end}{rest}"


def paraphrased(prompt: str) -> str:
    """The question with another beginning of the same meaning; as it is where none is known."""
    for head, other in _HEADS:
        if prompt.startswith(f"{head} "):
            return f"{other}{prompt[len(head) :]}"
    return prompt


def part_of_question(prompt: str, rng: Random) -> str:
    """Part of the question: one of its sentences, or its words up to a comma or preposition; in haste."""
    first, _, rest = prompt.partition("\n")
    spoken = sentences(first) or [first]
    if len(spoken) > 1:
        return casual_question(rng.choice(spoken), rng)
    words = first.rstrip(".?!").split()
    cuts = [
        i
        for i, word in enumerate(words)
        if i >= max(3, len(words) // 3) and (words[i - 1].endswith(",") or word in _JOINTS)
    ]
    if cuts and not rest:
        return casual_question(" ".join(words[: rng.choice(cuts)]).rstrip(","), rng)
    return casual_question(prompt, rng)


def without_reason(piece: Piece) -> Piece | None:
    """The piece without the reason that it gives; None if it gives none, or too little would be left."""
    shorter = _REASON.sub("", piece.text)
    if shorter == piece.text or len(shorter) < _SHORTEST:
        return None
    return Piece(shorter, piece.gap, piece.mark, piece.head)


def cut_off(text: str, rng: Random) -> str:
    """The text without its last words, ending in the middle of a sentence."""
    words = list(re.finditer(r"\S+", text))
    if len(words) < 4:
        return text
    end = words[rng.randint(len(words) // 2, len(words) - 2)].end()
    return text[:end].rstrip(".,;:!?")


def careless(text: str, rng: Random) -> str:
    """The answer in careless words: hedged, trailing off, its first letter small, its full stop missing."""
    if _CODE.search(text):
        return text
    way = rng.random()
    if way < 0.35:
        return f"{rng.choice(_HEDGES)}{_lowered(text)}"
    if way < 0.55 and "\n" not in text:
        return f"{re.sub(r'[.!]$', '', text)}{rng.choice(_TRAILS)}"
    if way < 0.8:
        return _lowered(text)
    return re.sub(r"[.!]$", "", text)


def _lowered(text: str) -> str:
    """The text with a small first letter, unless its first word is a name or an abbreviation of capitals."""
    word = regex.match(r"[^\W\d_]+", text)
    if word is None or (len(word[0]) > 1 and word[0][1:] != word[0][1:].lower()) or word[0] == "I":
        return text
    return text[0].lower() + text[1:]
