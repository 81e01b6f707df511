"""LM-mixup: distils clusters of poor instruction rows into dense, correct ones (arXiv 2510.20449).

The functions of the command line, from Python: `augment`, `build`, `train`, `evaluate`, `run`; `Run` opens a
run directory, `load_config` reads a config. They load on first use, so that `import lm_mixup` stays light.
"""

from __future__ import annotations

import sys
from types import ModuleType
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


class _VerbPackage(ModuleType):
    """A package that has the name of a verb (`augment`, `train`) and can be called as that verb."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from lm_mixup import api

        return getattr(api, self.__name__.rpartition(".")[2])(*args, **options)


class _Root(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing a subpackage binds it here, where it would hide the function of the same name.
        if name in __all__ and isinstance(value, ModuleType):
            value.__class__ = _VerbPackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Root
