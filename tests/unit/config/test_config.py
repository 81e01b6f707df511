"""The configuration: what is refused, how overrides apply, and what decides a fingerprint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from lm_mixup.config import Config, RateConfig, Section
from lm_mixup.config.load import load_config, recipes
from lm_mixup.core.errors import InputError
from lm_mixup.pipeline import _tell_unused


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grop: {beta: 1}", "grop: unknown key; did you mean grpo?"),
        ("grpo: {num_generation: 4}", "grpo.num_generation: unknown key; did you mean num_generations?"),
        ("rewards: {weights: {qualty: 1}}", "rewards.weights.qualty: unknown key; did you mean quality?"),
        ("rewards: {task_weights: {mcq: {fromat: 1}}}", "did you mean format?"),
        (
            "rewards: {task_weights: {mcq: {quality: 0.3}}}",
            "a whole set of weights; add alignment, faithfulness, format",
        ),
        ("rewards: {weights: {quality: .nan}}", "rewards.weights.quality"),
        ("rewards: {weights: {format: .inf}}", "rewards.weights.format"),
        ("rewards: {custom: {mine: {url: 'http://h/?key=S', weight: 1}}}", "must not have a query"),
        ("sft: {lora: {rank: 4}}", "sft.lora.rank: unknown key"),
        ("sft: {learning_rate: fast}", "sft.learning_rate"),
        ("grpo: {mode: sideways}", "grpo.mode"),
        ("cluster: {min_size: 6, max_size: 5}", "min_size must not exceed max_size"),
        ("build: {task_mix: {qa: 0}}", "not all zero"),
        ("build: {task_mix: {essay: 1}}", "build.task_mix"),
        ("select: {budget: 200%}", "at most 100%"),
        ("select: {budget: much}", "budget is a number of rows or a percentage"),
        ("select: {method: ds2, neighbors: 17}", "must not exceed neighbors.k (16)"),
        ("select: {stratify_by: topic}", "select.stratify_by"),
        ("select: {perplexity: {taek: low}}", "did you mean take?"),
        ("sft: {batch_size: 10, micro_batch_size: 4}", "multiple of micro_batch_size"),
        ("sft: {max_steps: 0}", "max_steps must be -1 (derived from epochs) or above 0"),
        ("finetune: {max_steps: -5}", "max_steps"),
        ("sft: {offload: true, zero_stage: 0}", "offload needs zero_stage"),
        ("sft: {patience: 3, eval_rows: 0}", "need evaluations"),
        ("sft: {lr_scheduler: cosine_with_min_lr}", "needs lr_scheduler_kwargs"),
        ("finetune: {micro_batch_size: 3}", "multiple of micro_batch_size"),
        ("grpo: {num_generations: 1}", "grpo.num_generations"),
        ("grpo: {learner_ranks: 9, prompts_per_step: 2}", "must not be less than learner_ranks"),
        ("grpo: {keep_best: true, eval_prompts: 0}", "keep_best needs validations"),
        ("grpo: {dual_clip: 3, loss: cispo}", "dual_clip has no effect on loss cispo"),
        ("grpo: {dual_clip: 1.2, epsilon_high: 0.3}", "dual_clip must be above 1 + epsilon_high"),
        ("grpo: {kl_in: reward, advantage: gdpo}", "kl_in reward needs"),
        ("grpo: {kl_estimator: k1}", "k1 has no effect in the loss"),
        ("grpo: {warmup_steps: 9, max_steps: 8}", "warmup_steps must not be more"),
        ("rate: {model: judge}", "rate: model or base_url is set but not backend"),
        ("teacher: {base_url: 'http://h'}", "teacher: model or base_url is set but not backend"),
        ("rate: {backend: vllm, request: {top_p: 0.9}}", "request.top_p: backend vllm knows temperature and"),
        ("rate: {backend: vllm, request: {temperature: hot}}", "request.temperature must be a number"),
        ("rate: {backend: vllm, max_tokens: 64, max_model_len: 64}", "must be less than max_model_len (64)"),
        ("- a\n- b", "must be a mapping of sections, not a list"),
        ("just words", "must be a mapping of sections, not a str"),
        ("a: [1, 2", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_bad_configs_say_what_and_where_on_one_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(InputError) as caught:
        load_config(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


KEY, PASSWORD = "sk-live-ABCDEF0123456789", "pass-word"
URL = f"https://me:{PASSWORD}@host/v1"


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (f"rate: {{api_key_env: {KEY}}}", []),
        ("rate: {api_key_env: gsk_AbCdEf0123}", []),
        (f"rate: {{api_key_env: [{KEY}]}}", []),
        (f"rewards: {{custom: {{mine: {{url: 'http://h', weight: 1, api_key_env: {KEY}}}}}}}", []),
        (f"rate: {{base_url: 'https://h/v1?api-key={KEY}'}}", []),
        (f"rate: {{base_url: ['{URL}']}}", []),
        (f"rate: {{base_url: '{URL}', max_cost: 1}}", []),
        (f"rate: {{base_url: {URL}: 1}}", []),
        (f"rate: {URL}", []),
        (f"rate: ['{URL}']", []),
        (f"rate: {{max_tokens: {'x' * 60}{URL}}}", []),
        ("", [f"rate={URL}"]),
        ("", [f"rate.base_url {URL}"]),
        ("", [f"rate.base_url=[{URL}"]),
        ("rate: 1", [f"rate.base_url={URL}"]),
        ("", [f"rate.api_key_env={KEY}"]),
    ],
)
def test_no_error_shows_a_key_or_password(tmp_path: Path, text: str, overrides: list[str]):
    with pytest.raises(InputError) as caught:
        load_config(write(tmp_path, text), overrides)
    for secret in (KEY, "sk-live", "gsk_", PASSWORD, "pass"):
        assert secret not in str(caught.value)


def test_a_key_in_place_of_its_variable_is_refused_unseen():
    with pytest.raises(ValueError, match="NAME of an environment variable") as direct:
        RateConfig(api_key_env=KEY)
    assert KEY not in str(direct.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rate: {backend: offline, model: m, max_cost: 1, price_per_million: {input: 1}}",
         "rate.backend is offline: these settings have no effect: model, price_per_million, max_cost"),
        ("teacher: {backend: vllm, model: m, base_url: 'http://h', concurrency: 4}",
         "teacher.backend is vllm: these settings have no effect: base_url, concurrency"),
        ("rate: {backend: openai, model: m, max_model_len: 4096}",
         "rate.backend is openai: these settings have no effect: max_model_len"),
        ("rate: {backend: openai, model: m, max_tokens: 300, timeout_s: 9, request: {seed: 1}}", ""),
        ("teacher: {backend: vllm, model: m, dtype: bfloat16, num_cpus: 2, max_tokens: 300}", ""),
    ],
)  # fmt: skip
def test_settings_of_another_backend_are_told(tmp_path: Path, capsys, text: str, told: str):
    _tell_unused(load_config(write(tmp_path, text)))
    out, err = capsys.readouterr()
    assert " ".join((out + err).split()) == told


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_overrides_are_yaml(tmp_path: Path):
    path = write(tmp_path, "grpo: {beta: 0.5}")
    config = load_config(
        path, ["grpo.max_steps=7", "select.budget=5%", "rewards.weights.format=0.0", "seed=3"]
    )
    assert config.grpo.beta == 0.5
    assert config.grpo.max_steps == 7
    assert config.select.budget == "5%"
    assert config.rewards.weights.format == 0.0
    assert config.seed == 3


@pytest.mark.parametrize(
    "text",
    [
        "a #b.jsonl",
        "*.jsonl",
        "[v2]/x.jsonl",
        "2024",
        "on",
        "a: b",
        "~",
        "{x}",
        "-",
        "'q'",
        " two words ",
        "&a",
        "é",
    ],
)
def test_an_override_of_a_text_is_the_text_as_it_stands(tmp_path: Path, text: str):
    assert load_config(write(tmp_path, ""), [f"augment.pool={text}"]).augment.pool == text
    assert load_config(write(tmp_path, ""), [f"augment.policy={text}"]).augment.policy == text
    assert load_config(write(tmp_path, ""), [f"report.title={text}"]).report.title == text


def test_an_override_unsets_a_text_with_null(tmp_path: Path):
    path = write(tmp_path, "augment: {policy: nano}")
    assert load_config(path, ["augment.policy=null"]).augment.policy is None
    assert load_config(path, ["augment.pool=null"]).augment.pool == "null"  # it is never unset
    assert load_config(path, ["ingest.columns={prompt: q}"]).ingest.columns == {"prompt": "q"}
    assert load_config(path, ["select.budget=5"]).select.budget == 5


def test_a_recipe_is_found_by_its_name(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart") == load_config(recipes()["quickstart"])
    with pytest.raises(InputError, match="did you mean quickstart"):
        load_config("quikstart")


@pytest.mark.parametrize("override", ["grpo.beta", "=3", "seed.x=1", "grpo=[", "grpo.betta=1"])
def test_bad_overrides_are_refused(tmp_path: Path, override: str):
    with pytest.raises(InputError):
        load_config(write(tmp_path, "seed: 1"), [override])


def test_an_empty_file_is_the_default(tmp_path: Path):
    assert load_config(write(tmp_path, "")) == Config()


def test_the_resolved_config_reads_back(tmp_path: Path):
    text = yaml.safe_dump(Config().model_dump(mode="json"))
    assert load_config(write(tmp_path, text)) == Config()


def test_resources_do_not_decide_the_output():
    base = Config()
    more = Config.model_validate(
        {
            "embedder": {"num_actors": 7},
            "grpo": {"rollout_actors": 3, "micro_tokens": 512},
            "rate": {"api_key_env": "ANOTHER_NAME"},
            "sft": {"num_workers": 4, "micro_batch_size": 2, "gradient_checkpointing": True},
        }
    )
    assert base.sft.identity() == more.sft.identity()
    assert base.embedder.identity() == more.embedder.identity()
    assert base.grpo.identity() == more.grpo.identity()
    assert base.rate.identity() == more.rate.identity()
    assert base.grpo.identity() != Config.model_validate({"grpo": {"beta": 0.5}}).grpo.identity()


def test_every_field_of_a_public_section_is_refused_when_misspelt():
    for name, info in Config.model_fields.items():
        if isinstance(info.annotation, type) and hasattr(info.annotation, "model_fields"):
            with pytest.raises(ValueError, match="Extra inputs"):
                Config.model_validate({name: {"surely_no_such_key": 1}})


def test_every_field_is_documented():
    def undocumented(section: type[Section], path: str) -> list[str]:
        found = []
        for name, info in section.model_fields.items():
            kinds = [info.annotation, *get_args(info.annotation)]
            sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
            for kind in sections:
                found += undocumented(kind, f"{path}{name}.")
            if not info.description and not any(kind.__doc__ for kind in sections):
                found.append(f"{path}{name}")
        return found

    assert undocumented(Config, "") == []


@pytest.mark.parametrize("module", ["lm_mixup.config", "lm_mixup.cli", "lm_mixup.core.task_types"])
def test_light_modules_import_nothing_heavy(module: str):
    heavy = ("torch", "ray", "vllm", "deepspeed", "pyarrow")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_identity_is_json():
    for name in Config.model_fields:
        section = getattr(Config(), name)
        if hasattr(section, "identity"):
            json.dumps(section.identity())
