"""Runs as Hugging Face data sets: what is written loads with `datasets`, and nothing asks the Hub."""

import json
from collections import Counter

import pyarrow as pa
import pytest
import yaml
from datasets import get_dataset_config_names, load_dataset
from huggingface_hub import DatasetCard
from stage_rows import put_part
from typer.testing import CliRunner

from lm_mixup.augment.select import OUTPUT
from lm_mixup.cli import app
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, RunDir, StageDir, summarise
from lm_mixup.core.schemas import table
from lm_mixup.export import hub
from lm_mixup.export.card import cell, public_name
from lm_mixup.export.folder import export, write_subset
from lm_mixup.export.layouts import lay_out
from lm_mixup.mixture.assemble import SCHEMA
from lm_mixup.mixture.passages import SCHEMA as PASSAGES
from lm_mixup.mixture.read_samples import SCHEMA as SAMPLES

EVIL = "a | b\n# <script>alert(1)</script>"


def mixture_row(number, split):
    return {
        "id": f"m{number}",
        "task_type": ("qa", "tfq")[number % 2],
        "instruction": "Merge.",
        "inputs": [f"text {k}" for k in range(2 + number % 3)],
        "cot": "Because." if number % 4 else "",
        "output": f"Q: {number}?\nA: {number}",
        "score": 4 + number % 2,
        "method": "crosstopic" if number % 5 == 0 else "degrade",
        "noisy": number % 2 == 0,
        "source_ids": ["a", "b"],
        "split": split,
        "target_id": f"t{number}",
    }


def finish(stage, parts):
    stage.begin("f")
    for number, rows in enumerate(parts):
        put_part(stage, number, rows)
    stage.finish(summarise(stage, "f", {}, 1.0, Outcome()))


MIXED = [mixture_row(n, ("sft", "sft", "grpo", "test")[n % 4]) for n in range(60)]


@pytest.fixture
def run(tmp_path):
    made = RunDir(tmp_path / "run")
    build = {"passages": "/home/me/secret/wiki.jsonl", "max_inputs": 4, "noise_rate": 0.2}
    config = {"seed": 3, "build": build, "teacher": {"model": "Qwen/Qwen2.5-7B-Instruct"}, "rate": {}}
    made.write_json("run.json", {"config": config})
    passage = {"id": "p", "title": "T", "text": "x", "source": "/home/me/secret/wiki.jsonl"}
    given = [passage | {"license": "CC BY-SA"}, passage, passage | {"source": EVIL, "license": EVIL}]
    finish(made.stage("passages"), [table(given, PASSAGES)])
    finish(made.stage("generate"), [pa.table({"id": ["a"]})])
    finish(made.stage("mixture"), [table(MIXED[start : start + 25], SCHEMA) for start in (0, 25, 50)])
    chosen = [
        {
            "id": f"s{n}",
            "prompt": f"p{n}",
            "completion": f"c{n}",
            "origin": ("original", "distilled")[n % 2],
            "parent_ids": ["a"] if n % 2 else [],
            "task_type": "qa",
            "score": 5,
        }
        for n in range(10)
    ]
    finish(made.stage("select"), [table(chosen[:6], OUTPUT), table(chosen[6:], OUTPUT)])
    return made


def load(folder, tmp_path, *config):
    return load_dataset(str(folder), *config, cache_dir=str(tmp_path / "cache"))


def test_the_folder_loads_and_holds_every_row(run, tmp_path):
    folder = tmp_path / "out" / "mine"
    subsets = export(run, str(folder))
    assert [(s.name, dict(s.splits)) for s in subsets] == [
        ("mixture", {"sft": 30, "grpo": 15, "test": 15}),
        ("training_set", {"train": 10}),
    ]
    assert get_dataset_config_names(str(folder)) == ["mixture", "training_set"]
    training = load(folder, tmp_path)  # the default
    assert training["train"]["prompt"] == [f"p{n}" for n in range(10)]
    assert training["train"][1]["parent_ids"] == ["a"]
    mixture = load(folder, tmp_path, "mixture")
    assert set(mixture) == {"sft", "grpo", "test"}
    for split, rows in mixture.items():
        wanted = [row for row in MIXED if row["split"] == split]
        assert [{key: row[key] for key in wanted[0]} for row in rows] == wanted
    assert not [path for path in folder.parent.iterdir() if path != folder]


