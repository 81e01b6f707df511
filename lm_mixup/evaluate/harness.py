"""lm-eval as the stage `benchmark` uses it: which tasks there are, and one task of one model."""

from __future__ import annotations

import importlib.util
import logging
import socket
import tempfile
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_mixup.config import BenchmarkConfig, ModelConfig
from lm_mixup.core.errors import InputError
from lm_mixup.evaluate.local_tasks import FILES, KEY, files_for, missing_files, write_local_tasks

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

_HUB = ("huggingface.co", 443)


def check_tasks(config: BenchmarkConfig) -> None:
    """Refuses, before anything is started, tasks that are not there or whose data cannot be read.

    Raises:
        InputError: lm-eval is not installed, a task is unknown, or a task needs the Hub and cannot reach it.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(
            "benchmark: lm-eval is not installed; pip install 'lm-mixup[eval]' or leave benchmark.tasks empty"
        )
    if config.include_path is not None and not Path(config.include_path).expanduser().is_dir():
        raise InputError(f"benchmark.include_path: there is no folder {config.include_path}")
    lacking = set(FILES) if config.data_dir is None else set(missing_files(config.data_dir))
    if config.data_dir is not None and lacking == set(FILES):
        raise InputError(f"{KEY} {config.data_dir}: holds none of {', '.join(FILES)}")
    manager = open_tasks(config.include_path)
    asked: dict[str, bool] = {}
    for task in config.tasks:
        for _, definition in leaves_of(manager, task).values():
            files = files_for(definition)
            dataset = str(definition.get("dataset_path") or "")
            if files and not lacking.intersection(files):
                continue
            if config.data_dir is not None and files:
                missing = ", ".join(file for file in files if file in lacking)
                raise InputError(f"{KEY} {config.data_dir}: {task} needs {missing}, which is not there")
            if "/" not in dataset or Path(dataset).exists():
                continue  # `json` and other loaders of files, or a folder
            if dataset not in asked:
                asked[dataset] = _hub_answers(dataset)
            if not asked[dataset]:
                remedy = f", or set {KEY} to a folder with {' and '.join(files)}" if files else ""
                raise InputError(
                    f"benchmark.tasks: {task} reads {dataset} from the Hugging Face Hub, which does not "
                    f"answer; connect to it{remedy}"
                )
    if isinstance(config.num_fewshot, dict):  # of a task that is not asked for now it may say what it likes
        for task in config.num_fewshot:
            leaves_of(manager, task, "benchmark.num_fewshot")


def _hub_answers(dataset: str) -> bool:
    """Whether the data set is in the local cache, or the Hub can be connected to."""
    from datasets import config as datasets_config

    cached = Path(datasets_config.HF_DATASETS_CACHE) / dataset.replace("/", "___")
    if cached.is_dir():
        return True
    if datasets_config.HF_HUB_OFFLINE:
        return False
    try:
        socket.create_connection(_HUB, timeout=5).close()
    except OSError:
        return False
    return True


def open_tasks(include_path: str | Path | None, *, include_defaults: bool = True) -> TaskManager:
    """The tasks of lm-eval and of a folder, whose tasks hide those of lm-eval that are called alike."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    path = None if include_path is None else str(Path(include_path).expanduser())
    return TaskManager(include_path=path, include_defaults=include_defaults)


