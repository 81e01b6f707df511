"""SFT for real: Ray Train workers, TRL and DeepSpeed, on a tiny model."""

from __future__ import annotations

import threading
import time

import pytest
from child_processes import children_like
from stage_rows import put_part

from lm_mixup import records, tasks
from lm_mixup.backends.policy import create_nano, encode_prompt, load_policy, load_tokenizer
from lm_mixup.config import LoraConfig, ModelConfig, SftConfig
from lm_mixup.errors import InputError
from lm_mixup.runs import RunDir, StageDir, summarise
from lm_mixup.train.checkpoint import last_checkpoint, read_metrics
from lm_mixup.train.encode import TOKENS
from lm_mixup.train.sft import sft

METALS = ["iron", "gold", "zinc", "lead", "tin", "copper", "silver", "nickel"]
CONFIG = SftConfig(
    max_steps=6,
    learning_rate=3e-3,
    lr_scheduler="constant",
    max_length=160,
    batch_size=8,
    micro_batch_size=8,
    eval_steps=6,
    eval_rows=4,
    save_steps=6,
    max_failures=0,
)


def mixture_rows(count=40):
    rows = []
    for index in range(count):
        name, number = METALS[index % len(METALS)], 20 + index
        inputs = [f"What is {name}?\nA metal.", f"Number of {name}?\n{number}" + "." * (index % 5)]
        rows.append(
            {
                "id": f"{index:03d}",
                "task_type": "qa",
                "instruction": tasks.INSTRUCTIONS["qa"],
                "inputs": inputs,
                "cot": f"About {name}.",
                "output": f"Q: What is {name}?\nA: A metal, number {number}.",
                "split": "test" if index < 6 else "sft",
            }
        )
    rows[-1]["inputs"] = ["word " * 200] * 2
    rows[-2]["split"] = "grpo"
    return rows


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> StageDir:
    stage = RunDir(tmp_path_factory.mktemp("mixture")).stage("mixture")
    rows = mixture_rows()
    for part, chunk in enumerate((rows[:25], rows[25:])):
        put_part(stage, part, records.table(chunk, records.MIXTURE))
    return stage


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelConfig:
    texts = [tasks.write_prompt(row["instruction"], row["inputs"]) for row in mixture_rows()]
    folder = tmp_path_factory.mktemp("model") / "tiny"
    create_nano(
        folder, texts, 0, vocab_size=400, hidden_size=64, num_layers=2, num_heads=2, intermediate_size=128
    )
    return ModelConfig(path=str(folder))


def run_sft(root, mixture, model, **changes):
    out = RunDir(root).stage("sft")
    out.begin("same")
    outcome = sft(mixture, out, CONFIG.model_copy(update=changes), model, seed=7)
    return out, outcome


def losses(out):
    return [line["loss"] for line in read_metrics(out.local / "metrics.jsonl") if "loss" in line]


@pytest.fixture(scope="module")
def undisturbed(ray_session, tmp_path_factory, mixture, model):
    """One worker, one forward pass a step, 30 steps."""
    return run_sft(
        tmp_path_factory.mktemp("plain"), mixture, model, max_steps=30, save_steps=10, save_limit=2
    )


def test_the_loss_falls_and_the_model_loads(undisturbed, model):
    out, outcome = undisturbed
    curve = losses(out)
    assert len(curve) == 30
    assert curve[-1] < 0.5 * curve[0]
    evaluations = [x["eval_loss"] for x in read_metrics(out.local / "metrics.jsonl") if "eval_loss" in x]
    assert len(evaluations) == 5 and evaluations[-1] < evaluations[0]
    assert outcome.metrics["loss"] == curve[-1]
    folder = out.local / "model"
    tokenizer, policy = load_tokenizer(folder, ModelConfig()), load_policy(folder, ModelConfig())
    row = mixture_rows()[10]
    prompt = encode_prompt(tokenizer, row["instruction"], row["inputs"])
    import torch

    with torch.no_grad():
        first = int(policy(torch.tensor([prompt])).logits[0, -1].argmax())
    assert tokenizer.decode([first]) == "<think>"
    assert {path.name for path in out.local.iterdir()} >= {"model", "checkpoints", "metrics.jsonl", "data"}
    assert [path.name for path in out.local.glob("ray-train-*")] == []


