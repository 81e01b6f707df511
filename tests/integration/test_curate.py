"""Curation over the real Ray: parts and actors do not matter, small pools pass through."""

import numpy as np
import pyarrow as pa
import pytest
from stage_rows import put_part

from lm_mixup.augment.curate import curate
from lm_mixup.config import CurateConfig
from lm_mixup.core.run_dir import RunDir, summarise
from lm_mixup.core.schemas import CURATION

GROUP = 6


def planted(rows):
    """Rows in groups of one true score, the scores seen through 35% of noise, every 50th unrated."""
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 6, rows // GROUP), GROUP)
    noisy = np.where(rng.random(rows) < 0.65, truth, rng.integers(0, 6, rows))
    ids = [f"row-{i}" for i in range(rows)]
    rated = pa.table(
        {
            "id": ids,
            "prompt": [f"p{i}" for i in range(rows)],
            "completion": [f"c{i}" for i in range(rows)],
            "score": pa.array(noisy, pa.int8(), mask=np.arange(rows) % 50 == 49),
        }
    )
    places = [[i // GROUP * GROUP + (i + j) % GROUP for j in range(1, GROUP)] for i in range(rows)]
    nearest = pa.table(
        {
            "id": ids,
            "neighbor_ids": [[ids[place] for place in listed] for listed in places],
            "similarities": pa.array([[0.9] * (GROUP - 1)] * rows, pa.list_(pa.float32())),
        }
    )
    return truth, rated, nearest


def run_curate(root, rated, nearest, rows_per_part, **config):
    run = RunDir(root)
    for name, table in {"rate": rated, "neighbors": nearest}.items():
        for part, start in enumerate(range(0, table.num_rows, rows_per_part)):
            put_part(run.stage(name), part, table.slice(start, rows_per_part))
    out = run.stage("curate")
    out.begin("digest")
    outcome = curate(run.stage("rate"), None, run.stage("neighbors"), out, CurateConfig(**config))
    out.finish(summarise(out, "digest", {}, 0.0, outcome))
    manifest = out.manifest()
    assert manifest.rows_in == manifest.rows_out == rated.num_rows
    return out, manifest


def test_noise_is_found_and_scores_move_to_the_truth_whatever_the_parts(ray_session, tmp_path):
    truth, rated, nearest = planted(3000)
    one, first = run_curate(tmp_path / "one", rated, nearest, 3000, neighbors=3)
    two, second = run_curate(tmp_path / "two", rated, nearest, 800, neighbors=3, num_actors=2)
    assert one.read() == two.read()
    assert first.metrics == second.metrics
    assert np.diag(first.metrics["transition"]).mean() == pytest.approx(0.65 + 0.35 / 6, abs=0.06)
    assert sum(first.metrics["prior"]) == pytest.approx(1, abs=1e-3)
    assert 0 < first.metrics["corrected"] <= first.metrics["flagged"]
    rows = one.read()
    assert rows.column_names == [*rated.column_names, *CURATION.names]
    known = rows["score"].is_valid().to_numpy()
    assert rows["curated_score"].is_valid().to_numpy().tolist() == known.tolist()
    before = (rows["score"].fill_null(-1).to_numpy() == truth)[known].mean()
    after = (rows["curated_score"].fill_null(-1).to_numpy() == truth)[known].mean()
    assert before < 0.73 and after > 0.85


@pytest.mark.parametrize(("rows", "config"), [(30, {}), (600, {"enabled": False})])
def test_too_few_rows_or_switched_off_pass_through(ray_session, tmp_path, rows, config):
    _, rated, nearest = planted(rows)
    out, manifest = run_curate(tmp_path / "run", rated, nearest, 400, **config)
    assert out.read()["curated_score"] == out.read()["score"]
    assert manifest.metrics["corrected"] == 0 and "transition" not in manifest.metrics
