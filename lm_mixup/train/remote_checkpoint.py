"""Checkpoints of a run at a URI: each node uploads what its ranks wrote, and fetches the whole to go on.

Trainers write into the scratch folder of their node (`StageDir.local`). A checkpoint counts once its mark is
at the URI, which is written after every node's share is there. In a local run all ranks see one folder, and
nothing is copied.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lm_mixup.core.run_dir import StageDir


def is_first_of_node() -> bool:
    """Whether this rank is the first on its node. A collective call of all ranks."""
    import ray
    import torch.distributed as dist

    mine = ray.get_runtime_context().get_node_id()
    nodes: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(nodes, mine)
    return nodes.index(mine) == dist.get_rank()


def upload_shares(out: StageDir, name: str) -> None:
    """Uploads a checkpoint, each node its ranks' share, and drops older ones here. A collective call."""
    import torch.distributed as dist

    if out.run.is_local:
        return
    if is_first_of_node():
        out.upload(f"checkpoints/{name}")
        for other in (out.local / "checkpoints").iterdir():
            if other.name != name and other.is_dir():
                shutil.rmtree(other)
    dist.barrier()


def fetch_checkpoint(out: StageDir, name: str | None) -> None:
    """Leaves the checkpoint of this name, as it is at the URI, and no other on every node. A collective call.

    Args:
        name: None for none.
    """
    import torch.distributed as dist

    if out.run.is_local:
        return
    if is_first_of_node():
        shutil.rmtree(out.local / "checkpoints", ignore_errors=True)
        if name is not None:
            out.fetch(f"checkpoints/{name}")
    dist.barrier()


def newest_complete(out: StageDir, mark: str) -> str | None:
    """The newest checkpoint of the run directory that has its mark; their names end with their step."""
    return max(complete(out, mark), key=step_of, default=None)


def drop_oldest(out: StageDir, mark: str, limit: int) -> None:
    """Removes the checkpoints at the URI but the newest `limit`, the mark of each first."""
    for name in sorted(complete(out, mark), key=step_of)[:-limit]:
        out.run.remove(f"{out.name}/checkpoints/{name}/{mark}")
        out.run.remove(f"{out.name}/checkpoints/{name}")


def complete(out: StageDir, mark: str) -> list[str]:
    """The names of the checkpoints that have their mark."""
    names = out.run.listing(f"{out.name}/checkpoints")
    return [name for name in names if out.exists(f"checkpoints/{name}/{mark}")]


def step_of(name: str | Path | None) -> int:
    """The step of a checkpoint folder `checkpoint-N` or `step-N`; 0 for none."""
    return int(str(name).rsplit("-", 1)[-1]) if name is not None else 0


def upload_model(out: StageDir, name: str) -> None:
    """Uploads a model folder, config.json last: with it the model at the URI is whole."""
    out.upload(name, last=("config.json",))


def has_model(out: StageDir, name: str = "model") -> bool:
    """Whether a whole model is in the run directory."""
    return out.exists(name if out.run.is_local else f"{name}/config.json")
