"""DeepSpeed for SFT and the GRPO learner: configuration, universal checkpoints, full weights."""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_mixup.core.run_dir import write_whole

if TYPE_CHECKING:
    import torch

_BUCKET = 200_000_000  # elements per reduce or gather, as DeepSpeed's guide recommends for large models


def leave_out_shared_memory_op() -> None:
    """Disables DeepSpeed's shared-memory all-reduce; call it before joining a process group.

    On CPU, DeepSpeed would compile the op at first use, wait forever on the lock of a compiler that was
    killed, and leave 66 MB per rank in /dev/shm. The op serves tensor-parallel inference, not training.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def deepspeed_config(
    *,
    zero_stage: int,
    offload: bool,
    bf16: bool,
    max_grad_norm: float,
    micro_batch_size: int,
    gradient_accumulation_steps: int = 1,
    world_size: int = 1,
    load_universal: bool = False,
) -> dict[str, Any]:
    """A DeepSpeed configuration for a torch optimizer created by the caller.

    DeepSpeed averages gradients over ranks, so a loss divided by the global token count must be multiplied by
    the number of ranks.

    Args:
        zero_stage: 0 shards nothing, 1 the optimizer state, 2 also gradients, 3 also parameters.
        offload: Keep the optimizer state (at stage 3 the parameters too) in host memory.
        bf16: Compute in bfloat16 with float32 master weights; else float32.
        max_grad_norm: Global norm at which gradients are clipped.
        micro_batch_size: Sequences per forward pass on one rank.
        gradient_accumulation_steps: Forward passes per optimizer step on one rank.
        world_size: Number of ranks.
        load_universal: Load checkpoints written by `write_universal`.

    Returns:
        The dict that `deepspeed.initialize(config=…)` and `TrainingArguments(deepspeed=…)` take.
    """
    zero: dict[str, Any] = {
        "stage": zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": False,  # keeps the order of sums fixed, so that a repeated run gives the same weights
        "reduce_bucket_size": _BUCKET,
        "allgather_bucket_size": _BUCKET,
    }
    if zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": _BUCKET,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    if offload and zero_stage > 0:
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload and zero_stage == 3:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_batch_size": micro_batch_size * gradient_accumulation_steps * world_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": bf16},
        # In bfloat16 a sum loses what is below 1/256 of it, so micro-batches are summed in float32. At
        # stage 0 DeepSpeed refuses that.
        "data_types": {"grad_accum_dtype": "bf16" if bf16 and zero_stage == 0 else "fp32"},
        "zero_optimization": zero,
        "checkpoint": {"load_universal": load_universal},
        # torch's AdamW on every device: DeepSpeed's CPU Adam would be compiled at first use.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


def write_universal(checkpoint: Path) -> None:
    """Converts a ZeRO checkpoint to DeepSpeed's universal format, beside its shards.

    ZeRO shards can only be loaded by as many ranks as wrote them; the universal checkpoint, parameter by
    parameter, by any number, with `load_universal`. Does nothing if the conversion is already there.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    tag = (checkpoint / "latest").read_text(encoding="utf-8").strip()
    target, mark = checkpoint / f"{tag}_universal", checkpoint / "latest_universal"
    if mark.is_file():
        return
    shutil.rmtree(target, ignore_errors=True)  # incomplete, from a killed run
    options = argparse.Namespace(
        input_folder=str(checkpoint / tag),
        output_folder=str(target),
        num_extract_workers=1,  # in this process: child processes would inherit its process group and GPU
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(options)
    write_whole(mark, target.name)


def gather_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers of `engine.module` on the host, gathered from the ranks under ZeRO-3.

    A collective call; never call it inside another gather. One parameter is gathered at a time, so a GPU
    needs room for the largest one only.

    Returns:
        Name → tensor on rank 0; an empty dict on the other ranks.
    """
    import deepspeed
    import torch
    import torch.distributed as dist

    rank = dist.get_rank() if dist.is_initialized() else 0
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        sharded = [parameter] if hasattr(parameter, "ds_id") else []
        with torch.no_grad(), deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
            if rank == 0:
                weights[name] = parameter.detach().to("cpu", copy=True)
    if rank == 0:
        persistent = set(module.state_dict()) - set(weights)
        weights |= {n: b.detach().cpu() for n, b in module.named_buffers() if n in persistent}
    return weights
