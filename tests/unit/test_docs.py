"""What documents and cluster files say is true: commands parse, configs take the keys, files exist."""

import dataclasses
import importlib.util
import itertools
import json
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lm_mixup.config.load import load_config

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PICTURE = ROOT / "docs" / "report.png"
VERBS = {"build", "train", "augment", "evaluate", "run"}


def _shell_lines(text):
    """The commands of the shell blocks, continued lines joined, comments left out."""
    for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def _pipeline_arguments():
    """The arguments of every `lm-mixup …` and `jobs/pipeline.py …` in documents, jobs and cluster files."""
    commands = [words for path in DOCUMENTS for words in _shell_lines(path.read_text(encoding="utf-8"))]
    commands.append(re.search(r"\t.*(lm-mixup run .*)", (ROOT / "Makefile").read_text())[1].split())
    for words in commands:
        for place, word in enumerate(words):
            if word == "lm-mixup" or word.endswith("jobs/pipeline.py"):
                yield words[place + 1 :]
                break


ARGUMENTS = list(_pipeline_arguments())


def test_documents_hold_commands():
    assert {arguments[0] for arguments in ARGUMENTS} >= {"run", "augment", "status", "config"}


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=" ".join)
def test_command_parses(arguments):
    cli = pytest.importorskip("lm_mixup.cli")
    import typer.main

    group = typer.main.get_command(cli.app)
    context = group.make_context("lm-mixup", list(arguments), resilient_parsing=False)
    name, command, rest = group.resolve_command(context, list(arguments))
    parsed = command.make_context(name, rest, parent=context)
    assert parsed.params


@pytest.mark.parametrize("arguments", [a for a in ARGUMENTS if a[0] in VERBS | {"config"}], ids=" ".join)
def test_config_of_a_command_loads_with_its_overrides(arguments):
    path = arguments[1].removeprefix("/opt/lm_mixup/")
    overrides = [value for flag, value in itertools.pairwise(arguments) if flag == "--set"]
    config = load_config(ROOT / path if "/" in path else path, overrides)
    assert config.seed == 0


def test_the_reward_of_the_guide_scores_and_its_config_loads(tmp_path, monkeypatch):
    from lm_mixup.rewards.batch import RewardBatch
    from lm_mixup.rewards.custom import CustomRewards

    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (settings,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(code)
    (tmp_path / "c.yaml").write_text(settings)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    custom = load_config("c.yaml").rewards.custom
    assert (custom["brevity"].task_weights, custom["factual"].weight) == ({"cs": 0.0}, -0.5)
    batch = RewardBatch(["qa"] * 2, ["a" * 4, "a" * 50], ["r"] * 2, [0, 0], [["b" * 8, "c" * 8]] * 2)
    rewards = CustomRewards({"brevity": custom["brevity"]})
    assert rewards.score(batch)["brevity"].tolist() == [0.75, 0.0]
    table = text.split("| field | row i is |")[1].split("\n\n")[0]
    fields = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert set(fields) == {field.name for field in dataclasses.fields(RewardBatch)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_linked_and_named_files_exist(document):
    text = document.read_text(encoding="utf-8")
    linked = [document.parent / link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:configs|cluster|jobs|tests|benchmarks|lm_mixup)/[\w./-]+)`", text)
    missing = [path for path in (*linked, *(ROOT / name for name in named)) if not path.exists()]
    assert [path for path in missing if path.resolve() != PICTURE] == []


def test_every_promise_of_security_has_its_test():
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 20
    for path, function in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in source, f"{path}::{function}"
    lines = [line for line in text.splitlines() if line.startswith("| ") and "| promise |" not in line]
    assert all("`tests/" in line for line in lines)


def test_documents_name_every_config_and_cluster_file():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    guide = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    configs = [str(path.relative_to(ROOT)) for path in ROOT.glob("configs/*.yaml")]
    files = [str(path.relative_to(ROOT)) for path in (*ROOT.glob("cluster/*"), *ROOT.glob("jobs/*.py"))]
    assert [name for name in configs if name not in readme] == []
    assert [name for name in files if name not in readme + guide] == []
    tree = [
        path.name for kind in ("overlays", "components") for path in (ROOT / "cluster/k8s" / kind).iterdir()
    ]
    assert [name for name in tree if not re.search(rf"`(components/)?{name}`", guide)] == []


def test_ray_up_asks_for_a_token_on_machines_that_are_pinned():
    up = yaml.safe_load((ROOT / "cluster/autoscaler.yaml").read_text())
    assert "--env=RAY_AUTH_MODE=token" in up["docker"]["run_options"]
    assert any(path.endswith("/.ray/auth_token") for path in up["file_mounts"])
    assert "--dashboard-host=127.0.0.1" in " ".join(up["head_start_ray_commands"])
    for name, kind in up["available_node_types"].items():
        node = kind["node_config"]
        assert node["ImageId"], (
            name
        )  # Ray's own default is an image too old for the driver that CUDA 13 needs
        assert node["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] >= 100, name


def test_ray_up_file_follows_rays_schema():
    jsonschema = pytest.importorskip("jsonschema")
    schema = Path(importlib.util.find_spec("ray").origin).parent / "autoscaler" / "ray-schema.json"
    config = yaml.safe_load((ROOT / "cluster/autoscaler.yaml").read_text())
    jsonschema.validate(config, json.loads(schema.read_text()))


@pytest.mark.parametrize("script", ["cluster/local.sh", ".ci/run"])
def test_script_is_valid_shell_and_executable(script):
    path = ROOT / script
    assert path.stat().st_mode & stat.S_IXUSR
    subprocess.run(["sh", "-n", str(path)], check=True)


def test_local_cluster_refuses_to_start_without_a_token():
    done = subprocess.run(
        ["sh", str(ROOT / "cluster/local.sh")], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "RAY_AUTH_TOKEN" in done.stderr
