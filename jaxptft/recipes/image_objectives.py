"""From a config to what is learnt from images: the backbone, its heads, the views and the objective."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from jaxptft import augment, models, objectives
from jaxptft.recipes.preprocessing import Preprocessing, usual
from jaxptft.recipes.pretrain_images import CODES, PATCHES, TWO_VIEWS, Config

SMALL = 64  # pixels on a side below which images are small: other patches, stems, crops and colours


NEEDED = {"mae": "vit_mae", "beit": "beit", **dict.fromkeys(CODES, "jaxptft_conv")}
"""The one family whose checkpoints an objective can continue from, where not all will do."""


class Architecture(NamedTuple):
    """A backbone from nothing: its config, and the family that it is saved as."""

    family: str
    config: Any


def from_nothing(config: Config, size: tuple[int, int], channels: int) -> Architecture:
    """The backbone that the config names, for images of a size."""
    shape, objective = config.shape, config.objective
    name = config.backbone or ("vit" if objective in PATCHES else "conv" if objective in CODES else "resnet18")
    small = min(size) < SMALL
    _refuse_shape(name, shape)
    if name == "vit":
        width = shape.width or (128 if small else 384)
        fields: dict[str, Any] = {
            "image_size": size[0] if size[0] == size[1] else size,
            "patch_size": shape.patch_size or _patch(size),
            "channels": channels,
            "width": width,
            "layers": shape.layers or (4 if small else 12),
            "heads": shape.heads or max(1, width // (32 if small else 64)),
            "mlp_width": shape.mlp_width or 4 * width,
            "norm_epsilon": 1e-6,
        }
        if objective == "mae" and config.masked.normalise and fields["patch_size"] ** 2 * channels < 2:
            raise ValueError("a patch of one number has nothing to normalise; give a larger shape.patch_size")
        if objective == "mae":
            deep = config.masked.decoder_width or max(4, width // 2 // 4 * 4)
            decoder = {
                "decoder_width": deep,
                "decoder_layers": config.masked.decoder_layers,
                "decoder_heads": _heads(deep, 32),
                "decoder_mlp_width": 4 * deep,
                "mask_ratio": hidden_share(config),
                "normalise": config.masked.normalise,
            }
            return Architecture("vit_mae", models.MaeConfig(**fields, **decoder))
        if objective == "beit":
            return Architecture("beit", models.BeitConfig(**fields, vocab_size=config.masked.tokens))
        return Architecture("vit", models.VitConfig(**fields, pooler=False))
    if name in ("conv", "mlp"):
        own: dict[str, Any] = {"widths": shape.widths} if shape.widths else {}
        own["features"] = shape.features or 128
        if objective in ("vae", "gan"):
            own["latent"] = config.code.size
        elif objective in CODES:
            if shape.features is not None:
                raise ValueError(f"under {objective} the features are the code: give code.size, not shape.features")
            own["features"] = config.code.size
        if objective == "sparse" and config.code.sparsity == "kl":
            own["features_activation"] = "sigmoid"
        return Architecture("jaxptft_conv", models.ConvConfig(kind=name, image_size=size, channels=channels, **own))
    stem = shape.stem or ("cifar" if small else "imagenet")
    changes: dict[str, Any] = {"channels": channels, "stem": stem}
    if shape.widths:
        changes |= {
            "widths": shape.widths,
            "stem_width": shape.widths[0] // (1 if name in ("resnet18", "resnet34") else 4),
        }
    return Architecture("resnet" if stem == "imagenet" else "jaxptft_resnet", models.resnet_config(name, **changes))


def _refuse_shape(name: str, shape: Any) -> None:
    kind = "resnet" if name.startswith("resnet") else name
    takes = {
        "vit": ("patch_size", "layers", "width", "heads", "mlp_width"),
        "resnet": ("widths", "stem"),
        "conv": ("widths", "features"),
        "mlp": ("widths", "features"),
    }[kind]
    for field, value in shape:
        if value not in (None, ()) and field not in takes:
            raise ValueError(f"shape.{field} is not for {name}, which takes {', '.join(takes)}; leave it out")


def _patch(size: tuple[int, int]) -> int:
    """The divisor of both sides that is nearest to a seventh to fourteenth of the smaller."""
    wanted = 16 if min(size) >= 3 * SMALL else max(2, min(size) // 7)
    common = [n for n in range(1, min(size) + 1) if not size[0] % n and not size[1] % n and n < min(size)]
    return min(common, key=lambda n: abs(n - wanted))


def _heads(width: int, each: int) -> int:
    return next(heads for heads in range(max(1, width // each), 0, -1) if width % heads == 0)


def hidden_share(config: Config) -> float:
    """The share of the patches that mae or beit hides."""
    return config.masked.ratio or (0.4 if config.objective == "beit" else 0.75)


def preprocessing_for(config: Config, size: tuple[int, int], channels: int) -> Preprocessing:
    """From -1 to 1, but from 0 to 1 where pixels are drawn; files come to the size as `data.read_images` has it."""
    known = usual(size, channels)
    if config.objective in CODES:
        known = known._replace(mean=(0.0,) * channels, std=(1.0,) * channels)
    return known._replace(fit="crop", resample="bicubic")


def views_of(config: Config, preprocessing: Preprocessing) -> Any:
    """The view, or pair of views, that is learnt from."""
    views, size, channels = config.views, preprocessing.size, preprocessing.channels
    small = min(size) < SMALL
    usual_kinds = {"moco": "moco_v2", "moco_v3": "byol", "byol": "byol", "simclr": "simclr", "mae": "crop_flip"}
    kind = usual_kinds.get(config.objective, "none") if views.kind == "usual" else views.kind
    if views.kind == "usual" and small and kind in ("moco_v2", "byol"):
        kind = "simclr"  # their blur and solarisation are for photographs
    asked = {"strength": views.strength is not None, "smallest": views.smallest is not None}
    takes = {"simclr": ("strength", "smallest", "mirrored"), "crop_flip": ("smallest", "mirrored")}.get(kind, ())
    asked["mirrored"] = not views.mirrored and kind != "none"
    if refused := [name for name, given in asked.items() if given and name not in takes]:
        raise ValueError(
            f"views.{refused[0]} does not go with views of kind {kind}; leave it out, or choose another kind"
        )
    normal = augment.normalise(preprocessing.mean, preprocessing.std)
    smallest = views.smallest or (0.2 if small else None)
    options: dict[str, Any] = {"mirrored": views.mirrored} | ({} if smallest is None else {"scale": (smallest, 1.0)})
    match kind:
        case "none":
            return preprocessing.view
        case "crop_flip":
            return augment.compose(augment.crop_flip(size, **options), normal)
        case "moco_v2":
            return augment.compose(augment.moco_v2(size), normal)
        case "byol":
            first, second = augment.byol(size)
            return augment.compose(first, normal), augment.compose(second, normal)
    strength = views.strength if views.strength is not None else 0.5 if small else 1.0
    drawn = augment.simclr(size, channels=channels, strength=strength, blurred=not small, **options)
    return augment.compose(drawn, normal)


def objective_of(
    config: Config,
    architecture: Any,
    preprocessing: Preprocessing,
    *,
    steps: int,
    frozen_layers: int | None = None,
    words: Any = None,
) -> objectives.Objective:
    """What is minimised; `steps` are those of the whole run, `words` what beit's images are told in."""
    name = config.objective
    options: dict[str, Any] = {"frozen_layers": frozen_layers}
    views, plain = views_of(config, preprocessing), preprocessing.view
    if name in CODES:
        from jaxptft.recipes.image_codes import code_objective

        return code_objective(config, architecture, plain)
    if name == "mae":
        return objectives.mae(
            models.build(architecture, "pretraining", **options),
            patch_size=architecture.patch,
            mask_ratio=hidden_share(config),
            normalise=config.masked.normalise,
            view=views,
            plain=plain,
        )
    if name == "beit":
        return objectives.beit(
            models.build(architecture, "masked_image", **options),
            words=words,
            mask_ratio=hidden_share(config),
            view=views,
            plain=plain,
        )
    if name == "rotation":
        return objectives.rotation(
            models.build(architecture, "classification", classes=4, **options), view=views, plain=plain
        )
    encoder = models.pooled(architecture, models.usual_pooling(architecture), **options)
    if name == "patch_position":
        patch = _position_patch(preprocessing.size, architecture)
        head = models.mlp("position", hidden=(config.projection.hidden,), outputs=8)
        return objectives.patch_position(
            encoder, head, patch=patch, color="drop" if preprocessing.channels == 3 else "keep", view=views, plain=plain
        )
    assert name in TWO_VIEWS
    return _two_views(config, encoder, views=views, plain=plain, steps=steps)


