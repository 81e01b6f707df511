"""LM-mixup: distils clusters of poor instruction rows into dense, correct ones (arXiv 2510.20449).

The functions of the command line, from Python: `augment`, `build`, `train`, `evaluate`, `run`; `Run` opens a
run directory, `load_config` reads a config. They load on first use, so that `import lm_mixup` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "augment", "build", "evaluate", "load_config", "run", "train"]

if TYPE_CHECKING:
    from lm_mixup.api import Run, augment, build, evaluate, load_config, run, train


def __getattr__(name: str) -> Any:
    if name in __all__:
        from lm_mixup import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
