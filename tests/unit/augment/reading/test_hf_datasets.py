"""Hugging Face data sets as pools, on folders: nothing here asks the Hub."""

import json

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_mixup.augment.reading import hf_datasets
from lm_mixup.augment.reading.files import list_units, read_unit
from lm_mixup.augment.reading.hf_datasets import data_files, hub_files, is_hub_name
from lm_mixup.core.errors import InputError

ROWS = [{"prompt": f"prompt {n}", "completion": f"{n} " * (n % 50)} for n in range(2500)]


def read(pool, split_bytes=1 << 20):
    units, found = list_units(str(pool), split_bytes)
    return [row for unit in units for row in read_unit(unit, 1 << 20)], units, found


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "mine"
    Dataset.from_list(ROWS).save_to_disk(folder, num_shards=2)
    return folder


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 200_000))
def test_a_saved_data_set_is_read_in_order_however_it_is_cut(saved, split_bytes):
    rows, units, found = read(saved, split_bytes)
    assert rows == ROWS
    assert found["files"] == 2 and found["files_ignored"] == 0
    assert {unit.source for unit in units} == {"mine"}
    if split_bytes < 10_000:
        assert len(units) > 2 and max(len(read_unit(unit, 1)) for unit in units) <= 1000


def test_a_saved_data_set_is_read_over_fsspec(saved):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(saved), "/pools/mine", recursive=True)
    rows, units, _ = read("memory://pools/mine")
    assert rows == ROWS and len(units) == 2


def test_of_several_splits_train_is_read_and_the_rest_is_counted(tmp_path):
    splits = {"train": Dataset.from_list(ROWS[:5]), "test": Dataset.from_list(ROWS[5:7])}
    DatasetDict(splits).save_to_disk(tmp_path / "both")
    rows, _, found = read(tmp_path / "both")
    assert rows == ROWS[:5] and found["files_ignored"] == 1
    assert read(tmp_path / "both" / "test")[0] == ROWS[5:7]
    DatasetDict({"a": splits["test"]}).save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one")[0] == ROWS[5:7]
    DatasetDict({"a": splits["test"], "b": splits["train"]}).save_to_disk(tmp_path / "none")
    with pytest.raises(InputError, match=r"no split `train`; add one of /a, /b"):
        read(tmp_path / "none")


def test_an_empty_or_damaged_saved_data_set_is_told(tmp_path):
    Dataset.from_list(ROWS[:3]).save_to_disk(tmp_path / "cut")
    (shard,) = (tmp_path / "cut").glob("*.arrow")
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(InputError, match=r"arrow: (not readable|damaged)"):
        read(tmp_path / "cut")
    (tmp_path / "cut" / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"state.json is damaged"):
        read(tmp_path / "cut")
    Dataset.from_dict({"prompt": [], "completion": []}).save_to_disk(tmp_path / "empty")
    assert read(tmp_path / "empty")[0] == []


@pytest.fixture
def hub_folder(tmp_path):
    """A folder laid out as a data set on the Hub."""
    for split, rows in (("train", ROWS[:4]), ("test", ROWS[4:6])):
        (tmp_path / f"{split}-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path)


def test_data_files_are_those_of_the_split(hub_folder):
    assert data_files(hub_folder, None, None, "pool") == [f"{hub_folder}/train-0.jsonl"]
    assert data_files(hub_folder, None, "test", "pool") == [f"{hub_folder}/test-0.jsonl"]
    with pytest.raises(InputError, match=r"no split `dev`; add one of @train, @test"):
        data_files(hub_folder, None, "dev", "pool")
    with pytest.raises(InputError, match=r"not available .*nope"):
        data_files(hub_folder, "nope", None, "pool")


def test_a_script_is_not_run(hub_folder, tmp_path):
    (tmp_path / f"{tmp_path.name}.py").write_text("raise SystemExit('the script ran')")
    with pytest.raises(InputError, match="scripts are no longer supported"):
        data_files(hub_folder, None, None, "pool")


def test_a_hub_name_is_read_like_files(hub_folder, monkeypatch):
    asked = []

    def listed(name, config, split, where):
        asked.append((name, config, split))
        return data_files(hub_folder, None, split, where)

    monkeypatch.setattr(hf_datasets, "data_files", listed)
    rows, units, _ = read("hf:org/my.set:some-config@test", 40)
    assert rows and [json.loads(row) for row in rows] == ROWS[4:6]
    assert {unit.source for unit in units} == {"my.set"}
    assert read("hf:org/set")[2]["files"] == 1
    assert asked == [("org/my.set", "some-config", "test"), ("org/set", None, None)]


def test_names_that_are_none_and_a_hub_out_of_reach_are_one_line(monkeypatch):
    assert is_hub_name("hf:a/b") and not is_hub_name("hf://datasets/a/b") and not is_hub_name("a.jsonl")
    for name in ("hf:", "hf:a", "hf:a/b/c", "hf:a/b:@x", "hf:a/../b", "hf:../b"):
        with pytest.raises(InputError, match="not a data set's name"):
            hub_files(name)

    def unreachable(*_):
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr("datasets.load_dataset_builder", unreachable)
    with pytest.raises(InputError, match=r"augment.pool hf:a/b: no connection to the Hub"):
        hub_files("hf:a/b")