def _two_views(config: Config, encoder: models.Model, *, views: Any, plain: Any, steps: int) -> objectives.Objective:
    name, hidden, outputs = config.objective, config.projection.hidden, config.projection.outputs
    chosen: dict[str, Any] = {
        key: value
        for key, value in (("temperature", config.contrast.temperature), ("decay", config.contrast.decay))
        if value is not None
    }
    shared: dict[str, Any] = {"encoder": encoder, "views": views, "plain": plain}
    projector = models.mlp("projector", hidden=(hidden,), outputs=outputs, norm="batch")
    if name == "simclr":
        temperature = chosen.get("temperature", 0.2)
        return objectives.simclr(models.stack(encoder, projector), temperature=temperature, **shared)
    if name == "moco":
        plainer = models.mlp("projector", hidden=(hidden,), outputs=outputs)  # as version 2 has it
        return objectives.moco_v2(models.stack(encoder, plainer), queue=config.contrast.queue, **shared, **chosen)
    final: dict[str, Any] = {"final_norm": "plain"} if name == "moco_v3" else {}
    target = models.stack(encoder, models.mlp("projector", hidden=(hidden,), outputs=outputs, norm="batch", **final))
    predictor = models.mlp("predictor", hidden=(hidden,), outputs=outputs, norm="batch", **final)
    make = objectives.byol if name == "byol" else objectives.moco_v3
    return make(models.stack(target, predictor), target=target, steps=steps, **shared, **chosen)


