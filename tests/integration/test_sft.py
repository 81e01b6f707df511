"""SFT for real: Ray Train workers, TRL and DeepSpeed, on a tiny model."""

from __future__ import annotations

import json
import shutil
import threading
import time

import pytest
from child_processes import children_like
from stage_rows import put_part

from lm_mixup.config import FinetuneConfig, LoraConfig, ModelConfig, SftConfig
from lm_mixup.core import schemas, task_types
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir, StageDir, summarise
from lm_mixup.demo.nano import create_nano
from lm_mixup.models.policy import encode_prompt, load_policy, load_tokenizer
from lm_mixup.train.checkpoint import SftJob, last_checkpoint
from lm_mixup.train.finetune import finetune
from lm_mixup.train.sft import _train_loop, sft
from lm_mixup.train.tokenize import TOKENS
from lm_mixup.train.tracking import read_metrics

METALS = ["iron", "gold", "zinc", "lead", "tin", "copper", "silver", "nickel"]
CONFIG = SftConfig(
    max_steps=6,
    learning_rate=3e-3,
    lr_scheduler="constant",
    weight_decay=0.5,
    max_length=160,
    batch_size=8,
    micro_batch_size=8,
    eval_steps=6,
    eval_rows=5,  # two workers do not share them evenly
    save_steps=6,
    max_failures=0,
)
STOPS = {"patience": 2, "keep_best": True}


