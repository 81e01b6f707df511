"""Greedy answers of a finished distiller by Hugging Face's `generate`, where vLLM is not there."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm_mixup.config import ModelConfig
from lm_mixup.core.task_types import FormatError, parse_answer, parse_output
from lm_mixup.models.policy import encode_prompt, load_policy, load_tokenizer

_TOKENS = 400_000  # of prompts and answers in one batch: the key-value cache of a small model in a few GB


@dataclass(frozen=True)
class Answer:
    """What the model wrote for one row.

    Attributes:
        id: Of the row.
        task_type: Of the row, where it has one.
        text: What was written; None where time was up before.
        finished: Whether the end-of-sequence token was written.
        tokens: Tokens written.
        fault: Why the text is not in the output format or its task type's; empty where it is.
        output: The row's own target, where it has one.
    """

    id: str
    task_type: str | None
    text: str | None
    finished: bool
    tokens: int
    fault: str
    output: str | None


class Writer:
    """Loads a model folder once and writes answers in batches of like length."""

    def __init__(self, folder: Path, model: ModelConfig, max_new_tokens: int) -> None:
        import torch

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = load_tokenizer(folder, model)
        policy: Any = load_policy(folder, model)
        self._policy = policy.to(self._device).eval()
        self._max_new_tokens = max_new_tokens

    def write(self, rows: Sequence[Mapping[str, Any]], end: float) -> list[Answer]:
        """One answer for each row, in the rows' order.

        Args:
            rows: With `id`, `instruction` and `inputs`; `task_type` and `output` are passed on.
            end: When to stop, on the monotonic clock. What is not written by then has no text.
        """
        prompts = [encode_prompt(self._tokenizer, row["instruction"], row["inputs"]) for row in rows]
        answers: dict[int, Answer] = {}
        for batch in self._batches(prompts):
            left = end - time.monotonic()
            written = self._generate([prompts[i] for i in batch], left) if left > 0 else [None] * len(batch)
            for index, tokens in zip(batch, written, strict=True):
                answers[index] = self._answer(rows[index], tokens)
        return [answers[index] for index in range(len(rows))]

    def _batches(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Row numbers, rows of like length together, the shortest first."""
        batches: list[list[int]] = []
        for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
            tokens = len(prompts[index]) + self._max_new_tokens
            if not batches or tokens * (len(batches[-1]) + 1) > _TOKENS:
                batches.append([])
            batches[-1].append(index)
        return batches

    def _generate(self, prompts: Sequence[list[int]], seconds: float) -> list[list[int]]:
        """The tokens after each prompt, up to and with the end-of-sequence token."""
        import torch

        longest = max(map(len, prompts))
        end, pad = int(self._tokenizer.eos_token_id), int(self._tokenizer.pad_token_id)
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=self._device)
        seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        with torch.inference_mode():
            whole = self._policy.generate(
                input_ids=ids,
                attention_mask=seen,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=self._max_new_tokens,
                max_time=seconds,
                eos_token_id=end,
                pad_token_id=pad,
            )
        written = whole[:, longest:].tolist()
        return [row[: row.index(end) + 1] if end in row else row for row in written]

    def _answer(self, row: Mapping[str, Any], tokens: list[int] | None) -> Answer:
        task_type, output = row.get("task_type"), row.get("output")
        if tokens is None:
            return Answer(row["id"], task_type, None, False, 0, "no_time", output)
        finished = bool(tokens) and tokens[-1] == self._tokenizer.eos_token_id
        text = str(self._tokenizer.decode(tokens[:-1] if finished else tokens))
        fault = "" if finished else "cut"
        try:
            answer = parse_output(text).answer
            if task_type is not None:
                parse_answer(task_type, answer)
        except FormatError as error:
            fault = fault or str(error)
        return Answer(row["id"], task_type, text, finished, len(tokens), fault, output)


def save(answers: Sequence[Answer], path: Path) -> None:
    """Writes the answers as JSONL."""
    with path.open("w", encoding="utf-8") as file:
        for answer in answers:
            file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """How many rows, how many of them in format, what was wrong with the others, and mean tokens written."""
    written = [answer for answer in answers if answer.text is not None]
    faults = Counter(answer.fault for answer in answers if answer.fault)
    return {
        "rows": len(answers),
        "written": len(written),
        "in_format": sum(not answer.fault for answer in answers),
        "faults": dict(faults.most_common()),
        "mean_tokens": round(sum(answer.tokens for answer in written) / max(1, len(written)), 1),
    }
