"""Reading a published MIXTURE, on folders laid out like it: nothing here asks the Hub."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.augment.reading import hf_datasets
from lm_mixup.chat.judge import make_judge
from lm_mixup.config import BuildConfig, Config, DataConfig, RateConfig
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir
from lm_mixup.core.schemas import MIXTURE
from lm_mixup.core.task_types import INSTRUCTIONS, parse_answer
from lm_mixup.mixture.published import list_files, mixture_folder, published, task_type_named
from lm_mixup.mixture.published_text import Unreadable, canonical, split_inputs
from lm_mixup.mixture.rate_mixture import draw, rate_part, texts_of
from lm_mixup.stages import all_stages, required_inputs, stages_of

TARGETS = {
    "qa": "Q: What is row {n}?\nA: It is number {n}.",
    "mcq": "Q: Which row?\nA) {n}\nB) none\nC) all\nD) both\nAnswer: A",
    "tfq": "Row {n} is here.\nAnswer: True",
    "cs": "C: Rows\nS: Row {n} is one.",
    "para": "Row {n} is a row. It stands here.",
}
POOR = {
    "qa": "Q: row {n}{k}?\n A: maybe",
    "mcq": "Q: row {n}{k}?\nA) {n}\nB) none\nC) all\nD) both\nAnswer: A",
    "tfq": "row {n}{k} here\nAnswer: True",
    "cs": "C: rows\nS: row {n}{k}",
    "para": "row {n}{k}",
}


def row(kind, n, /, count=3, joint="\n\n", **more):
    poor = joint.join(POOR[kind].format(n=n, k="abcdefghijklmnopqrstuvwxyz"[k]) for k in range(count))
    return {
        "id": n,
        "input": poor,
        "output": TARGETS[kind].format(n=n),
        "cot": f"They speak of {n}.",
        "instruction": "Merge these.",
        **more,
    }


def write(path, rows, jsonl=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(r) + "\n" for r in rows) if jsonl else json.dumps(rows, indent=1)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """One like it: every task type to train on and to test, half of the files JSONL."""
    root = tmp_path / "MIXTURE"
    for place, kind in enumerate(TARGETS):
        first = 100 * place
        train, test = [row(kind, first + n) for n in range(20)], [row(kind, first + n) for n in range(20, 24)]
        write(root / "data_sft" / kind / f"merged_train_{kind}_noisy.json", train, jsonl=place % 2 == 1)
        write(root / "data_sft" / kind / f"merged_test_{kind}_noisy.json", test)
    grpo = [
        row(kind, 1000 + 100 * place + n, task_type=f"{kind}_mixup")
        for place, kind in enumerate(TARGETS)
        for n in range(10)
    ]
    write(root / "data_grpo" / "train.json", grpo)
    write(root / "data_grpo" / "test.json", [row("qa", 2000, task_type="qa_mixup")])
    (root / "README.md").write_text("# MIXTURE")
    (root / "data_sft" / "notes.txt").write_text("x")
    return root


def read(folder, tmp_path, rows_per_part=2048, name="run", **build):
    out = RunDir(tmp_path / name).stage("mixture")
    outcome = published(
        out,
        BuildConfig(mixture=str(folder), **{"dev_fraction": 0.0, **build}),
        DataConfig(rows_per_part=rows_per_part),
    )
    return out, outcome


def test_a_part_of_the_sft_targets_is_held_for_dev_whatever_the_parts(folder, tmp_path):
    out, _ = read(folder, tmp_path, dev_fraction=0.3)
    again, _ = read(folder, tmp_path, rows_per_part=7, name="again", dev_fraction=0.3)
    rows, none = out.read().to_pylist(), read(folder, tmp_path, name="none")[0].read().to_pylist()
    assert {r["id"]: r["split"] for r in rows} == {r["id"]: r["split"] for r in again.read().to_pylist()}
    assert {r["id"] for r in rows} == {r["id"] for r in none}
    moved = {r["id"] for r in rows if r["split"] == "dev"}
    assert 0.1 < len(moved) / sum(r["split"] == "sft" for r in none) < 0.5
    assert {r["split"] for r in none if r["id"] in moved} == {"sft"}
    targets = {split: {r["output"] for r in rows if r["split"] == split} for split in ("sft", "dev")}
    assert not targets["sft"] & targets["dev"]


def test_every_row_becomes_a_mixture_row_of_its_split(folder, tmp_path):
    out, outcome = read(folder, tmp_path, rows_per_part=32)
    rows = out.read().to_pylist()
    assert Counter((r["split"], r["task_type"]) for r in rows) == Counter(
        {("sft", kind): 20 for kind in TARGETS}
        | {("grpo", kind): 10 for kind in TARGETS}
        | {("test", kind): 4 + (kind == "qa") for kind in TARGETS}
    )
    assert out.read(kind="rejected").num_rows == 0
    assert outcome.metrics == {"files": 12, "files_ignored": 1}
    assert len({r["id"] for r in rows}) == len(rows)
    assert out.read().schema.names[: len(MIXTURE)] == MIXTURE.names
    for r in rows:
        assert len(r["inputs"]) == 3 and all(text.strip() == text for text in r["inputs"])
        assert parse_answer(r["task_type"], r["output"])
        assert r["instruction"] == INSTRUCTIONS[r["task_type"]]  # as distillation will ask
        assert r["published_instruction"] == "Merge these." and r["published_id"].isdigit()
        # What the files do not say is not made up.
        assert r["score"] is None and r["method"] is None and r["noisy"] is None and r["entity"] is None
    figures = Counter()
    for receipt in out.receipts().values():
        figures.update(receipt.metrics)
    assert figures["rows/sft/task_type/tfq"] == 20
    assert figures["inputs/marked"] == 137 and figures["inputs/blank_lines"] == 34


def test_bad_rows_are_refused_one_by_one(tmp_path):
    good = row("qa", 1)
    bad = {
        "not_an_object": ["a text"],
        "no_input": [good | {"input": " "}, {k: v for k, v in good.items() if k != "input"}],
        "no_output": [good | {"output": None}, good | {"output": ""}],
        "wrong_type": [good | {"output": 3}, good | {"cot": ["x"]}, good | {"input": {"a": 1}}],
        "bad_character": [good | {"input": "Q: a\ud800\n A: b\n\nQ: c\n A: d"}, good | {"cot": "a\0b"}],
        "one_input": [good | {"input": "Q: alone?\n A: yes"}, good | {"input": ["Q: alone?\n A: yes"]}],
        "more_than_20_inputs": [row("qa", 1, count=21)],
        "tags_in_target": [
            good | {"output": f"<answer>{good['output']}</answer>"},
            good | {"cot": "</think>"},
        ],
        "output_answer_pattern": [good | {"output": "No marks at all."}],
        "output_repeated_mark": [good | {"output": "Q: a?\nA: b\nQ: c?\nA: d"}],
        "duplicate": [good],
    }
    listed = [good, *(r for rows in bad.values() for r in rows), row("qa", 2)]
    for jsonl in (False, True):
        root = tmp_path / f"jsonl-{jsonl}"
        write(root / "data_sft" / "qa" / "train.json", listed, jsonl=jsonl)
        if jsonl:
            with (root / "data_sft" / "qa" / "train.json").open("ab") as file:
                file.write(b"{broken\n\xff\xfe\n\n")
        out, _ = read(root, tmp_path, rows_per_part=4, name=f"run-{jsonl}")
        assert [r["published_id"] for r in out.read().to_pylist()] == ["1", "2"]
        rejected = out.read(kind="rejected").to_pylist()
        reasons = Counter(r["reason"] for r in rejected)
        lines = Counter({"bad_json": 1, "not_utf8": 1, "blank_line": 1}) if jsonl else Counter()
        assert reasons == Counter({reason: len(rows) for reason, rows in bad.items()}) + lines
        receipts = out.receipts().values()
        assert sum(r.rows_in for r in receipts) == 2 + len(rejected) == len(listed) + lines.total()
        assert rejected[0]["where"] == "data_sft/qa/train.json:2" and "a text" in rejected[0]["raw"]


def test_a_row_without_a_task_type_is_refused_and_its_own_goes_before_the_folders(tmp_path):
    rows = [row("qa", 1), row("cs", 2, task_type="cs_mixup"), row("para", 3, task_type="paragraph")]
    write(tmp_path / "M" / "data_sft" / "merged_all_30.json", rows)
    write(tmp_path / "M" / "data_sft" / "qa" / "train.json", [row("tfq", 4, task_type="tfq"), row("qa", 5)])
    out, _ = read(tmp_path / "M", tmp_path)
    assert [r["task_type"] for r in out.read().to_pylist()] == ["cs", "para", "tfq", "qa"]
    assert out.read(kind="rejected")["reason"].to_pylist() == ["unknown_task_type"]
    assert [task_type_named(n) for n in ("QA_mixup", "paragraph", "merge", None, 3)] == [
        "qa",
        "para",
        None,
        None,
        None,
    ]


def test_no_target_is_in_two_splits_and_test_rows_stay(folder, tmp_path):
    held = row("qa", 20)  # a test row of the SFT half
    write(folder / "data_sft" / "qa" / "more_train.json", [held | {"input": row("qa", 77)["input"]}, held])
    write(folder / "data_sft" / "cs" / "more.json", [row("cs", 1300, count=4)])  # a target for GRPO
    write(folder / "data_grpo" / "train_2.json", [held | {"task_type": "qa_mixup"}])
    out, _ = read(folder, tmp_path)
    rejected = out.read(kind="rejected").to_pylist()
    assert Counter((r["reason"], r["where"]) for r in rejected) == Counter(
        {
            ("target_in_test", "data_sft/qa/more_train.json:1"): 1,
            ("duplicate", "data_sft/qa/more_train.json:2"): 1,
            ("duplicate", "data_grpo/train_2.json:1"): 1,
            ("target_in_grpo", "data_sft/cs/more.json:1"): 1,
        }
    )
    splits = {}
    for r in out.read().to_pylist():
        splits.setdefault((r["task_type"], r["output"]), set()).add(r["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert splits["qa", held["output"]] == {"test"}


def test_a_resumed_read_ends_as_one_that_was_not_stopped(folder, tmp_path):
    whole, _ = read(folder, tmp_path, rows_per_part=20)
    out = RunDir(tmp_path / "again").stage("mixture")
    first = whole.parts()[:3]
    for number, (relative, receipt) in enumerate(zip(first, sorted(whole.receipts().items()), strict=False)):
        out.write_part(number, whole.read_part(relative), None, receipt[1])
    published(out, BuildConfig(mixture=str(folder), dev_fraction=0.0), DataConfig(rows_per_part=20))
    assert out.read().equals(whole.read())


def test_faults_of_the_whole_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"build\.mixture .*neither data_sft/ nor data_grpo/"):
        read(tmp_path, tmp_path)
    write(tmp_path / "A" / "data_sft" / "qa" / "train.json", [row("qa", 1, count=1)])
    with pytest.raises(InputError, match=r"no row for SFT \(1 one_input\); say in build\.mixture_separator"):
        read(tmp_path / "A", tmp_path, name="a")
    (tmp_path / "A" / "data_sft" / "qa" / "train.json").write_text('[{"id": 1}, {"id"')
    with pytest.raises(InputError, match=r"train\.json: damaged"):
        read(tmp_path / "A", tmp_path, name="b")


# Inputs out of one text


@pytest.mark.parametrize("joint", ["\n\n", " ", "\n", "\n---\n"])
@pytest.mark.parametrize("task_type", ["qa", "mcq", "cs"])
def test_marked_inputs_are_told_apart_however_they_are_joined(task_type, joint):
    texts = [POOR[task_type].format(n=n, k="x") for n in range(5)]
    assert split_inputs(task_type, joint.join(texts)) == (texts, "marked")


@pytest.mark.parametrize(
    ("task_type", "text", "inputs", "way"),
    [
        ("tfq", "a\nAnswer: True\nc\nAnswer: false", ["a\nAnswer: True", "c\nAnswer: false"], "marked"),
        ("tfq", "S: a. Answer: True S: c. Answer: No", ["S: a. Answer: True", "S: c. Answer: No"], "marked"),
        ("para", "[1] one\nmore of it\n[2] two\n[3] three", ["one\nmore of it", "two", "three"], "numbered"),
        ("para", "Paragraph 1: one\n\nParagraph 2: two", ["one", "two"], "numbered"),
        ("qa", "1. Q: a?\n A: b\n 1) c\n2. Q: d?\nA: e", ["Q: a?\n A: b\n 1) c", "Q: d?\nA: e"], "numbered"),
        ("para", "one.\r\n\r\ntwo.\r\n \r\nthree.", ["one.", "two.", "three."], "blank_lines"),
        (
            "cs",
            "Category: a. Tell.\nb\n\nSay c\nd\n\nCategory: e. Tell.\nf",
            ["Category: a. Tell.\nb", "Say c\nd", "Category: e. Tell.\nf"],
            "blank_lines",
        ),
        ("para", "one.\n====\ntwo.\n\nstill two.", ["one.", "two.\n\nstill two."], "ruled"),
        ("qa", "what is a? it is b\n\nwhat is c?", ["what is a? it is b", "what is c?"], "blank_lines"),
        ("cs", "C: a\nS: vitamin C: good\nC: b\nS: d", ["C: a\nS: vitamin C: good", "C: b\nS: d"], "marked"),
        ("qa", "Note first. Q: a?\nA: b\nQ: c?\nA: d", ["Note first. Q: a?\nA: b", "Q: c?\nA: d"], "marked"),
    ],
)  # fmt: skip
def test_inputs_by_hand(task_type, text, inputs, way):
    assert split_inputs(task_type, text) == (inputs, way)


def test_a_separator_is_all_that_counts_once_it_is_given():
    assert split_inputs("para", "a ||| b\n\nc", "|||") == (["a", "b\n\nc"], "separator")
    assert split_inputs("para", "one.\ntwo.", "\n") == (["one.", "two."], "separator")
    with pytest.raises(Unreadable, match="one_input"):  # lines of one text, or texts of one line?
        split_inputs("para", "one.\ntwo.")
    with pytest.raises(Unreadable, match="one_input"):
        split_inputs("qa", "Q: a?\nA: b\nQ: c?\nA: d", "|||")


@settings(max_examples=200)
@given(st.sampled_from(list(TARGETS)), st.text(alphabet="QACS:Answertu 12.)\n[]-", max_size=60))
def test_nothing_of_a_text_is_lost_in_telling_inputs_apart(task_type, text):
    try:
        inputs, way = split_inputs(task_type, text)
    except Unreadable:
        return
    assert 2 <= len(inputs) <= 20
    kept = Counter("".join("".join(inputs).split()))
    gone = Counter("".join(text.split())) - kept
    assert not kept - Counter("".join(text.split()))
    if way != "numbered":
        assert set(gone) <= {"-"}


@pytest.mark.parametrize(
    ("task_type", "text", "written"),
    [
        ("qa", "Q: a?\r\n A: b\n", "Q: a?\nA: b"),
        ("qa", "Q: a? A: b", "Q: a?\nA: b"),
        ("mcq", "Q: a? A) 1 B) 2 C) 3 D) 4 Answer: B", "Q: a?\nA) 1\nB) 2\nC) 3\nD) 4\nAnswer: B"),
        ("tfq", "Statement: a is b.\n\nAnswer: TRUE", "a is b.\nAnswer: True"),
        ("tfq", "a is b. Answer: false", "a is b.\nAnswer: False"),
        ("cs", "C: x\n\nS: y", "C: x\nS: y"),
        ("para", " one\n\ntwo ", "one\n\ntwo"),
    ],
)
def test_targets_are_written_as_ours(task_type, text, written):
    assert canonical(task_type, text) == written
    assert canonical(task_type, written) == written


# On the Hub


def test_a_name_on_the_hub_is_downloaded_at_its_revision(folder, monkeypatch):
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert mixture_folder("hf:dokiik/MIXTURE@abc") == str(folder)
    patterns = ["data_grpo/**", "data_sft/**"]
    assert asked == [
        ("dokiik/MIXTURE", {"repo_type": "dataset", "revision": "abc", "allow_patterns": patterns})
    ]
    assert mixture_folder(f"{folder}/") == str(folder) and len(asked) == 1
    assert len(list_files(str(folder), "x")[0]) == 12


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    def unreachable(*_, **__):
        raise FileNotFoundError("no\nconnection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(InputError, match=r"hf:a/b: not available \(no connection\); check name"):
        mixture_folder("hf:a/b")
    for name in ("hf:a", "hf:a/b:config", "hf:../b"):
        with pytest.raises(InputError, match="not a data set's name"):
            hf_datasets.snapshot(name, [], "build.mixture")


# Stages and ratings


def test_a_published_mixture_needs_no_passages(folder):
    plain, given_ = Config(), Config(build=BuildConfig(mixture=str(folder)))
    assert tuple(stages_of("build", plain)) == ("passages", "generate", "degrade", "mixture")
    assert tuple(stages_of("build", given_)) == ("mixture", "rate_mixture")
    assert tuple(stages_of("run", given_))[2:5] == ("sft", "library", "grpo")
    assert required_inputs(all_stages(given_)["mixture"], given_) == ()
    assert required_inputs(all_stages(given_)["library"], given_) == ("rate_mixture",)
    assert required_inputs(all_stages(plain)["library"], plain) == ("generate", "degrade")


def test_the_files_and_how_they_are_read_decide_the_stage(folder, tmp_path):
    def identity(**build):
        config = Config(build=BuildConfig(mixture=str(folder), **build))
        return all_stages(config)["mixture"].settings_identity(config)

    before = identity()
    assert identity(samples=7) == before  # says nothing to a published one
    assert identity(mixture_separator="|") != before
    write(folder / "data_grpo" / "train.json", [row("qa", 9, task_type="qa")])
    assert identity() != before


def test_targets_and_inputs_are_drawn_evenly_and_rated(folder, tmp_path):
    out, _ = read(folder, tmp_path)
    rows = out.read().to_pylist()
    drawn, left_out = draw(rows, 30, seed=0)
    assert Counter(r["task_type"] for r in drawn) == dict.fromkeys(TARGETS, 6)
    assert left_out == {"other_split": 71, "not_drawn": 70}
    assert drawn == draw(rows[::-1], 30, seed=0)[0] != draw(rows, 30, seed=1)[0]
    texts, unreadable = texts_of(drawn, 0)
    assert unreadable == 0 and Counter(t["role"] for t in texts) == {"target": 30, "input": 30}
    part = rate_part(texts, make_judge(RateConfig()))
    assert part.rows_in == 60 == part.rows.num_rows
    assert len(set(part.rows["id"].to_pylist())) == 60
    assert set(part.rows["split"].to_pylist()) == {"sft"}
    by_role = {
        role: [r["expected"] for r in part.rows.to_pylist() if r["role"] == role]
        for role in ("target", "input")
    }
    assert sum(by_role["target"]) > sum(by_role["input"])


def test_an_input_that_reads_as_no_answer_is_left_out_and_counted():
    unmarked = {"id": "a", "task_type": "qa", "inputs": ["just text", "more"], "output": "Q: a?\nA: b"}
    texts, unreadable = texts_of([unmarked | {"split": "sft"}], 0)
    assert [t["role"] for t in texts] == ["target"] and unreadable == 1
