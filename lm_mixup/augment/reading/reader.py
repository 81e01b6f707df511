"""From a unit of a pool to its rows: what `ingest`, fine-tuning and the target of `less` read files with."""

from __future__ import annotations

from typing import Any, Final

from lm_mixup.augment.reading.files import Unit, read_unit
from lm_mixup.augment.reading.pairs import split_turns
from lm_mixup.augment.reading.reasons import Reason, Refused
from lm_mixup.augment.reading.rows import PoolRow, line_limit, parse_line, read_item
from lm_mixup.config import IngestConfig

WORLD: Final = "world"  # the demo pool


class Reader:
    """Reads units into rows and rejections. One of these goes to every task and actor."""

    def __init__(self, config: IngestConfig, seed: int) -> None:
        self._config = config
        self._seed = seed

    def items(self, unit: Unit) -> list[Any]:
        """The raw items of a unit."""
        if unit.uri == WORLD:
            from lm_mixup.demo import demo_pool

            return list(demo_pool(self._config.world_rows, self._seed))
        raws = read_unit(unit, line_limit(self._config.max_chars))
        if self._config.turns != "all":
            return raws
        return [item for raw in raws for item in self._exchanges(raw)]

    def _exchanges(self, raw: Any) -> list[Any]:
        """An item for each exchange of a conversation; the item itself where it has one."""
        try:
            record = parse_line(raw) if isinstance(raw, bytes) else raw
        except Refused:
            return [raw]
        parts = split_turns(record, self._config.columns)
        return [raw] if len(parts) == 1 else parts

    def row(self, raw: Any, unit: Unit) -> PoolRow | Reason:
        """An item's row, or why it is none."""
        try:
            config = self._config
            return read_item(raw, config.columns, unit.source, config.max_chars, config.turns)
        except Refused as refusal:
            return refusal.reason
