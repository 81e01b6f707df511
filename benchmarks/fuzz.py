"""Ten thousand damaged lines through the real `ingest` stage: none may crash it, none may be lost or made up.

    python benchmarks/fuzz.py [--quick] [--lines 10000] [--seed 0]

Half of the lines lie in a plain file that is read in pieces, half in a gzip file. A line that is kept must
say what Python's own JSON reader finds in it; one that is not must stand in `rejected/`, under its number,
with a reason. It stops with an error at the first that does not. Kinds that can hold no row must be refused
whole.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import harness

from lm_mixup.augment.ingest import ingest
from lm_mixup.config import DataConfig, IngestConfig, RayConfig
from lm_mixup.core.run_dir import Outcome, RunDir, StageDir, summarise
from lm_mixup.distributed.ray_cluster import start_ray

LARGE = 5_000_000
_SAID = "Say {}, please. é"
_ANSWER = "It is {}; there is no more to it. 日本"


def _row(number: int) -> dict[str, Any]:
    return {"id": f"row-{number}", "prompt": _SAID.format(number), "completion": _ANSWER.format(number)}


def _line(number: int, **changed: Any) -> bytes:
    return json.dumps(_row(number) | changed, ensure_ascii=bool(number % 2)).encode()


def _truncated(number: int, rng: Random) -> bytes:
    line = _line(number)
    return line[: rng.randrange(1, len(line))]


def _wrong_type(number: int, rng: Random) -> bytes:
    value = rng.choice([None, True, [], ["a", "b"], {}, {"a": "b"}, "", " \t"])
    return _line(number, **{rng.choice(["prompt", "completion"]): value})


def _answer_as_value(number: int, rng: Random) -> bytes:
    return _line(number, completion=rng.choice([7, 1.5, 1e308, [42], ["a"], {"text": "a"}]))


def _not_an_object(number: int, rng: Random) -> bytes:
    return json.dumps(rng.choice([None, number, _SAID, [_row(number)], [[]], True])).encode()


def _nul(number: int, rng: Random) -> bytes:
    return _line(number).replace(rng.choice([b"Say", b"It is"]), rng.choice([b"\\u0000", b"\0", b"a\\u0000"]))


def _surrogate(number: int, rng: Random) -> bytes:
    half = b"\\ud%03x" % rng.randrange(0x800, 0x1000)
    return _line(number).replace(rng.choice([b"Say", b"It is"]), half)


def _nested(number: int, rng: Random) -> bytes:
    depth = rng.choice([100, 5_000, 200_000])
    opened, closed = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    value = opened * depth + b"1" + closed * (depth if rng.random() < 0.5 else 0)
    return rng.choice([value, b'{"prompt": "p", "completion": %s}' % value])


def _huge_number(number: int, rng: Random) -> bytes:
    value = rng.choice([b"9" * rng.choice([400, 5_000, 60_000]), b"-1e99999", b"1e308", b"NaN", b"-Infinity"])
    name = rng.choice([b"id", b"prompt", b"completion"])
    rest = _line(number)[1:].replace(b'"%s":' % name, b'"other":')
    return b'{"%s": %s, %s' % (name, value, rest)


def _large_field(number: int, rng: Random) -> bytes:
    name = rng.choice(["prompt", "completion", "note", "id"])
    return _line(number, **{name: rng.choice(["xx", "é", "\\"]) * (LARGE // 2)})


def _not_utf8(number: int, rng: Random) -> bytes:
    return rng.choice([_line(number).decode().encode("utf-16"), _line(number).replace(b"Say", b"\xff\xfe")])


def _garbage(number: int, rng: Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 80)).replace(b"\n", b" ")


def _flipped(number: int, rng: Random) -> bytes:
    line = bytearray(_line(number))
    for _ in range(rng.randrange(1, 4)):
        line[rng.randrange(len(line))] = rng.randrange(256)
    return bytes(line).replace(b"\n", b" ")


def _odd_id(number: int, rng: Random) -> bytes:
    return _line(number, id=rng.choice([True, 1.5, [1], {"a": 1}, "x" * 300, "a\0", "row-1", number, None]))


def _chat(number: int, rng: Random) -> bytes:
    half = {"role": "user"}
    turn = rng.choice([7, None, {}, half, half | {"content": 3}, {"from": [1], "value": "a"}])
    turns = rng.choice([turn, [turn], [turn, turn], "a"])
    return json.dumps({"id": f"row-{number}", "messages": turns}).encode()


def _clean(number: int, rng: Random) -> bytes:
    return _line(number) + rng.choice([b"", b"\r", b" "])


KINDS: dict[str, Callable[[int, Random], bytes]] = {
    "clean": _clean,
    "truncated": _truncated,
    "wrong type": _wrong_type,
    "answer as value": _answer_as_value,
    "not an object": _not_an_object,
    "NUL": _nul,
    "lone surrogate": _surrogate,
    "deep nesting": _nested,
    "huge number": _huge_number,
    "not UTF-8": _not_utf8,
    "garbage": _garbage,
    "flipped bytes": _flipped,
    "odd id": _odd_id,
    "odd chat": _chat,
    "blank": lambda number, rng: b" \t"[: rng.randrange(3)],
    "repeated": lambda number, rng: _line(rng.randrange(50)),
    "5 MB field": _large_field,
}
# What holds no row, however it was drawn.
NO_ROW = (
    "truncated",
    "wrong type",
    "not an object",
    "NUL",
    "lone surrogate",
    "not UTF-8",
    "odd chat",
    "blank",
    "5 MB field",
)
_LARGE_EVERY = 250


def fuzzed(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Kind and bytes (without newline) of each line; every 250th, from the 26th on, has a field of 5 MB."""
    rng = Random(seed)
    names = [name for name in KINDS if name != "5 MB field"]
    for number in range(count):
        kind = "5 MB field" if number % _LARGE_EVERY == 25 else rng.choice(names)
        yield kind, KINDS[kind](number, rng)