def _position_patch(size: tuple[int, int], architecture: Any) -> int:
    """As large as three of them with gaps and jitter fit: 3 p + 2 p / 2 + 2 * 7 p / 96; in whole patches of a ViT."""
    if isinstance(architecture, models.ConvConfig):
        raise ValueError(
            "patch_position shows the backbone parts of an image, and those of kind conv and mlp read one size only: "
            "take a resnet or a vit"
        )
    largest = int(min(size) / 4.3)
    own = math.lcm(*getattr(architecture, "patch", (1, 1)))
    if largest < max(own, 2):
        raise ValueError(
            f"of images of {size[0]} x {size[1]} pixels patch_position shows parts of {largest} x {largest}, and needs "
            f"{max(own, 2)} x {max(own, 2)}: give larger images (image_size), or a smaller shape.patch_size"
        )
    return largest // own * own


def without_dropout(architecture: Any) -> Any:
    """The architecture computed in float32 without dropout, for reading features."""
    changes = {name: 0.0 for name in ("dropout", "attention_dropout") if hasattr(architecture, name)}
    return replace(architecture, dtype="float32", **changes)


def seen_through(network: models.Model, view: Any) -> models.Model:
    """The network on images as files hold them."""

    def apply(params: Any, batch: Any, **options: Any) -> Any:
        images = objectives.view_images(view, jax.random.key(0), batch)
        return network.apply(params, {**batch, "image": images}, **options)

    return network._replace(apply=apply)
