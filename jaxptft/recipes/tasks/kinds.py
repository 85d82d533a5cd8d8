"""Whether a fine-tuning is of text or of images; the model and the task must agree."""

from typing import TYPE_CHECKING, Any

from jaxptft import models
from jaxptft.recipes.tasks import IMAGE_TASKS

if TYPE_CHECKING:
    from jaxptft.recipes.finetune import Config


def reads_images(config: "Config", architecture: Any) -> bool:
    """Whether the model reads images. ValueError where the task, or a value of the config, is of the other kind."""
    images, known = models.reads_images(architecture), ", ".join(IMAGE_TASKS)
    if images != (config.task in IMAGE_TASKS):
        raise ValueError(
            f"{config.model} reads {'images' if images else 'text'}, and task is {config.task}; "
            + (f"choose {known}" if images else f"{known} needs a model of images")
        )
    of_text = {
        "auxiliary": bool(config.auxiliary.weight),
        "adaptation": config.adaptation.target is not None,
        "forgetting": bool(config.forgetting.corpus),
        "ewc.corpus": bool(config.ewc.corpus),
    }
    if images and (asked := [name for name, given in of_text.items() if given]):
        raise ValueError(f"{asked[0]} reads text, and {config.model} reads images; leave it out")
    return images
