"""Texts embedded in a second on CPU, against each backend and precision of sentence-transformers.

    python benchmarks/embedding.py [--quick] [--texts POOL.jsonl] [--threads 1]

All sides hold the same model (`minilm`) and embed the same texts in turns: every repeat times every side
once, so whatever else the machine does falls on all. Either side is represented by the fastest of its
settings that strays from the float32 vectors by a cosine of less than 0.01 at worst; all are printed. The
ratio is of texts a second of processor time, which other work on the machine disturbs least. `--texts` names
rows with `prompt` and `completion`; without it, rows of the closed world are taken.

onnx needs the packages onnxruntime, onnx and onnxscript, openvino the package openvino; what is not installed
is left out and named, and so is bfloat16 on a CPU that has to emulate it. Their graphs are made from the
loaded model here and run inside sentence-transformers' `encode`: its own export goes through optimum, whose
last release for ONNX (0.1) wants transformers below 5.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np

BATCH, MAX_LENGTH, WORST = 64, 256, 1e-2
Encode = Callable[[list[str]], np.ndarray]


def read_texts(path: Path | None, count: int) -> list[str]:
    """Some rows, as the stage `embed` writes them."""
    from lm_mixup.core import task_types

    if path is None:
        from lm_mixup.demo.pool import demo_pool

        rows = list(demo_pool(count, 0))
    else:
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
    rows = [row for row in rows if row.get("prompt") and row.get("completion")]
    chosen = np.random.default_rng(0).permutation(len(rows))[:count]
    return [task_types.write_input(rows[i]["prompt"], rows[i]["completion"]) for i in chosen]


def ours(dtype: str, threads: int) -> Any:
    from lm_mixup.config import EmbedderConfig
    from lm_mixup.models.embedder import Embedder

    config = EmbedderConfig(batch_size=BATCH, max_length=MAX_LENGTH, dtype=dtype, num_cpus=threads)
    return Embedder(config)


def load(dtype: str = "float32", attention: str = "sdpa") -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    from lm_mixup.models.resolve import embedder_folder

    kwargs = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
    model = SentenceTransformer(embedder_folder("minilm"), device="cpu", model_kwargs=kwargs)
    model.max_seq_length = MAX_LENGTH
    return model


def encode_with(model: Any) -> Encode:
    """`encode` and unit vectors in float32, as `Embedder` gives them."""

    def encode(texts: list[str]) -> np.ndarray:
        vectors = model.encode(texts, batch_size=BATCH, show_progress_bar=False).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return encode


def replace_forward(model: Any, run: Callable[[dict[str, np.ndarray]], np.ndarray]) -> Encode:
    """sentence-transformers with another runtime for the transformer itself."""
    import torch

    names = ("input_ids", "attention_mask", "token_type_ids")

    def forward(**features: Any) -> dict[str, Any]:
        return {"last_hidden_state": torch.from_numpy(run({name: features[name].numpy() for name in names}))}

    model[0].model.forward = forward
    return encode_with(model)


def example() -> tuple[Any, ...]:
    import torch

    tokens = torch.randint(1000, 2000, (2, 16))
    return tokens, torch.ones_like(tokens), torch.zeros_like(tokens)


def onnx(threads: int, int8: bool) -> Encode:
    import onnxruntime
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = load(attention="eager")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    free = {name: {0: "batch", 1: "tokens"} for name in [*names, "last_hidden_state"]}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        outputs = ["last_hidden_state"]
        torch.onnx.export(
            _traced(model[0].model), example(), path, input_names=names, output_names=outputs,
            dynamic_axes=free, dynamo=False,
        )  # fmt: skip
        if int8:  # as sentence-transformers' `export_dynamic_quantized_onnx_model` does
            path = f"{folder}/int8.onnx"
            quantize_dynamic(f"{folder}/model.onnx", path, weight_type=QuantType.QInt8, per_channel=True)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return replace_forward(model, lambda inputs: session.run(None, inputs)[0])


def openvino(threads: int, dtype: str) -> Encode:
    import openvino as ov

    model = load(attention="eager")
    graph = ov.convert_model(_traced(model[0].model), example_input=example())
    hints = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": dtype,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = ov.Core().compile_model(graph, "CPU", hints)
    return replace_forward(model, lambda inputs: compiled(list(inputs.values()))[0])


def _traced(backbone: Any) -> Any:
    """The transformer as a module of three positional tensors, to be traced."""
    import torch

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, ids: Any, mask: Any, types: Any) -> Any:
            return self.backbone(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state

    return Traced().eval()


def backends(threads: int) -> dict[str, Callable[[], Encode]]:
    return {
        "torch float32": lambda: encode_with(load()),
        "torch bfloat16": lambda: encode_with(load("bfloat16")),
        "onnx float32": lambda: onnx(threads, int8=False),
        "onnx int8": lambda: onnx(threads, int8=True),
        "openvino float32": lambda: openvino(threads, "f32"),
        "openvino bfloat16": lambda: openvino(threads, "bf16"),
    }


def native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself; where it does not, that takes ten times as long."""
    listing = Path("/proc/cpuinfo")
    flags = listing.read_text(encoding="utf-8") if listing.is_file() else ""
    return any(name in flags for name in ("amx_bf16", "avx512_bf16"))