def mixture_rows(count=40):
    rows = []
    for index in range(count):
        name, number = METALS[index % len(METALS)], 20 + index
        inputs = [f"What is {name}?\nA metal.", f"Number of {name}?\n{number}" + "." * (index % 5)]
        rows.append(
            {
                "id": f"{index:03d}",
                "task_type": "qa",
                "instruction": task_types.INSTRUCTIONS["qa"],
                "inputs": inputs,
                "cot": f"About {name}.",
                "output": f"Q: What is {name}?\nA: A metal, number {number}.",
                "split": "dev" if index < 6 else "sft",
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
        put_part(stage, part, schemas.table(chunk, schemas.MIXTURE))
    return stage


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelConfig:
    texts = [task_types.write_prompt(row["instruction"], row["inputs"]) for row in mixture_rows()]
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
        tmp_path_factory.mktemp("plain"), mixture, model, max_steps=30, save_steps=10, save_limit=2, **STOPS
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
    assert outcome.rows_used == 32 + 5
    assert outcome.left_out == {"not_drawn": 0, "dev_rows_not_evaluated": 1, "rows_of_other_splits": 1}
    assert out.read().schema.equals(TOKENS)


def continued(root, mixture, model, step, **changes):
    """Goes on with a run as it was when it had written the checkpoint of a step."""
    for folder in (root / "sft" / "model", *root.glob("sft/checkpoints/checkpoint-*")):
        if not folder.name.endswith(f"-{step}"):
            shutil.rmtree(folder)
    return run_sft(root, mixture, model, **changes)


def test_zero_3_on_two_workers_equals_one_worker_which_may_then_go_on_alone(
    undisturbed, tmp_path, mixture, model
):
    """Micro-batches of one on two workers, parameters sharded; then whole batches on one worker."""
    sharded = {"zero_stage": 3, "num_workers": 2, "micro_batch_size": 1}
    out, _ = run_sft(tmp_path, mixture, model, save_steps=3, **sharded)
    assert losses(out) == pytest.approx(losses(undisturbed[0])[:6], abs=1e-5)
    resumed, _ = continued(tmp_path, mixture, model, 3, zero_stage=3)
    assert losses(resumed) == pytest.approx(losses(undisturbed[0])[:6], abs=1e-5)


def test_two_workers_go_on_where_one_was_and_stop_where_nothing_is_gained(
    undisturbed, tmp_path, mixture, model
):
    finished, _ = undisturbed
    copied = tmp_path / "sft"
    shutil.copytree(finished.local, copied)
    state = copied / "checkpoints" / "checkpoint-20" / "trainer_state.json"
    told = json.loads(state.read_text())
    told["best_metric"] = 0.1  # as if the best lay behind, and one evaluation had not beaten it
    told["stateful_callbacks"]["EarlyStoppingCallback"]["attributes"]["early_stopping_patience_counter"] = 1
    state.write_text(json.dumps(told))
    changes = {"num_workers": 2, "micro_batch_size": 1, "max_steps": 30}
    out, _ = continued(tmp_path, mixture, model, 20, **changes, **STOPS)
    assert losses(out) == pytest.approx(losses(finished)[:24], abs=1e-5)
    kept = [
        line["eval_loss"] for line in read_metrics(finished.local / "metrics.jsonl") if "eval_loss" in line
    ]
    assert eval_loss(out) == pytest.approx(kept[-1], abs=1e-4)  # the copied run's best, not the last step's


def eval_loss(out):
    """Mean loss of a token of the final model on the rows that were evaluated, one row at a time."""
    import torch

    policy = load_policy(out.local / "model", ModelConfig())
    rows = sorted((r for r in out.read().to_pylist() if r["split"] == "dev"), key=lambda r: r["id"])
    total = count = 0.0
    for row in rows[: CONFIG.eval_rows]:
        ids, start = torch.tensor([row["input_ids"]]), row["prompt_length"]
        with torch.no_grad():
            logp = policy(ids).logits[0, :-1].log_softmax(-1)
        chosen = logp.gather(1, ids[0, 1:, None])[start - 1 :]
        total, count = total - float(chosen.sum()), count + len(chosen)
    return total / count


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


def run_finetune(root, pairs, model, **changes):
    out = RunDir(root).stage("finetune")
    out.begin("same")
    config = FinetuneConfig(
        max_steps=3,
        learning_rate=1e-2,
        lr_scheduler="linear",
        warmup_ratio=0.3,
        eval_fraction=0.0,
        max_failures=0,
        max_length=96,
        lora=LoraConfig(r=4, alpha=8),
        **changes,
    )
    finetune(out, str(pairs), {}, "last", config, model, seed=7)
    return out


def test_packed_rows_equal_rows_of_their_own(ray_session, tmp_path, model):
    """Every step holds all rows, packed or not, so losses agree only if no row sees another.

    The packed side is everything at once that must change nothing: ZeRO-3 on two workers, micro-batches of
    one, activations computed anew. Adapters alone are trained, on a JSONL of prompts and completions.
    """
    import torch
    from peft import PeftModel

    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Metal {i}?", "completion": f"{METALS[i % 8]} " * (1 + i % 7)} for i in range(24)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = run_finetune(tmp_path / "own", pairs, model, batch_size=24, micro_batch_size=8)
    sequences = packed_count(own)
    assert 2 * sequences <= 24 and sequences % 2 == 0
    changes = {"packing": True, "zero_stage": 3, "gradient_checkpointing": True, "num_workers": 2}
    packed = run_finetune(
        tmp_path / "packed", pairs, model, batch_size=sequences, micro_batch_size=1, **changes
    )
    assert losses(packed) == pytest.approx(losses(own), abs=1e-5)
    assert losses(own)[-1] < losses(own)[0]
    rates = [line["lr"] for line in read_metrics(own.local / "metrics.jsonl")]
    assert rates[0] == 0 and rates[1] > rates[2] > 0  # the first of three steps is the warm-up
    before = load_policy(model.path, model).state_dict()
    after, other = (load_policy(out.local / "model", model).state_dict() for out in (own, packed))
    adapted = PeftModel.from_pretrained(load_policy(model.path, model), packed.local / "model_adapter")
    by_peft = adapted.merge_and_unload().state_dict()
    assert before.keys() == after.keys() == other.keys() == by_peft.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj.weight" in name}
    for name in before:
        torch.testing.assert_close(other[name], after[name], atol=1e-4, rtol=0)
        torch.testing.assert_close(by_peft[name], other[name])


def packed_count(out):
    """Into how many sequences the rows are packed."""
    from lm_mixup.train.sft_worker import train_rows

    return len(train_rows(out.read(), SftConfig(packing=True, max_length=96)))


def test_a_run_that_is_done_is_not_done_again(undisturbed, mixture, model):
    out, outcome = undisturbed
    stamp = (out.local / "model" / "config.json").stat().st_mtime_ns
    config = CONFIG.model_copy(update={"max_steps": 30, "save_steps": 10})
    assert sft(mixture, out, config, model, seed=7).metrics == outcome.metrics
    assert (out.local / "model" / "config.json").stat().st_mtime_ns == stamp


def test_what_cannot_be_trained_is_an_input_error(undisturbed, tmp_path, mixture, model):
    with pytest.raises(InputError, match=r"sft\.max_length"):
        run_sft(tmp_path / "short", mixture, model, max_length=16)
    shutil.copytree(undisturbed[0].local, tmp_path / "wide" / "sft")
    with pytest.raises(InputError, match=r"sft requests 1 workers of 99 CPUs each.*the cluster has 2 CPUs"):
        continued(tmp_path / "wide", mixture, model, 0, cpus_per_worker=99, placement_timeout_s=1)


def test_what_a_worker_refuses_is_one_line_and_not_tried_again(ray_session, tmp_path, mixture, model):
    """Config and tokenizer are there, so it is a worker that finds no weights."""
    shutil.copytree(model.path, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(InputError, match=r"^model.path \S+base: .*safetensors"):
        run_sft(tmp_path, mixture, ModelConfig(path=str(tmp_path / "base")), max_steps=2)
    job = SftJob(
        RunDir(tmp_path).stage("sft"), CONFIG, ModelConfig(path="a model that none would load"), "", 0
    )
    with pytest.raises(InputError, match=r"^model.path \S+base: "):
        _train_loop({"job": job, "log_place": None})  # as Ray Train calls it once more
