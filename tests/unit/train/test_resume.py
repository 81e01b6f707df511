"""The SFT trainer goes on as one that was never stopped; in one process, without Ray and DeepSpeed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, TrainerCallback
from trl import SFTConfig as TrlConfig

from lm_mixup.config import ModelConfig
from lm_mixup.core.errors import InputError
from lm_mixup.demo.nano import create_nano
from lm_mixup.models.policy import load_policy, load_tokenizer
from lm_mixup.train.callbacks import MetricsLog
from lm_mixup.train.sft_worker import OrderedTrainer
from lm_mixup.train.tracking import read_metrics, trim_metrics

ROWS = 16  # their first tokens tell them apart
STEPS = 4  # of an epoch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("resume") / "tiny"
    sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 1, "intermediate_size": 32}
    return str(create_nano(folder, ["some text to train on"] * 9, 0, vocab_size=300, **sizes))


class Share(OrderedTrainer):
    """The trainer of the second of two ranks, alone: it reads that rank's share, as accelerate cuts it."""

    def get_train_dataloader(self) -> DataLoader:
        self.seen: list[list[int]] = []
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size // 2,
            sampler=self._get_train_sampler(),
            collate_fn=self.data_collator,
        )
        shares = {"num_processes": 2, "process_index": 1, "put_on_device": False}
        return prepare_data_loader(loader, use_seedable_sampler=False, **shares)

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.seen.append(inputs["input_ids"][:, 0].tolist())
        return super().training_step(model, inputs, num_items_in_batch)


def trained(
    model: str,
    out: Path,
    resume: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    evaluated: list[dict] | None = None,
    **settings,
) -> Share:
    """A trainer that has trained, four rows a step, two of them on its rank."""
    rows = [{"input_ids": [n, 5, 6], "labels": [n, 5, 6], "length": 3} for n in range(ROWS)]
    arguments = TrlConfig(
        output_dir=str(out),
        per_device_train_batch_size=ROWS // STEPS,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        restore_callback_states_from_checkpoint=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        **settings,
    )
    trainer = Share(
        model=load_policy(model, ModelConfig()),
        args=arguments,
        processing_class=load_tokenizer(model, ModelConfig()),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(evaluated or rows[:2]),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=str(out / f"checkpoint-{resume}") if resume else None)
    return trainer


def test_a_rank_that_resumes_inside_the_second_epoch_ends_as_if_it_had_not_stopped(model, tmp_path):
    settings = {"max_steps": 2 * STEPS, "save_steps": STEPS + 1, "logging_steps": 3}
    log = tmp_path / "metrics.jsonl"
    whole = trained(model, tmp_path, None, [MetricsLog(log)], **settings)
    assert [len(rows) for rows in whole.seen] == [2] * 2 * STEPS
    assert whole.seen[:STEPS] != whole.seen[STEPS:]
    lines = read_metrics(log)
    trim_metrics(log, STEPS + 1)
    resumed = trained(model, tmp_path, STEPS + 1, [MetricsLog(log)], **settings)
    assert resumed.seen == whole.seen[STEPS + 1 :]
    assert [line["step"] for line in lines] == [3, STEPS + 1, 6, 2 * STEPS]
    assert lines[-1]["num_tokens"] == 2 * ROWS // 2 * 3
    for line, other in zip(lines, read_metrics(log), strict=True):
        assert [line[key] for key in ("step", "num_tokens")] == [other[key] for key in ("step", "num_tokens")]
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-5)


@pytest.mark.parametrize("stops_early", [False, True])
def test_a_resume_from_the_last_checkpoint_trains_no_further(model, tmp_path, stops_early):
    settings = {"max_steps": 2, "save_steps": 1, "logging_steps": 100}
    if stops_early:
        evaluation = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_loss"}
        settings |= {"max_steps": 9, **evaluation}
    log = tmp_path / "metrics.jsonl"
    for resume in (None, 2):
        hopeless = [EarlyStoppingCallback(1, 100.0)] if stops_early else []  # to which nothing is progress
        trainer = trained(model, tmp_path, resume, [MetricsLog(log), *hopeless], **settings)
        assert trainer.state.global_step == 2
        assert [line["step"] for line in read_metrics(log) if "loss" in line] == [1, 2]
    assert trainer.seen == []


def test_a_run_that_diverges_says_so_and_is_no_model(model, tmp_path):
    log = tmp_path / "metrics.jsonl"
    settings = {"max_steps": 6, "save_steps": 1, "logging_steps": 6, "learning_rate": 1e38}
    with pytest.raises(
        InputError, match=r"loss is nan at step \d: training has diverged. Lower learning_rate"
    ):
        trained(model, tmp_path, None, [MetricsLog(log)], logging_nan_inf_filter=False, **settings)
    steps = [line["step"] for line in read_metrics(log)]
    assert [int(path.name.split("-")[1]) for path in sorted(tmp_path.glob("checkpoint-*"))] == steps


def test_the_held_out_loss_is_per_target_token_however_it_is_cut(model, tmp_path):
    rows = [
        {
            "input_ids": [n, *range(7, 7 + n)],
            "labels": [-100] * (n // 2) + [9] * (n + 1 - n // 2),
            "length": n + 1,
        }
        for n in range(3, 10)
    ]
    losses = []
    for micro in (1, 3, 8):
        settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no"}
        log = tmp_path / f"{micro}.jsonl"
        trainer = trained(
            model, tmp_path, None, [MetricsLog(log)], rows, per_device_eval_batch_size=micro, **settings
        )
        losses.append([line["eval_loss"] for line in read_metrics(log) if "eval_loss" in line])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] == pytest.approx(losses[2], abs=1e-5)
    by_hand, tokens = 0.0, 0
    for row in rows:
        labels = torch.tensor(row["labels"][1:])
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        by_hand += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        tokens += int((labels != -100).sum())
    assert losses[0][-1] == pytest.approx(by_hand / tokens, abs=1e-5)
