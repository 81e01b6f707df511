"""The real lm-eval on nano: the digits of a direct call, a resumed stage, and what is missing is said."""

from __future__ import annotations

import json

import pytest
import yaml

from lm_mixup.config import BenchmarkConfig, ModelConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir
from lm_mixup.evaluate import harness
from lm_mixup.evaluate.benchmark import benchmark
from lm_mixup.evaluate.harness import check_tasks, open_tasks

pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra `eval`)")
SUBJECTS = ("anatomy", "astronomy")
MODEL = ModelConfig(path="nano", dtype="float32")


def questions(subject: str, count: int) -> list[dict]:
    return [
        {
            "subject": subject,
            "question": f"Which of these is number {number} of {subject}?",
            "choices": [f"{word} {number}" for word in ("iron", "Peru", "Mars", "Lima")],
            "answer": number % 4,
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder in the layout of MMLU's files."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("test", 9), ("dev", 2)):
        rows = [row for subject in SUBJECTS for row in questions(subject, count)]
        (folder / f"mmlu_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def manager():
    """lm-eval's index of thousands of task files, read once."""
    return open_tasks(None)


@pytest.fixture(autouse=True)
def indexed(monkeypatch, manager):
    """In this process the index is not read again; Ray's actors read their own."""
    monkeypatch.setattr(
        harness, "open_tasks", lambda path, **_: manager if path is None else open_tasks(path)
    )


def direct(data, folder, subject: str) -> dict:
    """What lm-eval alone says of MMLU's protocol, written out by hand over the same rows."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from lm_mixup.models.resolve import model_folder

    for split, count in (("test", 9), ("dev", 2)):
        lines = (json.dumps(row) + "\n" for row in questions(subject, count))
        (folder / f"{split}.jsonl").write_text("".join(lines))
    letters = "\n".join(f"{letter}. {{{{choices[{n}]}}}}" for n, letter in enumerate("ABCD"))
    task = {
        "task": "by_hand",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {split: str(folder / f"{split}.jsonl") for split in ("test", "dev")}
        },
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "output_type": "multiple_choice",
        "description": f"The following are multiple choice questions (with answers) about {subject}.\n\n",
        "doc_to_text": "{{question.strip()}}\n" + letters + "\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "by_hand.yaml").write_text(yaml.safe_dump(task))
    found = simple_evaluate(
        model=HFLM(pretrained=model_folder("nano"), dtype="float32", device="cpu", batch_size=8),
        tasks=["by_hand"],
        num_fewshot=2,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )
    return found["results"]["by_hand"]


def test_the_stage_gives_lm_evals_digits_and_a_resumed_one_runs_no_task_twice(ray_session, data, tmp_path):
    out = RunDir(tmp_path / "run").stage("benchmark")
    tasks = [f"mmlu_{subject}" for subject in SUBJECTS]
    config = BenchmarkConfig(
        tasks=tasks, model="nano", data_dir=str(data), num_fewshot=dict.fromkeys(tasks, 2), num_cpus=1
    )
    check_tasks(config)
    benchmark(out, config, MODEL, seed=0)
    results = out.run.read_json("benchmark/results.json")["results"]
    own = {row["task"]: row for row in results}
    expected = direct(data, tmp_path, "anatomy")
    assert own["mmlu_anatomy"]["value"] == expected["acc,none"]
    assert own["mmlu_anatomy"]["stderr"] == expected["acc_stderr,none"]
    assert [own[task]["questions"] for task in tasks] == [9, 9]
    samples = out.run.listing("benchmark/samples")
    assert len(samples) == 2
    lines = out.run.read_bytes(f"benchmark/samples/{samples[0]}").decode().splitlines()
    assert len(lines) == 9 and "Which of these is number 0" in lines[0]
    table = out.run.read_bytes("benchmark/table.md")
    # As killed before its second task: the first keeps its part, whatever stands in it.
    part = out.parts()[0]
    marked = out.read_part(part)
    marked = marked.set_column(marked.schema.get_field_index("value"), "value", [[0.125] * marked.num_rows])
    out._write_table(part, marked)
    out.run.remove("benchmark/receipts/part-000001.json")
    out.run.remove("benchmark/table.md")
    benchmark(out, config, MODEL, seed=0)
    again = {row["task"]: row for row in out.run.read_json("benchmark/results.json")["results"]}
    assert again["mmlu_anatomy"]["value"] == 0.125
    assert again["mmlu_astronomy"] == own["mmlu_astronomy"]
    assert out.run.read_bytes("benchmark/table.md").splitlines()[3] == table.splitlines()[3]


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"tasks": ["mmlu_anatomi"]}, r"lm-eval has no task mmlu_anatomi; did you mean mmlu_anatomy"),
        ({"tasks": ["mmlu_anatomy"], "data_dir": "HERE/nowhere"}, r"nowhere: holds none of mmlu_test.jsonl"),
        (
            {"tasks": ["gsm8k_cot"], "data_dir": "HERE"},
            r"gsm8k_cot needs gsm8k_test.jsonl, which is not there",
        ),
        (
            {"tasks": ["gsm8k_cot"]},
            r"reads openai/gsm8k from the Hugging Face Hub, .* set benchmark.data_dir to a folder with gsm8k",
        ),
        (
            {"tasks": ["tydiqa_goldp_en"], "data_dir": "HERE"},
            r"tydiqa_goldp_en reads .* which does not answer",
        ),
        ({"tasks": ["mine.yaml"]}, r"benchmark.tasks: there is no file mine.yaml"),
        ({"tasks": ["mmlu"], "include_path": "HERE/no"}, r"include_path: there is no folder"),
        (
            {"tasks": ["mmlu_anatomy"], "num_fewshot": {"mmlo": 5}, "data_dir": "HERE"},
            r"num_fewshot: lm-eval has no task mmlo; did you mean mmlu",
        ),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(monkeypatch, data, section, says):
    from datasets import config as datasets_config

    monkeypatch.setattr(datasets_config, "HF_HUB_OFFLINE", True)
    named = {
        key: value.replace("HERE", str(data)) if isinstance(value, str) else value
        for key, value in section.items()
    }
    with pytest.raises(InputError, match=says):
        check_tasks(BenchmarkConfig.model_validate(named))


def test_a_group_stands_for_its_tasks(manager):
    assert len(harness.leaves_of(manager, "mmlu")) == 57
    assert len(harness.leaves_of(manager, "bbh_cot_fewshot")) == 27
    for name in ("mmlu", "bbh_cot_fewshot", "gsm8k_cot", "truthfulqa_mc1", "truthfulqa_mc2"):
        for _, definition in harness.leaves_of(manager, name).values():
            assert harness.files_for(definition), name  # all that the local files are for
