"""One entry to every architecture: the type of the config says which file builds the model."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Array

from jaxptft.models import beit, bert, conv, gpt2, mae, modernbert, resnet, vit
from jaxptft.models.beit_config import BeitConfig
from jaxptft.models.bert_config import BertConfig
from jaxptft.models.conv_config import ConvConfig
from jaxptft.models.gpt2_config import Gpt2Config
from jaxptft.models.mae_config import MaeConfig
from jaxptft.models.model import Model
from jaxptft.models.modernbert_config import ModernBertConfig
from jaxptft.models.resnet_config import ResNetConfig
from jaxptft.models.vit_config import VitConfig

AnyConfig = BertConfig | ModernBertConfig | Gpt2Config | ResNetConfig | ConvConfig | VitConfig | MaeConfig | BeitConfig
"""The config of an architecture."""

_ARCHITECTURES: dict[type, Any] = {
    BertConfig: bert,
    ModernBertConfig: modernbert,
    Gpt2Config: gpt2,
    ResNetConfig: resnet,
    ConvConfig: conv,
    VitConfig: vit,
    MaeConfig: mae,
    BeitConfig: beit,
}


def build(
    config: AnyConfig,
    task: str,
    *,
    classes: int | None = None,
    frozen_layers: int | None = None,
    start: int | None = None,
    dtype: str | None = None,
    outputs: Sequence[str] = (),
) -> Model:
    """The architecture of `config` under the head of `task`, as `build` in the architecture's own file makes it.

    With `outputs`, some of `OUTPUTS`, `apply` returns a dict of "logits" and these, all from one pass.

    Raises ValueError where the config is of no architecture here, or the architecture's own `build` refuses.
    """
    options = {"classes": classes, "frozen_layers": frozen_layers, "start": start, "dtype": dtype, "outputs": outputs}
    return _architecture(config).build(config, task, **options)


def features(config: AnyConfig, *, stop: int, dtype: str | None = None) -> Callable[..., Array]:
    """What a frozen prefix of the model computes, (params, batch) -> "hidden" for `build(..., start=stop)`."""
    return _architecture(config).features(config, stop=stop, dtype=dtype)


def _architecture(config: Any) -> Any:
    if type(config) not in _ARCHITECTURES:
        known = ", ".join(kind.__name__ for kind in _ARCHITECTURES)
        raise ValueError(f"config must be one of {known}, got {type(config).__name__}")
    return _ARCHITECTURES[type(config)]
