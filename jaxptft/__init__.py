"""Pre-train, adapt, fine-tune, compress and ship models in JAX.

Every room is importable alone (`from jaxptft import losses`) and is loaded only when asked for, so that
`import jaxptft` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["augment", "convert", "data", "export", "losses", "models", "objectives", "optim", "recipes", "train"]

if TYPE_CHECKING:
    from jaxptft import augment, convert, data, export, losses, models, objectives, optim, recipes, train


def __getattr__(name: str):
    if name in __all__:
        return importlib.import_module(f"jaxptft.{name}")
    raise AttributeError(f"module 'jaxptft' has no attribute {name!r}; its rooms are {', '.join(__all__)}")


def __dir__():
    return [*globals(), *__all__]
