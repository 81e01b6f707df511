"""The card of an exported data set: front matter that `datasets` reads, and a description."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lm_mixup import __version__
from lm_mixup.core.run_dir import Manifest, RunDir
from lm_mixup.core.value_counts import NOT_STATED, splits_in, tables_of
from lm_mixup.stages import STAGES

# The largest size of each of the Hub's categories.
_SIZES: Final = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
)
_LOCAL: Final = re.compile(r"^(?:[./~\\]|[A-Za-z]:[\\/]|\w[\w+.-]*://)|\.\w+$")


@dataclass
class Subset:
    """A configuration of the data set, with its value counts.

    Attributes:
        name: `mixture` or `training_set`.
        figures: Its value counts.
        files: Its one file; empty: Parquet files of each split in a folder of its name.
    """

    name: str
    figures: Counter[str] = field(default_factory=Counter)
    files: str = ""

    @property
    def splits(self) -> dict[str, int]:
        """Rows of each split."""
        return splits_in(self.figures)

    @property
    def rows(self) -> int:
        """Rows of all splits."""
        return sum(self.splits.values())

    def tables(self) -> dict[str, list[list[str]]]:
        """For each counted column its table: a heading, then rows of value and count in each split."""
        return {
            label: [[label, *self.splits], *([value, *map("{:,}".format, counts)] for value, counts in lines)]
            for label, lines in tables_of(self.figures).items()
        }


def write_card(path: Path, run: RunDir, subsets: list[Subset], title: str, licence: str | None) -> None:
    """Writes the card."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Markdown, not HTML: `cell` escapes untrusted texts for both.
    environment = Environment(  # noqa: S701
        loader=PackageLoader("lm_mixup", "export"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell
    manifests = {name: run.stage(name).manifest() for name in STAGES}
    page = environment.get_template("card.md.j2").render(
        title=title,
        subsets=subsets,
        default=default_of(subsets),
        made=how_made(run, manifests),
        stages={name: manifest for name, manifest in manifests.items() if manifest is not None},
        sources=sources_of(run, manifests),
        published=is_published(run),
        licence=licence,
        version=__version__,
    )
    from huggingface_hub import DatasetCard, DatasetCardData

    front = DatasetCardData(ignore_metadata_errors=False, **front_matter(subsets, title, licence))
    DatasetCard(f"---\n{front.to_yaml()}\n---\n\n{page}").save(path)


def default_of(subsets: list[Subset]) -> str:
    """What loads when no configuration is named: the training set, if there is one."""
    return subsets[-1].name


def front_matter(subsets: list[Subset], title: str, licence: str | None) -> dict[str, Any]:
    """What `datasets` and the Hub read: configurations with their files, licence, size, tags."""
    configs = []
    for subset in subsets:
        files = [
            {"split": split, "path": subset.files or f"{subset.name}/{split}-*.parquet"}
            for split in subset.splits
        ]
        entry: dict[str, Any] = {"config_name": subset.name, "data_files": files}
        configs.append(entry | ({"default": True} if subset.name == default_of(subsets) else {}))
    total = sum(subset.rows for subset in subsets)
    return {
        "pretty_name": title,
        "license": licence or "unknown",
        "task_categories": ["text-generation"],
        "tags": ["instruction-tuning", "synthetic", "lm-mixup", "arxiv:2510.20449"],
        "size_categories": [next((name for most, name in _SIZES if total < most), "100M<n<1B")],
        "configs": configs,
    }


def how_made(run: RunDir, manifests: Mapping[str, Manifest | None]) -> list[tuple[str, str]]:
    """The settings that made the rows, as (what, value); of paths the last name alone."""
    config = (run.read_json("run.json") or {}).get("config", {})
    build, select = config.get("build", {}), config.get("select", {})
    made: list[tuple[str, Any]] = [("seed", config.get("seed"))]
    if manifests.get("mixture") is not None:
        given = build.get("mixture") or _good_rows(build) or build.get("passages")
        made.append(("MIXTURE from", public_name(given)))
    if manifests.get("generate") is not None and not build.get("mixture"):
        teacher = public_name(config.get("teacher", {}).get("model")) or "templates (the offline teacher)"
        made.append(("written by", "rules, from good rows" if _good_rows(build) else teacher))
        made += [(name.replace("_", " "), build.get(name)) for name in _RATES]
    if any(manifests.get(name) is not None for name in ("generate", "rate")):
        rate = config.get("rate", {})
        made.append(("rated by", public_name(rate.get("model")) or "rules (the offline judge)"))
    if manifests.get("select") is not None:
        made.append(("pool", public_name(config.get("augment", {}).get("pool"))))
        made += [(name.replace("_", " "), select.get(name)) for name in _CHOICE]
    return [(name, str(value)) for name, value in made if value not in (None, "")]


def _good_rows(build: Mapping[str, Any]) -> str:
    """What `build.samples_from` names; empty where a teacher wrote the samples."""
    given = build.get("samples_from") or ""
    return public_name(given) if isinstance(given, str) else ", ".join(given)


def is_published(run: RunDir) -> bool:
    """Whether the run read a published MIXTURE."""
    build = (run.read_json("run.json") or {}).get("config", {}).get("build", {})
    return bool(build.get("mixture"))


_RATES: Final = ("min_score", "min_inputs", "max_inputs", "cot_rate", "noise_rate", "crosstopic_rate")
_CHOICE: Final = ("method", "budget", "original_ratio")


def public_name(value: Any) -> str:
    """A model's, file's or data set's name without the folders of this machine."""
    text = str(value or "").rstrip("/")
    return re.split(r"[\\/]", text)[-1] if _LOCAL.search(text) else text


def sources_of(run: RunDir, manifests: Mapping[str, Manifest | None]) -> list[tuple[str, str, int]]:
    """Where the rows come from: (source, licence as it was given, rows), passages and pool rows."""
    found: Counter[tuple[str, str]] = Counter()
    build = (run.read_json("run.json") or {}).get("config", {}).get("build", {})
    written_from = () if is_published(run) else ("generate",) if _good_rows(build) else ("passages",)
    for stage in (*written_from, "ingest"):
        if manifests.get(stage) is None:
            continue
        for part in run.stage(stage).iter_parts():
            sources = part["source"].to_pylist()
            given = part["license"].to_pylist() if "license" in part.schema.names else [None] * len(sources)
            for source, licence in zip(sources, given, strict=True):
                found[public_name(source), licence or NOT_STATED] += 1
    return [(source, licence, count) for (source, licence), count in sorted(found.items())]


def cell(value: Any) -> str:
    """A text that can stand in a cell of a Markdown table, and does nothing there."""
    flat = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", flat)
