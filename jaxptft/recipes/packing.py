"""Whether a fine-tuning can have several texts in a row: asked of its settings and its model, before its data."""

from typing import Any

from jaxptft import models
from jaxptft.recipes.finetune import Config
from jaxptft.recipes.tasks import PACKED_TASKS


def _against(config: Config, architecture: Any) -> str | None:
    """Why texts cannot share rows; None where they can."""
    if config.task not in PACKED_TASKS:
        return f"is for {', '.join(PACKED_TASKS)}, and task is {config.task}"
    if not isinstance(architecture, models.BertConfig | models.ModernBertConfig):
        return "is for encoders whose tokens can be given their positions: BERT and its kin, and ModernBERT"
    if hasattr(config, "teacher"):
        return "does not go with a teacher, who reads one text a row"
    if config.adaptation.target is not None:
        return "does not go with adaptation.target, whose features are those of one text a row"
    if config.augment.deletion or config.augment.swap:
        return "does not go with augment, which moves the words of one text a row"
    return None


def settled(config: Config, architecture: Any) -> Config:
    """The config with packing "off" where it is "auto" and cannot be; ValueError where it is "on" and cannot be."""
    reason = None if config.packing == "off" else _against(config, architecture)
    if config.packing == "auto" and config.freeze != "none" and config.cache_features != "off":
        reason = "is left to rows of one text, whose frozen layers run once"
    if reason is None:
        return config
    if config.packing == "on":
        raise ValueError(f"packing {reason}; leave it out")
    return config.model_copy(update={"packing": "off"})
