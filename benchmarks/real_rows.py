"""MIXTURE-like rows of real text: good references, and poor inputs cut from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from lm_mixup.core.task_types import (
    LETTERS,
    Cs,
    Mcq,
    Para,
    Qa,
    Sample,
    TaskType,
    Tfq,
    to_pair,
    write_answer,
    write_input,
)
from lm_mixup.core.words import sentences

Row = dict[str, Any]


def real_rows(folder: Path, limit: int, seed: int = 0) -> list[Row]:
    """Rows of all five task types: `task_type`, `output`, `inputs`, and `poor`, a poor answer on the same.

    The inputs of a row are 2 to 4 poor rows, each with some of the reference's sentences, all of them
    together. Merged rows ask two questions and answer both.

    Args:
        folder: Holds `pairs_600.jsonl`, `passages_wiki.jsonl`, `mmlu_dev.jsonl` and `creak_dev.jsonl`.
        limit: Most rows of a task type.
        seed: Of all choices.
    """
    rng = Random(seed)
    made: list[Row] = []
    for rows in (
        _qa(folder, rng),
        _merged(folder, rng),
        _para(folder, rng),
        _cs(folder, rng),
        _mcq(folder, rng),
        _tfq(folder, rng),
    ):
        made += [row for row, _ in zip(rows, range(limit), strict=False)]
    return made


def shares(text: str, count: int, rng: Random) -> list[str]:
    """A text's sentences dealt out to poorer texts: each to one, some to others too; their order kept."""
    places = sentences(text)
    owners = [{rng.randrange(count)} | {j for j in range(count) if rng.random() < 0.3} for _ in places]
    gap = "\n" if "\n" in text else " "
    dealt = [
        gap.join(text[a:b] for (a, b), mine in zip(places, owners, strict=True) if number in mine)
        for number in range(count)
    ]
    return [text for text in dealt if text] or [text]


def _row(task_type: TaskType, sample: Sample, inputs: list[str], poor: Sample, group: str) -> Row:
    return {
        "task_type": task_type,
        "output": write_answer(sample),
        "inputs": inputs if len(inputs) > 1 else [*inputs, inputs[0]],
        "poor": write_answer(poor),
        "group": group,
    }


def _read(path: Path, rng: Random) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rng.shuffle(rows)
    return rows


def _pairs(folder: Path, rng: Random, most_words: int) -> list[dict[str, Any]]:
    """Pairs whose texts can stand in our formats, and hold words rather than code."""
    return [
        row
        for row in _read(folder / "pairs_600.jsonl", rng)
        if 8 <= len(row["high"].split()) <= most_words
        and "```" not in row["high"]
        and not any(
            mark in f"\n{row[key]}"
            for key in ("prompt", "high")
            for mark in ("\nQ:", "\nA:", "\nS:", "\nC:", "\nAnswer:")
        )
    ]


def _qa(folder: Path, rng: Random) -> Iterator[Row]:
    for row in _pairs(folder, rng, 300):
        inputs = [write_input(row["prompt"], text) for text in shares(row["high"], rng.randint(2, 4), rng)]
        yield _row("qa", Qa(row["prompt"], row["high"]), inputs, Qa(row["prompt"], row["low"]), row["id"])


def _merged(folder: Path, rng: Random) -> Iterator[Row]:
    rows = [row for row in _pairs(folder, rng, 120) if len(row["prompt"].split()) < 25]
    for one, two in zip(rows[::2], rows[1::2], strict=False):
        inputs = [
            write_input(row["prompt"], text)
            for row in (one, two)
            for text in shares(row["high"], rng.randint(1, 2), rng)
        ]
        question = f"{one['prompt']} {two['prompt']}"
        merged = _row(
            "qa", Qa(question, f"{one['high']}\n{two['high']}"), inputs, Qa(question, one["low"]), one["id"]
        )
        yield merged | {
            "parts": (
                write_answer(Qa(one["prompt"], one["high"])),
                write_answer(Qa(two["prompt"], two["high"])),
            )
        }


def _passages(folder: Path, rng: Random) -> Iterator[tuple[str, str, str]]:
    for row in _read(folder / "passages_wiki.jsonl", rng):
        if len(sentences(row["text"])) > 1:
            yield row["title"].replace("_", " "), row["text"], row["id"]


def _para(folder: Path, rng: Random) -> Iterator[Row]:
    for title, text, name in _passages(folder, rng):
        prompt = f"Write a paragraph about {title}."
        inputs = [write_input(prompt, part) for part in shares(text, rng.randint(2, 4), rng)]
        yield _row("para", Para(text), inputs, Para(" ".join(text.split()[:8])), name)


def _cs(folder: Path, rng: Random) -> Iterator[Row]:
    for title, text, name in _passages(folder, rng):
        places = sentences(text)[:2]
        parts = [text[a:b] for a, b in places]
        inputs = [write_input(f"Say something on {title}.", part) for part in parts]
        poor = Cs(title, " ".join(parts[0].split()[:6]))
        yield _row("cs", Cs(title, " ".join(parts)), inputs, poor, name)


def _mcq(folder: Path, rng: Random) -> Iterator[Row]:
    for row in _read(folder / "mmlu_dev.jsonl", rng):
        question = " ".join(row["question"].split())
        options = tuple(" ".join(text.split()) for text in row["choices"])
        if len(set(options)) < len(LETTERS) or not 5 <= len(question.split()) <= 80:
            continue
        sample = Mcq(question, options, LETTERS[row["answer"]])  # type: ignore[arg-type]
        prompt, completion = to_pair(sample, "")
        inputs = [write_input(prompt, completion), write_input(question, options[row["answer"]])]
        poor = Mcq(" ".join(question.split()[:4]) + "?", ("this", "that", "both", "none"), "A")
        yield _row("mcq", sample, inputs, poor, row["id"])


def _tfq(folder: Path, rng: Random) -> Iterator[Row]:
    rows = _read(folder / "creak_dev.jsonl", rng)
    for one, two in zip(rows[::2], rows[1::2], strict=False):
        verdicts = [row["label"] == "true" for row in (one, two)]
        inputs = [
            write_input(f"True or false? {row['sentence']}", str(verdict))
            for row, verdict in zip((one, two), verdicts, strict=True)
        ]
        sample = Tfq(f"{one['sentence']} {two['sentence']}", all(verdicts))
        poor = Tfq(" ".join(one["sentence"].split()[:4]) + ".", all(verdicts))
        yield _row("tfq", sample, inputs, poor, one["ex_id"])
