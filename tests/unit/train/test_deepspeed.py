"""DeepSpeed's settings."""

from __future__ import annotations

import pytest

from lm_mixup.train.deepspeed import deepspeed_config


@pytest.mark.parametrize(
    ("zero_stage", "bf16", "dtype"),
    [(0, True, "bf16"), (1, True, "fp32"), (2, True, "fp32"), (3, True, "fp32"), (0, False, "fp32")],
)
def test_only_stage_0_in_bfloat16_sums_gradients_in_bfloat16(zero_stage, bf16, dtype):
    config = deepspeed_config(
        zero_stage=zero_stage, offload=False, bf16=bf16, max_grad_norm=1.0, micro_batch_size=1
    )
    assert config["data_types"] == {"grad_accum_dtype": dtype}
