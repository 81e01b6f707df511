"""The precision in which the real DeepSpeed engine of a learner rank sums gradients."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

# In a process of its own: a process group is one for a process, and stays.
RANK = """
import json, sys, torch
from lm_mixup.config import GrpoConfig, ModelConfig
from lm_mixup.grpo.learner.rank import LearnerRank

torch.backends.cuda.enable_cudnn_sdp(True)
rank = LearnerRank("nano", ModelConfig(dtype="bfloat16"), GrpoConfig(zero_stage=int(sys.argv[1]), beta=0), 0)
cudnn = torch.backends.cuda.cudnn_sdp_enabled()
rank.join(0, 1, *rank_address)
print(json.dumps([*map(str, rank._engine.get_data_types()), cudnn]))
"""


def test_a_bfloat16_learner_sums_gradients_in_float32_and_leaves_cudnn_attention_alone(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    source = RANK.replace("*rank_address", f'"127.0.0.1", {port}')
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, "-c", source, "2"], capture_output=True, text=True, env=environment, check=True
    )
    assert json.loads(ended.stdout.splitlines()[-1]) == ["torch.bfloat16", "torch.float32", False]
