"""Reasons and other codes of a run in plain words, for readers who do not know the code."""

from __future__ import annotations

import re
from typing import Final

_EXACT: Final = {
    # ingest
    "duplicate": "the same text stands in an earlier row",
    "duplicate_id": "an earlier row has the same id",
    "near_duplicate": "nearly the same text stands in an earlier row",
    "contaminated": "its text is that of an evaluation item",
    "contaminated_embedding": "it is close to an evaluation item",
    "blank_line": "the line is empty",
    "empty_prompt": "the prompt is empty",
    "empty_completion": "the completion is empty",
    "not_json": "the line is not valid JSON",
    "bad_json": "the line is not valid JSON",
    "not_an_object": "the line is not a JSON object",
    "bad_id": "its id is not a text or number",
    "bad_character": "it holds characters that cannot be stored as text",
    "no_prompt": "it has no prompt",
    "no_completion": "it has no completion",
    "too_short": "it is too short",
    "too_long": "it is too long",
    "over_max_rows": "the limit on rows was reached",
    # cluster, select
    "high": "its score is good: it is not distilled",
    "high_score": "its score is good: it is not distilled",
    "no_kin": "no other poor row is similar enough",
    "kin_in_form_only": "similar rows say other things",
    "cluster_too_small": "too few similar rows for a cluster",
    "unrated": "it could not be rated",
    "over_budget": "the training set is full",
    "original_not_sampled": "it was not drawn among the originals that are compared",
    "original_duplicate": "a chosen row has the same text",
    # distill
    "cut_at_max_completion_length": "the answer did not end within the length limit",
    "answer_pattern": "the answer does not follow the format of its task type",
    "repeated_mark": "the answer holds a mark of its format twice",
    "text_outside_tags": "text stands outside the <think> and <answer> tags",
    "prompt_too_long": "its inputs do not fit in the prompt",
    "empty_answer": "the answer is empty",
    # rate_distilled
    "not_one_answer_per_question": "it does not give one answer to each of its numbered questions",
    # build
    "sample_left_out": "one of its samples was left out",
    "text_is_held_out": "its text is in a held-out split",
    "no_text": "it has no text",
    "no_input": "it has no inputs",
    "no_output": "it has no target",
    "too_few_inputs": "it has too few inputs",
    "too_many_inputs": "it has too many inputs",
    "no_partner": "no second sample fits it",
    "not_drawn": "it was not drawn",
}

_PATTERNS: Final = (
    (r"score_below_(.+)", "the judge gave it less than {0}"),
    (r"faithfulness_below_(.+)", "less than {0} of what it says is borne out by its inputs"),
    (r"coverage_below_(.+)", "it keeps less than {0} of what its inputs say"),
    (r"question_words_below_(.+)", "its questions keep less than {0} of the words of their inputs"),
    (r"missing_tag:(.+)", "the answer lacks {0}"),
    (r"(distilled|original)_over_budget", "the share of {0} rows is full"),
    (r"(distilled|original)_too_similar", "a chosen row says nearly the same ({0} rows)"),
    (r"(distilled|original)_duplicate", "a chosen row has the same text ({0} rows)"),
    (r"(distilled|original)_score_below_(.+)", "{0} row with a score below {1}"),
    (r"(distilled|original)_(.+)", "{0} row: {1}"),
)


def in_words(reason: str) -> str:
    """A reason in words; one that is not known here with its underscores taken out."""
    if reason in _EXACT:
        return _EXACT[reason]
    for pattern, words in _PATTERNS:
        if found := re.fullmatch(pattern, reason):
            return words.format(*(group.replace("_", " ") for group in found.groups()))
    return reason.replace("_", " ")
