"""The import graph of the package: no circles, no upward imports, one door to `demo`, light start-up."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Lowest first; a folder may import folders of its own layer and of the layers below it.
LAYERS = (
    ("core", "config"),
    ("distributed", "models", "chat"),
    ("demo",),
    ("rewards", "train", "grpo", "mixture", "augment", "evaluate"),
    ("stages",),
    ("export", "report"),
    ("pipeline", "doctor"),
    ("api",),
    ("experiments",),
    ("cli", ""),  # the empty name is the root module, which loads `api` on first use
)
LEVEL = {folder: level for level, layer in enumerate(LAYERS) for folder in layer}
# Export and report read run directories; they do not depend on the code that wrote them. The alarms of a GRPO
# run are defined where its metrics are.
READERS = ("export", "report")
READERS_MAY_IMPORT = ("core", "config", "stages")
ALSO_ALLOWED = {
    ("lm_mixup.report.gather", "lm_mixup.grpo.metrics"),
    ("lm_mixup.report.gather", "lm_mixup.demo"),  # rows of the demo pool can be checked
}
HEAVY = ("torch", "vllm", "ray", "transformers", "deepspeed")


def _modules(root: Path) -> dict[str, Path]:
    found = {}
    for path in sorted((root / "lm_mixup").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Every name that a module imports, at the top, inside functions and under TYPE_CHECKING.

    The version does not count: the root module states it before anything else.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            base += [node.module] if node.module else []
            names = (".".join([*base, alias.name]) for alias in node.names)
            yield from (name for name in names if name != "lm_mixup.__version__")


def _graph(root: Path) -> dict[str, set[str]]:
    modules = _modules(root)
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = _imported(ast.parse(path.read_text("utf-8")), module, path.name == "__init__.py")
        targets = (name if name in modules else name.rpartition(".")[0] for name in names)
        graph[module] = {target for target in targets if target in modules and target != module}
    return graph


def _folder(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return _graph(ROOT)


def _upward(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports from a lower layer into a higher one."""
    edges = [(one, other) for one, others in graph.items() for other in others]
    return [(one, other) for one, other in edges if LEVEL[_folder(other)] > LEVEL[_folder(one)]]


def test_every_folder_has_a_layer(graph):
    assert {_folder(module) for module in graph} <= LEVEL.keys()


def test_there_is_no_circle(graph):
    order = list(TopologicalSorter(graph).static_order())
    assert len(order) == len(graph) > 100


def test_no_import_runs_upward(graph):
    assert _upward(graph) == []


def test_core_imports_nothing_else_of_the_package(graph):
    outside = {
        (one, other)
        for one, others in graph.items()
        for other in others
        if _folder(one) == "core" and _folder(other) != "core"
    }
    assert outside == set()


def test_demo_is_reached_through_its_door_alone(graph):
    entries = {
        other
        for one, others in graph.items()
        for other in others
        if _folder(other) == "demo" and _folder(one) != "demo"
    }
    assert entries == {"lm_mixup.demo"}


def test_report_and_export_know_rows_and_stages_alone(graph):
    wrong = {
        (one, other)
        for one, others in graph.items()
        for other in others
        if _folder(one) in READERS and _folder(other) not in (_folder(one), *READERS_MAY_IMPORT)
    }
    assert wrong == ALSO_ALLOWED


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("core/draws.py", "def f():\n    from lm_mixup.augment import embed\n"),
        ("chat/types.py", "if TYPE_CHECKING:\n    from lm_mixup.demo import Bundle\n"),
        ("augment/clustering/linkage.py", "from ...stages import stage\n"),
    ],
)
def test_an_upward_import_is_found_wherever_it_stands(tmp_path, path, text):
    for name in ("core/draws.py", "chat/types.py", "augment/clustering/linkage.py", "stages/stage.py"):
        file = tmp_path / "lm_mixup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
        for folder in (file.parent, *file.parent.parents):
            if folder != tmp_path and tmp_path in folder.parents:
                (folder / "__init__.py").touch()
    for name in ("augment/embed.py", "demo/__init__.py"):
        (tmp_path / "lm_mixup" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "lm_mixup" / name).touch()
    assert _upward(_graph(tmp_path)) == []
    (tmp_path / "lm_mixup" / path).write_text(text)
    assert len(_upward(_graph(tmp_path))) == 1


def test_a_circle_is_found():
    circle = {"lm_mixup.core.a": {"lm_mixup.core.b"}, "lm_mixup.core.b": {"lm_mixup.core.a"}}
    with pytest.raises(CycleError):
        list(TopologicalSorter(circle).static_order())


def test_config_core_and_cli_start_without_heavy_libraries(graph):
    light = sorted(module for module in graph if _folder(module) in ("config", "core", "cli"))
    code = (
        f"import importlib, sys\nfor name in {light!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
