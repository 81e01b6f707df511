"""What a teacher model and a judge answer in tests, by the schema that is asked for."""

from __future__ import annotations

import json
import re
from typing import Any

from chat_server import Seen

from lm_mixup.config import TeacherConfig

RATED = {"rarity": 5, "complexity": 5, "informativeness": 5}


def schema_of(seen: Seen) -> dict[str, Any]:
    return seen.body["response_format"]["json_schema"]["schema"]


def teach(seen: Seen) -> str:
    """Answers as an able teacher, and as a judge: samples are good, variants poor."""
    schema = schema_of(seen)
    if "rarity" in schema["properties"]:
        poor = "poorly put" in json.dumps(seen.row)
        return json.dumps(RATED | {"overall": 5 if poor else 8})
    if "variants" in schema["properties"]:
        return json.dumps({"variants": variants(seen)})
    if "first" in seen.row:
        return json.dumps(merged(seen))
    facts = [" ".join(seen.row["focus"].split()), f"{seen.row['title'].replace('_', ' ')} is the subject."]
    form = form_name(schema["properties"]["sample"])
    told = " ".join(facts)
    task = seen.body["messages"][0]["content"]
    take = found[1] if (found := re.search(r"Others have written (\d+)", task)) else "0"
    fields = fill(form, f"{told} Take {take}.", re.search(r"and that is ([A-D])", task))
    return json.dumps({"sample": fields, "cot": "The inputs share a subject.", "facts": facts})


def form_name(reference: dict[str, Any]) -> str:
    return reference["$ref"].rsplit("/", 1)[-1]


def fill(form: str, told: str, letter: re.Match[str] | None = None) -> dict[str, Any]:
    options = {f"option_{name}": f"Option {name}" for name in "abcd"}
    return {
        "QaForm": {"question": "What is known?", "answer": told},
        "McqForm": {"question": told, **options, "answer": letter[1] if letter else "A"},
        "TfqForm": {"statement": told, "answer": True},
        "CsForm": {"category": "Things", "statement": told},
        "ParaForm": {"prompt": "Write a paragraph.", "text": told},
    }[form]


def variants(seen: Seen) -> list[dict[str, Any]]:
    """One for each line of the plan, telling the facts that the line names."""
    items = schema_of(seen)["properties"]["variants"]
    assert items["minItems"] == items["maxItems"]
    form = form_name(items["items"])
    letter = re.search(r"Answer: ([A-D])$", seen.row["sample"])
    made = []
    for line in re.findall(r"^\d+\. .*$", seen.body["messages"][0]["content"], re.MULTILINE):
        numbers = re.search(r"Tells fact ([\d, ]+) and", line)
        told = [seen.row[f"fact {n}"] for n in numbers[1].split(", ")] if numbers else ["Nothing much."]
        row = fill(form, " ".join(["poorly put:", *told]), letter)
        if form == "McqForm" and "Asks the question" not in line:
            row |= {"option_a": "yes", "option_b": "no", "option_c": "maybe", "option_d": "both"}
        made.append(row)
    return made


def merged(seen: Seen) -> dict[str, Any]:
    """One sample with all facts of two; a multiple-choice question asks what the first asks."""
    told = " ".join(text for name, text in seen.row.items() if name.startswith("fact "))
    form = form_name(schema_of(seen)["properties"]["sample"])
    letter = re.search(r"Answer: ([A-D])$", seen.row["first"])
    return {"sample": fill(form, told) | ({"answer": letter[1]} if letter else {}), "cot": "Both are near."}


def teacher_config(url: str, **settings: Any) -> TeacherConfig:
    return TeacherConfig.model_validate(
        {"backend": "openai", "base_url": url, "model": "t", "max_retries": 1, **settings}
    )
