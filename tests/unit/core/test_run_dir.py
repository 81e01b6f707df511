"""The run directory: parts, receipts, manifests, and what survives a kill."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import Outcome, RunDir, fingerprint, summarise
from lm_mixup.distributed.map_parts import PartResult, receipt_of


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run" if request.param == "local" else f"memory://{tmp_path.name}/run")


def put(run: RunDir, part: int, rows: int, reasons: tuple[str, ...] = ()) -> None:
    rejected = pa.table({"reason": list(reasons)}) if reasons else None
    result = PartResult(pa.table({"a": list(range(rows))}), rejected, rows + len(reasons), {"tokens": 2})
    run.stage("s").write_part(part, result.rows, rejected, receipt_of(part, result))


def test_a_stage_is_done_when_its_manifest_is_there(run: RunDir):
    stage = run.stage("s")
    stage.begin("f")
    put(run, 0, 3)
    put(run, 1, 2, ("no_prompt", "no_prompt", "too_long"))
    assert stage.manifest() is None
    manifest = summarise(stage, "f", {"before": "e"}, 1.5, Outcome(metrics={"x": 1}))
    stage.finish(manifest)
    assert stage.manifest() == manifest
    assert (manifest.rows_in, manifest.rows_out, manifest.rows_rejected) == (8, 5, 3)
    assert manifest.rejected_by_reason == {"no_prompt": 2, "too_long": 1}
    assert manifest.metrics == {"tokens": 4, "x": 1}
    assert stage.read()["a"].to_pylist() == [0, 1, 2, 0, 1]
    assert len(stage.parts("rejected")) == 1


def test_half_done_work_of_the_same_fingerprint_is_kept(run: RunDir):
    stage = run.stage("s")
    stage.begin("f")
    put(run, 0, 3)
    stage.begin("f")
    assert set(stage.receipts()) == {0}


@pytest.mark.parametrize(("digest", "fresh"), [("g", False), ("f", True)])
def test_other_work_is_removed(run: RunDir, digest: str, fresh: bool):
    stage = run.stage("s")
    stage.begin("f")
    put(run, 0, 3)
    stage.finish(summarise(stage, "f", {}, 0, Outcome()))
    stage.begin(digest, fresh=fresh)
    assert stage.receipts() == {}
    assert stage.parts() == []
    assert stage.manifest() is None


def test_what_was_trained_moves_aside_and_comes_back_with_its_settings(run: RunDir):
    stage = run.stage("s")
    assert stage.begin("first") is None
    run.write_json("s/checkpoints/step-1/state.json", 1)
    aside = stage.begin("second")
    assert aside == "s.kept-first"
    assert run.exists(f"{aside}/checkpoints/step-1/state.json")
    assert not run.exists("s/checkpoints")
    run.write_json("s/model/config.json", 2)
    assert stage.begin("first") == "s.kept-second"
    assert run.read_json("s/checkpoints/step-1/state.json") == 1
    assert not run.exists(aside)
    assert stage.begin("first", fresh=True) is None  # asked for: nothing is kept
    assert not run.exists("s/checkpoints")
    assert stage.begin("second") is None  # nothing trained to move aside
    assert run.read_json("s/model/config.json") == 2


def test_a_kill_while_old_work_is_removed_leaves_nothing_that_counts_as_done(run: RunDir, monkeypatch):
    stage = run.stage("s")
    stage.begin("f")
    put(run, 0, 3)
    stage.finish(summarise(stage, "f", {}, 0, Outcome()))
    removed = []
    monkeypatch.setattr(run, "remove", removed.append)
    stage.begin("g")
    assert removed[:4] == ["s/manifest.json", "s/started.json", "s/receipts", "s"]


def test_a_part_without_receipt_is_not_done(run: RunDir):
    """A kill between the rows and the receipt: the part is written again, and counted once."""
    stage = run.stage("s")
    stage.begin("f")
    put(run, 0, 3)
    run.remove("s/receipts/part-000000.json")
    assert stage.receipts() == {}
    put(run, 0, 3)
    assert summarise(stage, "f", {}, 0, Outcome()).rows_out == 3


def test_no_scratch_file_is_left_and_none_counts_as_a_part(tmp_path: Path):
    run = RunDir(tmp_path)
    run.stage("s").begin("f")
    put(run, 0, 1)
    (tmp_path / "s" / "data" / "part-000001.parquet.abc.tmp").write_bytes(b"half")
    assert run.stage("s").parts() == ["s/data/part-000000.parquet"]


def test_a_stage_of_a_remote_run_has_a_scratch_folder_of_its_driver(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LM_MIXUP_SCRATCH", str(tmp_path))
    stage = RunDir(f"memory://{tmp_path.name}/mine").stage("sft")
    (stage.local / "model" / "deep").mkdir(parents=True)
    (stage.local / "model" / "config.json").write_text("{}")
    (stage.local / "model" / "deep" / "weights").write_text("1")
    assert stage.local.parts[-2:] == ("mine", "sft")
    assert stage.local == pickle.loads(pickle.dumps(stage)).local  # on every worker of the same driver
    assert not stage.exists("model")
    stage.upload("model")
    stage.upload("absent")
    assert stage.run.read_bytes("sft/model/deep/weights") == b"1"

    other = RunDir(stage.run.uri).stage("sft")
    assert other.local != stage.local and not stage.local.parent.joinpath("sft", "model").exists()
    (other.local / "model").mkdir()
    (other.local / "model" / "stale").write_text("0")
    folder = other.fetch("model")
    assert sorted(path.name for path in folder.rglob("*")) == ["config.json", "deep", "weights"]
    assert not other.fetch("absent").exists()


def test_a_folder_is_uploaded_in_order(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LM_MIXUP_SCRATCH", str(tmp_path))
    stage = RunDir(f"memory://{tmp_path.name}/mine").stage("sft")
    (stage.local / "model").mkdir()
    for name in ("config.json", "a", "z"):
        (stage.local / "model" / name).write_text("")
    written: list[str] = []
    put = stage.run.fs.put
    monkeypatch.setattr(
        stage.run.fs,
        "put",
        lambda here, there: (written.extend(Path(p).name for p in there), put(here, there)),
    )
    stage.upload("model", last=("config.json",))
    assert written == ["a", "z", "config.json"]


@pytest.mark.parametrize(
    ("uri", "said"), [("s4://b/r", "cannot be opened"), ("sftp://b/r", "a package that is not installed")]
)
def test_a_uri_that_cannot_be_opened_is_an_input_error(uri: str, said: str):
    with pytest.raises(InputError, match=said):
        RunDir(uri)


def test_the_extra_that_a_uri_needs_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"gs://b/r: .* pip install 'lm-mixup\[gcs\]'"):
        RunDir("gs://b/r")


def test_fingerprints_depend_on_values_and_not_on_key_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint("a", "b") != fingerprint("ab")
