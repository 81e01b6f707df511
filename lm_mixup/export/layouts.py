"""The training set in the layouts that trainers read: one JSONL file, and a card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir
from lm_mixup.core.value_counts import count_values
from lm_mixup.export.card import Subset, write_card
from lm_mixup.export.folder import TRAINING_SET, new_folder

Layout = Literal["messages", "alpaca", "sharegpt"]
LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)
_FILE: Final = "train.jsonl"


def export_layout(
    run: RunDir, folder: str, layout: Layout, licence: str | None = None, title: str | None = None
) -> Subset:
    """Writes a finished training set as `train.jsonl` and a card into a new folder.

    Args:
        run: The run.
        folder: A local folder that is not there yet, or is empty.
        layout: `messages` (TRL, Axolotl, LLaMA-Factory), `alpaca` or `sharegpt`.
        licence: Identifier for the card's front matter.
        title: The card's title; default: the folder's name.

    Returns:
        What was written, with its figures.

    Raises:
        InputError: The stage `select` is not done or has no rows, or the folder holds something.
    """
    select = run.stage("select")
    if select.manifest() is None:
        raise InputError(f"{run.uri}: select is not done; run `lm-mixup augment` first")
    subset = Subset(TRAINING_SET, files=_FILE)
    with new_folder(folder) as (scratch, name):
        with (scratch / _FILE).open("w", encoding="utf-8") as file:
            for part in select.iter_parts():
                subset.figures.update(count_values(part))
                for row in part.to_pylist():
                    file.write(json.dumps(lay_out(row, layout), ensure_ascii=False) + "\n")
        if not subset.rows:
            raise InputError(f"{run.uri}: select holds no rows; there is nothing to export")
        write_card(scratch / "README.md", run, [subset], title or name, licence)
    return subset


def lay_out(row: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """A row of the training set in a layout; its id and origin come along."""
    kept = {name: row[name] for name in ("id", "origin")}
    prompt, completion = row["prompt"], row["completion"]
    match layout:
        case "messages":
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            return {"messages": turns} | kept
        case "alpaca":
            return {"instruction": prompt, "input": "", "output": completion} | kept
        case "sharegpt":
            turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": completion}]
            return {"conversations": turns} | kept
