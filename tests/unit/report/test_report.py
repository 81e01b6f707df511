"""The report: what it shows, what it leaves out, and that no row can speak in it."""

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from sample_run import EVIL, write_run

from lm_mixup.config import ReportConfig
from lm_mixup.core.run_dir import Manifest, Outcome, RunDir, summarise
from lm_mixup.report import charts, figures, gather
from lm_mixup.report import examples as beside
from lm_mixup.report.gather import Counts, StageFacts
from lm_mixup.report.page import _number, _seconds, report
from lm_mixup.report.parts import Coverage

REFUSING = ("ingest", "distill", "rate_distilled")  # stages of the sample that reject rows


class Page(HTMLParser):
    """Ids, links, script contents and visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.scripts, self.texts, self._open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [v for k, v in attrs if k in ("href", "src")]
        if tag == "script":
            self.scripts.append((attributes, ""))
        if tag in ("script", "style"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data):
        if self._open[-1:] == ["script"]:
            attributes, text = self.scripts.pop()
            self.scripts.append((attributes, text + data))
        elif not self._open:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def _page(run, **config):
    outcome = report(run, ReportConfig(**config))
    assert outcome.files == ["report/index.html"]
    content = run.read_bytes("report/index.html")
    assert outcome.metrics["bytes"] == len(content) < 2_000_000
    return Page(content.decode("utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return _page(write_run(tmp_path_factory.mktemp("runs") / "full"), title="A & B")


def test_every_section_and_chart_is_there(full):
    assert {"rows", "refused", "scores", "clusters", "sft", "grpo", "examples", "time", "config"} <= set(
        full.ids
    )
    drawn = [name for name in full.ids if name.startswith("data-")]
    assert Counter(name.split("-")[1] for name in drawn) == {
        "scores": 1,
        "clusters": 2,
        "sft": 3,
        "grpo": 10,
        "time": 2,
    }
    for stage in ("passages", "grpo", "ingest", "rate_distilled", "select"):
        assert stage in full.text
    for reason in ("empty_completion", "missing_tag:</answer>", "high_score", "over_budget"):
        assert reason in full.text
    assert "A & B" in full.text
    assert "its score is good: it is not distilled" in full.text  # a code in words
    assert "lm-mixup run configs/quickstart.yaml --run-dir runs/demo" in full.text
    assert "/opt/venv" not in full.text


def test_mixture_is_told_by_kind_and_split(full):
    """240 rows: split and task type go by turns of five, so each task type lies whole in one split."""
    assert "mixture" in full.ids
    start = full.text.index("What the distiller is trained on")
    table = full.text[start : full.text.index("A few rows", start)]
    assert "sft grpo test all share rows 144 48 48 240" in table
    assert "task type cs 0 48 0 48 20% mcq 48 0 0 48 20% para 0 0 48 48 20% qa 48 0 0 48 20%" in table
    for label in ("method", "inputs", "noisy", "reasoning", "score"):
        assert f" {label} " in table
    rows = full.text[full.text.index("A few rows", start) : full.text.index("Stage by stage", start)]
    assert "poor texts" in rows and "Target" in rows and "has the symbol" in rows and "unrated" not in rows
    assert "rows/sft" not in full.text  # not a second time among the stages' figures


def test_page_is_self_contained(full):
    beside = [link for link in full.links if not link.startswith("#")]
    assert beside == ["../select/train.jsonl", *(f"../{s}/rejected/" for s in REFUSING)]
    assert {link[1:] for link in full.links if link.startswith("#")} <= set(full.ids)
    library = [text for attributes, text in full.scripts if "plotly.js" in text[:400]]
    assert len(library) == 1


def test_policy_allows_exactly_the_scripts_of_the_page(tmp_path):
    run = write_run(tmp_path, train=False)
    page = _page(run)
    policy = re.search(r"script-src ([^\"]*)\"", run.read_bytes("report/index.html").decode())[1].split()
    own = [text for attributes, text in page.scripts if "type" not in attributes]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in own]
    assert policy == [f"'sha256-{digest}'" for digest in digests]


def test_rows_cannot_inject_markup(tmp_path):
    run = write_run(tmp_path, evil=True)
    page = _page(run, title=EVIL)
    assert EVIL not in run.read_bytes("report/index.html").decode()
    assert page.text.count(EVIL) > 10  # shown as text: rows, refused rows and the title
    own = [attributes for attributes, _ in page.scripts if attributes.get("type") != "application/json"]
    assert len(own) == 2


def test_figures_are_json_that_cannot_close_the_script():
    name = "</script><!-- & -->"
    manifest = Manifest(name, "f", {}, rows_in=1, rows_out=1, rows_rejected=0, seconds=3.0)
    text = charts._json(figures.stage_seconds([StageFacts(name, "other", manifest)]))
    assert not set("<>&") & set(text)
    assert json.loads(text)["data"][0]["name"] == name


def test_what_judge_and_teacher_were_asked_is_told(tmp_path):
    run = RunDir(tmp_path)
    counts = {
        "requests": 30,
        "retries": 2,
        "cache_hits": 7,
        "prompt_tokens": 41_234,
        "completion_tokens": 900,
    }
    judged = {"rater": "a-model", **counts, "cost": 1.25}
    taught = {"teacher": "another", **{f"teacher_{name}": 2 * value for name, value in counts.items()}}
    for stage, metrics in (("rate", judged), ("generate", judged | taught)):
        outcome = Outcome(rows_in=3, rows_out=3, metrics=metrics)
        run.stage(stage).finish(summarise(run.stage(stage), "f", {}, 1.0, outcome))
    found = {(call.stage, call.who): call for call in gather.gather(run, 0).calls}
    assert {key: call.cost for key, call in found.items()} == {
        ("rate", "judge"): 1.25,
        ("generate", "judge"): 1.25,
        ("generate", "teacher"): None,
    }
    assert found["generate", "teacher"].prompt_tokens == 82_468
    assert "82,468" in _page(run).text


def test_alarms_are_told_with_their_steps(tmp_path):
    run = RunDir(tmp_path)
    silent = [{"step": step, "reward": 0.9, "frac_reward_zero_std": step / 20} for step in range(1, 21)]
    run.write_bytes("grpo/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in silent).encode())
    ((step, text),) = gather.gather(run, 0).alarms
    assert step == 19 and "equal rewards" in text  # the mean of steps 15 to 19 is 0.85
    assert "equal rewards" in _page(run).text


def test_augment_only_run_gives_a_page_without_training(tmp_path):
    page = _page(write_run(tmp_path, train=False))
    assert {"scores", "clusters", "examples"} <= set(page.ids)
    assert {"sft", "grpo"}.isdisjoint(page.ids)


def test_empty_run_gives_a_page_without_plotly(tmp_path):
    run = RunDir(tmp_path / "nothing")
    report(run, ReportConfig())
    assert len(run.read_bytes("report/index.html")) < 40_000


def test_unfinished_stage_is_named_as_such(tmp_path):
    run = write_run(tmp_path, train=False)
    run.stage("grpo").begin("f")
    assert "not finished" in _page(run).text


def test_counts_states_how_many_parts_it_read(tmp_path, monkeypatch):
    monkeypatch.setattr(gather, "MOST_PARTS", 3)
    run = write_run(tmp_path, train=False)  # six parts of 100 rows
    counts = gather._counts(run.stage("rate"), "score")
    assert counts.coverage == Coverage(read=3, parts=6)
    assert sum(counts.values.values()) == 300
    assert "Counted over 3 of 6 parts." in _page(run).text


def test_examples_are_spread_over_task_types_and_carry_their_parents(tmp_path):
    run = write_run(tmp_path, train=False)
    examples = gather.gather(run, 10).examples
    kept = [example for example in examples if example.state != "rejected"]
    assert Counter(example.task_type for example in kept) == dict.fromkeys(
        ("qa", "mcq", "tfq", "cs", "para"), 2
    )
    reasons = {example.reason for example in examples if example.state == "rejected"}
    assert reasons == {"missing_tag:</answer>", "faithfulness_below_0.9"}
    assert all(2 <= len(example.parents) <= 5 and example.missing == 0 for example in examples)
    assert examples == gather.gather(run, 10).examples


def test_parents_outside_the_parts_looked_at_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "MOST_PARENT_PARTS", 1)
    examples = gather.gather(write_run(tmp_path, train=False), 10).examples
    assert sum(example.missing for example in examples) > 0


def test_unrated_rows_are_not_zeros():
    counts = Counts(Counter({None: 98, 5: 1, 3: 1}), Coverage(1, 1))
    assert counts.mean() == 4.0
    assert Counts(Counter({None: 2}), Coverage(1, 1)).mean() is None
    bars = figures.score_histogram({"pool": counts}).data[0].y
    assert list(bars) == [0, 0, 0, 0.5, 0, 0.5]


def test_metrics_join_lines_of_a_step_and_drop_a_torn_last_line(tmp_path):
    run = RunDir(tmp_path)
    lines = [
        '{"step": 1, "loss": 3.0}',
        '{"step": 2, "loss": NaN}',
        '{"step": 1, "loss": 2.0}',
        '{"step": 1, "eval_loss": 9}',
    ]
    run.write_bytes("sft/metrics.jsonl", "\n".join([*lines, '{"step": 3, "lo']).encode())
    assert gather._metrics(run, "sft/metrics.jsonl") == [
        {"step": 1, "loss": 2.0, "eval_loss": 9},
        {"step": 2, "loss": None},
    ]
    run.write_bytes("sft/metrics.jsonl", b'{"step": 1, "lo\n{"step": 2, "loss": 1}\n')
    with pytest.raises(json.JSONDecodeError):
        gather._metrics(run, "sft/metrics.jsonl")


def test_points_join_long_runs_into_means():
    metrics = [{"step": step, "loss": float(step % 2)} for step in range(1000)] + [{"step": 1000}]
    steps, values = figures.points(metrics, "loss")
    assert len(steps) == 334
    assert steps[-1] == 999
    assert sum(values[:-1]) * 3 + values[-1] == pytest.approx(500)


def test_every_reward_component_has_its_line():
    names = ["quality", "alignment", "format", *(f"own_{i}" for i in range(5))]
    lines = [{"step": step} | {f"rewards/{name}/mean": 0.5 for name in names} for step in (1, 2, 3)]
    series = charts._components(lines)
    assert list(series.values()) == names
    assert [trace.name for trace in figures.curves(lines, series).data] == names


def test_moving_average_has_no_start_bias():
    assert figures.moving_average([2.0] * 50) == pytest.approx([2.0] * 50)
    assert figures.moving_average([1.0, 3.0]) == pytest.approx([1.0, (1.0 * 0.85 + 3.0) / 1.85])


def test_cohesion_histogram_counts_every_cluster():
    cohesion = Counts(Counter({0.2: 3, 0.9: 4, 0.55: 2}), Coverage(1, 1))
    assert sum(figures.cohesion_histogram(cohesion).data[0].y) == 9
    assert sum(figures.cohesion_histogram(Counts(Counter({0.5: 7}), Coverage(1, 1))).data[0].y) == 7


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345, "12,345"), (3.0, "3"), (0.123456, "0.1235"), ("abc", "abc"), (None, "–"), (True, "True")],
)
def test_number(value, text):
    assert _number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.42, "0.4 s"), (12, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_seconds(value, text):
    assert _seconds(value) == text