def write_pool(folder: Path, lines: Sequence[bytes]) -> None:
    """The first half as a plain file, the others packed."""
    folder.mkdir()
    middle = len(lines) // 2
    (folder / "a.jsonl").write_bytes(b"".join(line + b"\n" for line in lines[:middle]))
    with gzip.open(folder / "b.jsonl.gz", "wb", compresslevel=1) as file:
        file.writelines(line + b"\n" for line in lines[middle:])


def run_ingest(folder: Path, pool: Path, config: IngestConfig) -> tuple[StageDir, Outcome]:
    """The stage, its manifest written."""
    stage = RunDir(folder).stage("ingest")
    stage.begin("fuzz")
    outcome = ingest(stage, str(pool), config, DataConfig(), seed=0)
    stage.finish(summarise(stage, "fuzz", {}, 0.0, outcome))
    return stage, outcome


def _as_text(value: Any) -> str:
    """What a field that can be kept says: a number, the one item of a list, the text of an object."""
    if isinstance(value, dict):
        return str(value["text"])
    return str(value[0] if isinstance(value, list) else value)


def account(stage: StageDir, lines: Sequence[tuple[str, bytes]]) -> dict[str, Counter[str]]:
    """What became of each kind, after every line was looked up.

    Raises:
        AssertionError: A line is in neither place or in both, or a row says what its line does not.
    """
    middle = len(lines) // 2
    first = {"a.jsonl": 0, "b.jsonl.gz": middle}
    reasons: dict[int, str] = {}
    for row in stage.read(kind="rejected").to_pylist():
        name, _, number = row["where"].rpartition("/")[2].rpartition(":")
        at = first[name] + int(number) - 1
        assert at not in reasons, f"{row['where']} is refused twice"
        assert row["reason"], f"{row['where']} has no reason"
        reasons[at] = row["reason"]
    kept = [at for at in range(len(lines)) if at not in reasons]
    rows = stage.read().to_pylist()  # in the order of the pool
    assert len(rows) == len(kept), f"{len(lines)} lines, {len(reasons)} refused, {len(rows)} rows"
    found: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for at, row in zip(kept, rows, strict=True):
        kind, line = lines[at]
        said = json.loads(line)
        expected = tuple(_as_text(said[name]) for name in ("prompt", "completion"))
        assert (row["prompt"], row["completion"]) == expected, f"line {at}"
        assert kind not in NO_ROW, f"line {at}, {kind}, was kept"
        found[kind]["kept"] += 1
    for at, reason in reasons.items():
        found[lines[at][0]][reason] += 1
    assert len({row["id"] for row in rows}) == len(rows)
    manifest = stage.manifest()
    assert manifest is not None
    assert manifest.rows_in == manifest.rows_out + manifest.rows_rejected == len(lines)
    return found


def arguments() -> argparse.Namespace:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, help="default: 10,000, or 2,000 with --quick")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.lines = args.lines or (2_000 if args.quick else 10_000)
    return args


def main() -> None:
    args = arguments()
    lines = list(fuzzed(args.lines, args.seed))
    cores = len(os.sched_getaffinity(0))
    start_ray(RayConfig())
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool"
        write_pool(pool, [line for _, line in lines])
        start = time.perf_counter()
        with harness.PeakMemory() as memory:
            stage, _ = run_ingest(Path(folder) / "run", pool, IngestConfig(num_actors=cores))
        seconds = time.perf_counter() - start
        try:
            found = account(stage, lines)
        except AssertionError as error:
            sys.exit(f"fuzz: {error}")
    size = sum(len(line) + 1 for _, line in lines)
    print(f"fuzz: {len(lines):,} lines, {size / 1e6:,.0f} MB: {seconds:.1f} s, {memory.peak:.2f} GiB")
    for kind, counts in found.items():
        told = "  ".join(f"{what} {count}" for what, count in counts.most_common())
        print(f"  {kind:16}{counts.total():7,}  {told}")
    if args.json:
        ours = {"seconds": round(seconds, 2), "gib": round(memory.peak, 2)}
        ours |= {"unaccounted": 0, "kinds": {kind: dict(counts) for kind, counts in found.items()}}
        config = {"lines": args.lines, "bytes": size, "seed": args.seed}
        report = {"name": "fuzz", "machine": harness.machine(), "config": config, "ours": ours}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
