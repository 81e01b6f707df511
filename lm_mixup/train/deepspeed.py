"""DeepSpeed as SFT and the GRPO learner use it: configuration, and whole weights from a sharded engine."""

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

_BUCKET = 200_000_000  # elements of one reduce or gather, as DeepSpeed's own guide sets it for large models


def leave_out_shared_memory_op() -> None:
    """Keeps DeepSpeed from its own all-reduce over shared memory, before it joins a process group.

    On CPU it would compile that op on the first start, wait for ever on the lock that a compiler killed at
    work left behind, and take 66 MB of /dev/shm a rank that nothing ever removes. It serves tensor-parallel
    inference; training makes no use of it.
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
    """A DeepSpeed configuration for a torch optimizer that the caller makes.

    The gradients of the ranks are averaged; a loss scaled by the global token count is multiplied by the
    number of ranks first.

    Args:
        zero_stage: 0 nothing, 1 optimizer state, 2 also gradients, 3 also parameters are sharded.
        offload: Keep the optimizer state (at stage 3 the parameters too) in host memory.
        bf16: Compute in bfloat16 with float32 master weights; else float32.
        max_grad_norm: Global norm at which gradients are clipped.
        micro_batch_size: Sequences of one forward pass on one rank.
        gradient_accumulation_steps: Forward passes of one optimizer step on one rank.
        world_size: Number of ranks.
        load_universal: Checkpoints are read as `write_universal` wrote them.

    Returns:
        The dict that `deepspeed.initialize(config=…)` and `TrainingArguments(deepspeed=…)` take.
    """
    zero: dict[str, Any] = {
        "stage": zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": False,  # sums in a fixed order: the same run twice gives the same weights
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
        "zero_optimization": zero,
        "checkpoint": {"load_universal": load_universal},
        # The optimizer is torch's AdamW on every device: DeepSpeed's CPU Adam would be compiled at first use.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


def write_universal(checkpoint: Path) -> None:
    """Writes a ZeRO checkpoint's state beside its shards once more, parameter by parameter.

    ZeRO's shards can be read by as many ranks as wrote them; this form (DeepSpeed's universal checkpoint) by
    any number, with `load_universal`.

    Args:
        checkpoint: The folder that an engine saved into; what is there already is not written again.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    tag = (checkpoint / "latest").read_text(encoding="utf-8").strip()
    target, mark = checkpoint / f"{tag}_universal", checkpoint / "latest_universal"
    if mark.is_file():
        return
    shutil.rmtree(target, ignore_errors=True)  # a killed run's half
    options = argparse.Namespace(
        input_folder=str(checkpoint / tag),
        output_folder=str(target),
        num_extract_workers=1,  # in this process: children would inherit its process group and GPU
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(options)
    write_whole(mark, target.name)


def whole_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers on the host, gathered from the ranks where ZeRO-3 shards them.

    Every rank must call it, and none inside another gather. One parameter is gathered at a time, so a GPU
    needs room for the largest one only.

    Args:
        module: The model inside the engine (`engine.module`).

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