def test_every_row_is_accounted_for(undisturbed, mixture):
    out, outcome = undisturbed
    manifest = summarise(out, "same", {}, 1.0, outcome)
    assert manifest.rows_in == manifest.rows_out + manifest.rows_rejected == 39
    assert manifest.rejected_by_reason == {"too_long": 1}
    assert outcome.rows_used == 32 + 4
    assert outcome.left_out == {"test_rows_not_evaluated": 2, "rows_of_other_splits": 1}
    assert out.read().schema.equals(TOKENS)


def test_two_workers_with_micro_batches_of_one_equal_one_with_whole_batches(
    undisturbed, tmp_path, mixture, model
):
    out, _ = run_sft(tmp_path, mixture, model, num_workers=2, micro_batch_size=1, zero_stage=2)
    assert losses(out) == pytest.approx(losses(undisturbed[0])[:6], abs=1e-5)


def test_a_killed_worker_is_replaced_and_changes_nothing(undisturbed, tmp_path, mixture, model):
    killed, mapped = [], []
    thread = threading.Thread(target=kill_one_worker, args=(tmp_path, killed, mapped), daemon=True)
    thread.start()
    out, outcome = run_sft(tmp_path, mixture, model, max_steps=30, save_steps=10, max_failures=1)
    thread.join()
    assert killed, "the run ended before the worker was killed"
    assert mapped and not [path for path in mapped if "deepspeed_allreduce" in path]
    steps = [line["step"] for line in read_metrics(out.local / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, 31))
    assert losses(out) == pytest.approx(losses(undisturbed[0]), abs=1e-6)
    assert outcome.metrics["num_tokens"] == undisturbed[1].metrics["num_tokens"]
    assert outcome.metrics["eval_loss"] == pytest.approx(undisturbed[1].metrics["eval_loss"], abs=1e-6)


def kill_one_worker(root, killed, mapped, timeout_s=300.0):
    """SIGKILL to the training worker once its first checkpoint is whole and it has gone on."""
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        time.sleep(0.02)
        found = last_checkpoint(root / "sft" / "checkpoints")
        if found is None or len(read_metrics(root / "sft" / "metrics.jsonl")) < 13:
            continue
        for process in children_like("TrainWorker"):
            mapped += [mapping.path for mapping in process.memory_maps()]
            process.kill()
            killed.append(process.pid)
        return


def test_zero_3_with_adapters_packing_and_checkpointing(ray_session, tmp_path, mixture, model):
    import torch

    changes = {"num_workers": 2, "micro_batch_size": 1, "batch_size": 4, "zero_stage": 3, "packing": True}
    changes |= {
        "gradient_checkpointing": True,
        "lora": LoraConfig(r=4, alpha=8),
        "max_steps": 3,
        "eval_rows": 0,
    }
    out, _ = run_sft(tmp_path, mixture, model, **changes)
    curve = losses(out)
    assert curve[-1] < curve[0]
    before = load_policy(model.path, model).state_dict()
    after = load_policy(out.local / "model", model).state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    projections = {name for name in before if "_proj.weight" in name}
    assert changed == projections


def test_a_run_that_is_done_is_not_done_again(undisturbed, mixture, model):
    out, outcome = undisturbed
    stamp = (out.local / "model" / "config.json").stat().st_mtime_ns
    config = CONFIG.model_copy(update={"max_steps": 30, "save_steps": 10})
    assert sft(mixture, out, config, model, seed=7).metrics == outcome.metrics
    assert (out.local / "model" / "config.json").stat().st_mtime_ns == stamp


def test_no_row_that_fits_is_an_input_error(ray_session, tmp_path, mixture, model):
    with pytest.raises(InputError, match="max_length"):
        run_sft(tmp_path, mixture, model, max_length=16)