def leaves_of(
    manager: TaskManager, task: str, key: str = "benchmark.tasks"
) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """The tasks that a task, group or tag stands for: by name the file of each and its definition.

    Raises:
        InputError: There is no such task.
    """
    if Path(task).suffix in (".yaml", ".yml"):
        if not Path(task).is_file():
            raise InputError(f"{key}: there is no file {task}")
        return {}
    if task not in manager.task_index:
        close = get_close_matches(task, manager.all_tasks, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; `lm_eval ls tasks` lists them"
        raise InputError(f"{key}: lm-eval has no task {task}{hint}")
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    waiting = [task]
    while waiting:
        entry = manager.task_index.get(waiting.pop())
        if entry is None:
            continue
        if entry.kind.name == "TAG":
            waiting += sorted(entry.tags)
        elif entry.kind.name == "GROUP":
            members = (entry.cfg or {}).get("task", [])
            listed = [members] if isinstance(members, str) else members
            waiting += [name if isinstance(name, str) else name.get("task", "") for name in listed]
        else:
            found[entry.name] = (str(entry.yaml_path), entry.cfg or {})
    return found


class Harness:
    """Runs tasks on models; the last model stays loaded.

    Task files over local data lie in a temporary folder, which is removed with the harness.

    Args:
        config: The `benchmark` section.
        model: Data type, revision and trust of what is loaded.
        seed: Of the draws of examples.
    """

    def __init__(self, config: BenchmarkConfig, model: ModelConfig, seed: int) -> None:
        self._config, self._model, self._seed = config, model, seed
        self._tasks = open_tasks(config.include_path)
        if config.data_dir is not None:
            named = (leaves_of(self._tasks, task).items() for task in config.tasks)
            leaves = {name: leaf for items in named for name, leaf in items}
            self._folder = tempfile.TemporaryDirectory(prefix="lm-mixup-benchmark-")
            write_local_tasks(config.data_dir, leaves, Path(self._folder.name))
            own = open_tasks(self._folder.name, include_defaults=False).task_index
            # The tasks alone: a tag that is made of them would hide the whole one.
            self._tasks.task_index.update({name: own[name] for name in leaves if name in own})
        self._loaded: tuple[str, LM] | None = None

    def run(self, path: str, task: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The results of a task, of its sub-tasks and groups, a row a metric; and every question's sample."""
        from lm_eval import simple_evaluate

        found = simple_evaluate(
            model=self._load(path),
            tasks=[task],
            num_fewshot=self._config.fewshot_of(task),
            limit=self._config.limit,
            apply_chat_template=self._config.chat_template,
            fewshot_as_multiturn=self._config.chat_template,
            task_manager=self._tasks,
            random_seed=self._seed,
            numpy_random_seed=self._seed,
            torch_random_seed=self._seed,
            fewshot_random_seed=self._seed,
        )
        assert found is not None  # noqa: S101 - this process is the only one
        samples = [{"task": name, **sample} for name, rows in found["samples"].items() for sample in rows]
        return rows_of(found, path, task), samples

    def _load(self, path: str) -> LM:
        if self._loaded is None or self._loaded[0] != path:
            self._loaded = None  # before the next one is loaded, not after
            self._loaded = (path, self._open(path))
        return self._loaded[1]

    def _open(self, path: str) -> LM:
        import torch

        from lm_mixup.models.hub import fetch_model
        from lm_mixup.models.policy import policy_dtype

        chosen = self._config
        dtype = str(policy_dtype(self._model)).removeprefix("torch.")
        options: dict[str, Any] = {
            "pretrained": fetch_model(path, self._model.revision, "benchmark.model"),
            "dtype": dtype,
            "revision": self._model.revision or "main",
            "trust_remote_code": self._model.trust_remote_code,
        }
        if chosen.backend == "vllm":
            from lm_eval.models.vllm_causallms import VLLM

            if not torch.cuda.is_available():
                import torch._dynamo.config

                torch._dynamo.config.disable = True  # as the engine of rollouts does on CPU
            vllm: LM = VLLM(
                **options,
                max_model_len=chosen.max_length,
                tensor_parallel_size=chosen.tensor_parallel_size,
                gpu_memory_utilization=chosen.gpu_memory_utilization,
                batch_size="auto",
                seed=self._seed,
            )
            return vllm
        from lm_eval.models.huggingface import HFLM

        loaded: LM = HFLM(
            **options,
            device="cuda" if torch.cuda.is_available() else "cpu",
            batch_size=chosen.batch_size,
            max_length=chosen.max_length,
            parallelize=torch.cuda.is_available() and chosen.tensor_parallel_size > 1,
        )
        return loaded


def rows_of(found: Mapping[str, Any], path: str, task: str) -> list[dict[str, Any]]:
    """A row for each metric of lm-eval's `results` and `groups`, as `RESULT` has them."""
    counts: Mapping[str, Any] = found.get("n-samples", {})
    rows: list[dict[str, Any]] = []
    for name, figures in (found["results"] | found.get("groups", {})).items():
        leaves = _leaves(found.get("group_subtasks", {}), name)
        for metric, value in figures.items():
            kind, _, filtered = metric.partition(",")
            if not isinstance(value, int | float) or kind.endswith("_stderr") or "," not in metric:
                continue
            stderr = figures.get(f"{kind}_stderr,{filtered}")
            rows.append(
                {
                    "model": path,
                    "benchmark": task,
                    "task": name,
                    "metric": kind if filtered == "none" else f"{kind},{filtered}",
                    "value": float(value),
                    "stderr": float(stderr) if isinstance(stderr, int | float) else None,
                    "questions": sum(counts[leaf]["effective"] for leaf in leaves if leaf in counts),
                    "num_fewshot": found.get("n-shot", {}).get(name),
                    "version": str(found.get("versions", {}).get(name, "")),
                }
            )
    return rows


def _leaves(members: Mapping[str, Sequence[str]], name: str) -> list[str]:
    """The tasks of a group, or the task itself."""
    inner = members.get(name)
    return [leaf for child in inner for leaf in _leaves(members, child)] if inner else [name]