def test_one_part_at_a_time_and_files_of_bounded_length(run, tmp_path, monkeypatch):
    monkeypatch.setattr(StageDir, "read", lambda *_, **__: pytest.fail("the whole stage was read"))
    subset = write_subset("mixture", run.stage("mixture"), tmp_path / "files", rows_per_file=12)
    files = Counter(path.name.split("-")[0] for path in (tmp_path / "files").iterdir())
    assert files == {"sft": 3, "grpo": 2, "test": 2}
    loaded = load_dataset(
        "parquet", data_files=str(tmp_path / "files" / "sft-*.parquet"), cache_dir=str(tmp_path)
    )
    assert loaded["train"]["id"] == [row["id"] for row in MIXED if row["split"] == "sft"]
    assert subset.rows == 60


def test_the_card_counts_rows_and_says_how_they_were_made(run, tmp_path):
    export(run, str(tmp_path / "mine"), licence="cc-by-sa-4.0", title="My set")
    text = (tmp_path / "mine" / "README.md").read_text()
    card = DatasetCard(text)
    assert card.data.license == "cc-by-sa-4.0" and card.data.size_categories == ["n<1K"]
    assert card.data.pretty_name == "My set"
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines]
    assert ["qa", "15", "15", "0"] in cells and ["tfq", "15", "0", "15"] in cells
    assert ["crosstopic", "6", "3", "3"] in cells
    sizes = Counter(len(row["inputs"]) for row in MIXED if row["split"] == "sft")
    first = cells.index(["inputs", "sft", "grpo", "test"]) + 2  # behind the rule
    assert [line[:2] for line in cells[first : first + 3]] == [[str(n), str(sizes[n])] for n in (2, 3, 4)]
    reasoned = Counter(row["split"] for row in MIXED if row["cot"])
    of_reasoning = cells.index(["reasoning", "sft", "grpo", "test"])
    assert ["yes", *(str(reasoned[split]) for split in ("sft", "grpo", "test"))] in cells[of_reasoning:]
    assert ["distilled", "5"] in cells and ["original", "5"] in cells
    assert ["written by", "Qwen/Qwen2.5-7B-Instruct"] in cells
    assert ["wiki.jsonl", "CC BY-SA", "1"] in cells and ["wiki.jsonl", "not stated", "1"] in cells
    assert ["mixture", "60", "60", "0", "0"] in cells


def test_nothing_of_this_machine_and_no_markup_from_outside_is_in_the_card(run, tmp_path):
    export(run, str(tmp_path / "mine"))
    text = (tmp_path / "mine" / "README.md").read_text()
    assert "secret" not in text and str(tmp_path) not in text
    assert "<script>" not in text and "\n# <" not in text and "a | b" not in text
    assert yaml.safe_load(text.split("---")[1])["license"] == "unknown"
    assert public_name("s3://bucket/a/b.jsonl") == "b.jsonl" and public_name("hf:a/b") == "hf:a/b"
    assert cell("a|b\n`c`") == "a\\|b \\`c\\`"


def test_a_run_without_a_training_set_or_of_a_published_mixture(run, tmp_path):
    run.remove("select")
    run.write_json("run.json", {"config": {"build": {"mixture": "hf:dokiik/MIXTURE"}}})
    export(run, str(tmp_path / "mine"))
    assert set(load(tmp_path / "mine", tmp_path)) == {"sft", "grpo", "test"}
    text = (tmp_path / "mine" / "README.md").read_text()
    assert "hf:dokiik/MIXTURE" in text and "wiki.jsonl" not in text and "Split by entity" not in text


