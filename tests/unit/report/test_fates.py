"""What became of the pool's rows, and the page's drawings of it."""

from collections import Counter

import numpy as np
import pytest
from sample_run import EVIL, write_run

from lm_mixup.core.run_dir import RunDir
from lm_mixup.report import fates
from lm_mixup.report.agreement import read_crossings, weighted_kappa
from lm_mixup.report.fates import CHOSEN, CLUSTERED, GOOD, KEPT, LEFT, POOR, REFUSED, WRITTEN, Fates
from lm_mixup.report.flow import draw_flow
from lm_mixup.report.gather import gather
from lm_mixup.report.marks import kept_words, mark_invented, mark_parent
from lm_mixup.report.reasons import in_words


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", train=False)


def test_every_pool_row_has_one_fate(run):
    found = fates.read_fates(run)
    assert found.rows == 600 == sum(found.paths.values())
    ways = Counter()
    for (_, path), rows in found.paths.items():
        ways[path] += rows
    sizes = dict(zip(*run.stage("cluster").read(["cluster_id", "size"]).to_pydict().values(), strict=True))
    refused = run.stage("rate_distilled").read(["cluster_id"], "rejected")["cluster_id"].to_pylist()
    chosen = run.stage("select").read(["id", "origin"]).to_pylist()
    chosen = [row["id"] for row in chosen if row["origin"] == "distilled"]
    assert ways[POOR, CLUSTERED, WRITTEN, REFUSED] == sum(sizes[cluster] for cluster in refused) > 0
    assert ways[POOR, CLUSTERED, WRITTEN, KEPT, CHOSEN] == sum(sizes[cluster] for cluster in chosen) > 0
    assert sum(rows for path, rows in ways.items() if CLUSTERED in path) <= sum(sizes.values())
    assert ways[GOOD, CHOSEN] + ways[GOOD, LEFT] <= 600 - ways[POOR, CLUSTERED, WRITTEN, REFUSED]
    assert [group.rows for group in found.sources] == [200, 200, 200]
    assert sum(group.chosen for group in found.task_types) == sum(
        rows for path, rows in ways.items() if path[-1] == CHOSEN
    )


def test_a_pool_too_large_to_join_has_no_flow(run, monkeypatch):
    monkeypatch.setattr(fates, "MOST_ROWS", 599)
    assert fates.read_fates(run) is None
    assert fates.read_fates(RunDir(f"{run.uri}/nothing")) is None


def test_the_flow_escapes_names_and_keeps_its_widths():
    paths = Counter({(EVIL, (POOR,)): 30, ("good", (GOOD, CHOSEN)): 10})
    drawn = draw_flow(Fates(40, paths, [], []))
    assert "<script>" not in drawn and "&lt;script&gt;" in drawn
    widths = [float(part.split('"')[0]) for part in drawn.split('stroke-width="')[1:]]
    assert sorted(width / min(widths) for width in widths) == pytest.approx([1, 1, 3], rel=0.01)


def test_the_judges_matrix_counts_every_rated_row(run):
    scores, errors = list(read_crossings(run))
    assert sum(map(sum, scores.cells)) == 600 and scores.is_counted
    assert errors.shares[0] == pytest.approx([0.75, *[0.05] * 5])
    assert not errors.is_counted


def test_weighted_kappa():
    assert weighted_kappa(np.diag([3.0, 4.0])) == 1.0
    assert weighted_kappa(np.array([[1.0, 1.0], [1.0, 1.0]])) == 0.0
    assert weighted_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.4)  # Cohen's own example


def test_marks_tell_kept_from_lost_and_escape_the_text():
    kept = kept_words("Iron has the symbol Fe.")
    assert mark_parent("IRON & rust 26", kept) == (
        '<span class="kept">IRON</span> &amp; <span class="lost">rust 26</span>'
    )
    assert mark_invented("a <b> claim", ("claim",)) == "a &lt;b&gt; <mark>claim</mark>"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("score_below_4", "the judge gave it less than 4"),
        ("missing_tag:</answer>", "the answer lacks </answer>"),
        ("distilled_too_similar", "a chosen row says nearly the same (distilled rows)"),
        ("something_new", "something new"),
    ],
)
def test_reasons_in_words(reason, words):
    assert in_words(reason) == words


def test_the_table_of_the_benchmarks_is_on_the_page(tmp_path):
    run = RunDir(tmp_path)
    run.write_bytes("benchmark/table.csv", b'task,metric,mine\nmmlu,acc,"0.31 \xc2\xb1 0.01"\n')
    (table,) = gather(run, 0).results
    assert (table.heads, table.lines) == (("task", "metric", "mine"), [("mmlu", "acc", "0.31 ± 0.01")])


def test_the_table_of_the_mapping_is_on_the_page(tmp_path):
    run = RunDir(tmp_path)
    rows = [{"model": "sft", "rows": "all", "count": 60, "in_format": 0.98333, "facts_recall": None}]
    run.write_json("mapping/results.json", rows)
    (table,) = gather(run, 0).results
    assert table.heads == ("model", "rows", "count", "in_format", "facts_recall")
    assert table.lines == [("sft", "all", 60, 0.983, None)]


def test_the_comparison_of_two_models_is_on_the_page(tmp_path):
    run = RunDir(tmp_path)
    found = {"a": "tuned", "b": "base", "win_rate": 0.61111, "models": ["/x/tuned", "/x/base"]}
    run.write_json("compare/results.json", found)
    (table,) = gather(run, 0).results
    assert (table.heads, table.lines) == (("a", "b", "win_rate"), [("tuned", "base", 0.611)])