NEEDS = {"torch": [], "onnx": ["onnxruntime", "onnx", "onnxscript"], "openvino": ["openvino"]}


def installed(names: list[str], threads: int) -> dict[str, Encode]:
    """The wanted backends that can be had here."""
    loaded = {}
    for name, make in backends(threads).items():
        missing = [need for need in NEEDS[name.split()[0]] if importlib.util.find_spec(need) is None]
        if name.endswith("bfloat16") and not native_bfloat16():
            print(f"left out: {name} (this CPU does not compute it)")
        elif missing:
            print(f"left out: {name} ({', '.join(missing)} not installed)")
        elif not names or name in names:
            loaded[name] = make()
    return loaded


def race(sides: dict[str, Encode], texts: list[str], repeats: int) -> dict[str, dict[str, Any]]:
    """Median texts a second of every side, by the clock and by processor time, and its error."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    vectors = {name: encode(texts) for name, encode in sides.items()}  # the first round is not counted
    for _ in range(repeats):
        for name, encode in sides.items():
            start = time.perf_counter(), time.process_time()
            vectors[name] = encode(texts)
            seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    found = {}
    for name, taken in seconds.items():
        clock, busy = (statistics.median(column) for column in zip(*taken, strict=True))
        strayed = 1 - (vectors[name].astype(np.float64) * vectors["torch float32"]).sum(axis=1)
        found[name] = {
            "texts/s": round(len(texts) / clock, 2),
            "texts/s (processor)": round(len(texts) / busy, 2),
            "cosine error/mean": float(f"{max(strayed.mean(), 0):.1e}"),
            "cosine error/worst": float(f"{max(strayed.max(), 0):.1e}"),
        }
    return found


def padding(lengths: np.ndarray, keys: np.ndarray) -> float:
    """Tokens computed for each token there is, if texts sorted by those keys are padded batch by batch."""
    order = np.argsort(keys, kind="stable")
    batches = [lengths[order[start : start + BATCH]] for start in range(0, len(order), BATCH)]
    return round(float(sum(batch.max() * len(batch) for batch in batches) / lengths.sum()), 3)


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, help="JSONL with prompt and completion")
    parser.add_argument("--rows", type=int, help="texts embedded")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backends", nargs="+", choices=list(backends(1)), default=[], help="only these")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    rows, repeats = args.rows or (128 if args.quick else 1_024), args.repeats or (1 if args.quick else 3)
    if args.texts and not args.texts.is_file():
        print(f"{args.texts}: no such file; rows of the closed world instead")
        args.texts = None
    texts = read_texts(args.texts, rows)
    wanted = [*args.backends, "torch float32"] if args.backends else []
    dtypes = ("float32", "bfloat16") if native_bfloat16() else ("float32",)
    models = {f"ours {dtype}": ours(dtype, args.threads) for dtype in dtypes}
    sides = {name: model.embed for name, model in models.items()} | installed(wanted, args.threads)
    found = race(sides, texts, repeats)
    for name, figures in found.items():
        print(f"{name:20}" + "".join(f"  {key} {value}" for key, value in figures.items()))
    mine, theirs = (fastest(found, own) for own in (True, False))
    from lm_mixup.models.embedder import padded_lengths

    lengths = models[mine].lengths(texts)
    characters = np.array([len(text) for text in texts])
    ratio = found[mine]["texts/s (processor)"] / found[theirs]["texts/s (processor)"]
    harness.finish(
        "embedding",
        {"rows": len(texts), "threads": args.threads, "tokens": int(lengths.sum()), "repeats": repeats},
        {"setting": mine}
        | found[mine]
        | {"padded/real tokens": round(float(padded_lengths(lengths).sum() / lengths.sum()), 3)},
        {"setting": theirs}
        | found[theirs]
        | {"padded/real tokens": padding(lengths, -characters)}
        | {f"texts/s {name}": figures["texts/s (processor)"] for name, figures in found.items()},
        ratio,
        args.json,
    )


def fastest(found: dict[str, dict[str, Any]], own: bool) -> str:
    """The fastest setting of a side that is near enough to float32."""
    near = {
        name: figures["texts/s (processor)"]
        for name, figures in found.items()
        if name.startswith("ours") == own and figures["cosine error/worst"] < WORST
    }
    return max(near, key=lambda name: near[name])


if __name__ == "__main__":
    main()