def test_the_card_of_rows_made_by_rule_names_the_good_rows_and_no_teacher(run, tmp_path):
    entries = {"facts": {"path": "/home/me/secret/facts.jsonl"}, "world": {"path": "world"}}
    run.write_json("run.json", {"config": {"build": {"samples_from": entries}, "teacher": {"model": "big"}}})
    run.remove("generate")
    row = {"id": "facts/1", "source": "wiki", "license": "CC BY-SA", "entry": "facts"}
    finish(run.stage("generate"), [table([row, row | {"license": None}], SAMPLES)])
    export(run, str(tmp_path / "mine"))
    text = (tmp_path / "mine" / "README.md").read_text()
    cells = [
        [c.strip() for c in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"
    ]
    assert ["MIXTURE from", "facts, world"] in cells
    assert ["written by", "rules, from good rows"] in cells and "big" not in text and "secret" not in text
    assert ["wiki", "CC BY-SA", "1"] in cells and ["wiki", "not stated", "1"] in cells


def test_a_folder_that_holds_something_is_left_alone(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="mine: is not empty; give a new folder"):
        export(run, str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    export(run, str(tmp_path / "empty"))
    with pytest.raises(InputError, match="neither mixture nor select is done"):
        export(RunDir(tmp_path / "none"), str(tmp_path / "never"))
    finish(RunDir(tmp_path / "bare").stage("mixture"), [table([], SCHEMA)])
    with pytest.raises(InputError, match="hold no rows"):
        export(RunDir(tmp_path / "bare"), str(tmp_path / "never"))
    assert not (tmp_path / "never").exists() and not list(tmp_path.glob(".*"))


# On the Hub


class FakeHub:
    """What `huggingface_hub.HfApi` is asked."""

    def __init__(self, private=True):
        self.asked, self.private = [], private

    def __call__(self, token):
        self.asked.append(("token", token))
        return self

    def create_repo(self, name, **options):
        self.asked.append(("create", name, options))
        return f"https://hub/datasets/{name}"

    def repo_info(self, name, repo_type):
        return self

    def upload_folder(self, *, folder_path, **options):
        self.asked.append(("upload", sorted(p.name for p in folder_path.rglob("*.*")), options))


def call(*arguments):
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_pushing_asks_for_a_token_of_the_environment_or_the_login(run, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "nobody-logged-in"))
    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", fake)
    code, output = call(run.uri, "--push-to-hub", "me/set", "--to", tmp_path / "x")
    assert code == 2 and "HF_TOKEN" in output and not (tmp_path / "x").exists() and not fake.asked
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code, output = call(run.uri, "--push-to-hub", "me/set")
    assert code == 0 and "https://hub/datasets/me/set" in output and "hf_secret" not in output
    assert fake.asked[:2] == [
        ("token", "hf_secret"),
        ("create", "me/set", {"repo_type": "dataset", "private": True, "exist_ok": True}),
    ]
    _, names, options = fake.asked[2]
    assert "README.md" in names and "train-00000.parquet" in names
    assert options["repo_id"] == "me/set" and options["repo_type"] == "dataset"
    assert options["delete_patterns"] == ["mixture/*.parquet", "training_set/*.parquet"]


def test_what_is_public_is_not_filled_unasked(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fake = FakeHub(private=False)
    monkeypatch.setattr("huggingface_hub.HfApi", fake)
    code, output = call(run.uri, "--push-to-hub", "me/set")
    assert code == 2 and "is public; add --public" in output
    assert [asked[0] for asked in fake.asked] == ["token", "create"]
    assert call(run.uri, "--push-to-hub", "me/set", "--public")[0] == 0

    def refuse(*_, **__):
        raise OSError("401: hf_secret is\nno good")

    monkeypatch.setattr(fake, "create_repo", refuse)
    with pytest.raises(InputError, match="me/set: 401: … is no good; check name, token and network"):
        hub.push(tmp_path, "me/set", public=True)


def test_the_command_writes_a_folder(run, tmp_path):
    code, output = call(run.uri, "--to", tmp_path / "mine", "--license", "mit")
    assert code == 0 and "mixture: sft 30, grpo 15, test 15" in output and "training_set: train 10" in output
    assert load(tmp_path / "mine", tmp_path)["train"].num_rows == 10
    assert call(run.uri)[0] == 2 and call(tmp_path / "nowhere", "--to", tmp_path / "y")[0] == 2
    assert json.dumps(DatasetCard.load(tmp_path / "mine" / "README.md").data.license) == '"mit"'


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("messages", {"messages": [{"role": "user", "content": "P"}, {"role": "assistant", "content": "C"}]}),
        ("alpaca", {"instruction": "P", "input": "", "output": "C"}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "P"}, {"from": "gpt", "value": "C"}]}),
    ],
)
def test_layouts_of_trainers(layout, expected):
    row = {"prompt": "P", "completion": "C", "id": "1", "origin": "distilled", "parent_ids": ["a"]}
    assert lay_out(row, layout) == expected | {"id": "1", "origin": "distilled"}


def test_a_layout_is_one_file_that_datasets_reads(run, tmp_path):
    command = ["export", run.uri, "--to", str(tmp_path / "out"), "--format", "messages"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "train.jsonl"]
    loaded = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == run.stage("select").manifest().rows_out > 0
    assert [turn["role"] for turn in loaded[0]["messages"]] == ["user", "assistant"]
    wrong = CliRunner().invoke(app, ["export", run.uri, "--to", str(tmp_path / "x"), "--format", "csv"])
    assert wrong.exit_code == 2
