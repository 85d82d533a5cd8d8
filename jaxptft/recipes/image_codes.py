"""Objectives that draw images from codes, from a config, and the pictures that they have to show."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxptft import models, objectives
from jaxptft.recipes import image_pictures
from jaxptft.recipes.pretrain_images import Config

if TYPE_CHECKING:
    from jaxptft.recipes.pretrain_images_run import PretrainImagesRun

BETWEEN = 10  # images on the way from one code to another


def code_objective(config: Config, architecture: Any, plain: Any) -> objectives.Objective:
    """autoencoder, denoising, sparse, vae or gan over a small backbone and its mirror image."""

    def build(task: str) -> models.Model:
        return models.build(architecture, task)

    code, name = config.code, config.objective
    if name == "gan":
        return objectives.gan(
            build("discriminator"),
            build("generator"),
            encoder=build("encoder"),
            noise=architecture.code,
            view=plain,
            plain=plain,
        )
    shared: dict[str, Any] = {"likelihood": code.likelihood, "view": plain, "plain": plain}
    parts = (build("encoder"), build("decoder"))
    if name == "vae":
        heads = {head: _alone(architecture, head) for head in ("latent_mean", "latent_log_variance")}
        return objectives.vae(*parts, beta=code.beta, **heads, **shared)
    if name == "sparse":
        options = {"sparsity": code.sparsity, "weight": code.sparsity_weight, "activity": code.activity}
        return objectives.sparse(*parts, **options, **shared)
    if name == "denoising":
        return objectives.denoising(*parts, noise=_noise(config), **shared)
    return objectives.autoencoder(*parts, **shared)


def _alone(architecture: Any, head: str) -> models.Model:
    """A head on the backbone's vectors, without the backbone."""
    return models.mlp(head, hidden=(), outputs=architecture.code)


def _noise(config: Config) -> Any:
    kinds = {
        "masking": objectives.masking_noise,
        "gaussian": objectives.gaussian_noise,
        "salt_and_pepper": objectives.salt_and_pepper_noise,
    }
    return kinds[config.code.noise](config.code.noise_level)


def pictures(run: "PretrainImagesRun", params: Any, *, shown: int) -> dict[str, Callable[[Path], None]]:
    """What is drawn of a model with codes: by the file's name."""
    name, architecture = run.config.objective, run.saved_architecture
    if name == "gan":
        return {
            "samples.png": lambda path: _samples(path, architecture, params, "generator", shown),
            "interpolations.png": lambda path: _between(path, architecture, params, "generator", None),
        }
    batch, seen = image_pictures.shown(run)
    reads = models.build(architecture, "latent_mean" if name == "vae" else "encoder")
    spoilt = seen
    if name == "denoising":
        spoilt = objectives.view_images(_noise(run.config), jax.random.key(run.config.seed), {**batch, "image": seen})

    def again(path: Path) -> None:
        draws = models.build(architecture, "decoder")
        drawn = jax.jit(lambda params, images: objectives.reconstruct_images(reads, draws, params, images))(
            params, spoilt
        )
        rows = {"image": seen, **({"spoilt": spoilt} if name == "denoising" else {}), "drawn again": drawn}
        image_pictures.grid(path, {title: np.asarray(images) for title, images in rows.items()})

    found: dict[str, Callable[[Path], None]] = {"reconstructions.png": again}
    codes = jax.jit(lambda params, images: reads.apply(params, {"image": images}))(params, seen)
    found["interpolations.png"] = lambda path: _between(path, architecture, params, "decoder", codes)
    if name == "vae":
        found["samples.png"] = lambda path: _samples(path, architecture, params, "decoder", shown)
    return found


def _samples(path: Path, architecture: Any, params: Any, head: str, shown: int) -> None:
    draws, options = models.build(architecture, head), {"count": 4 * shown, "size": architecture.code}
    drawn = jax.jit(lambda params: objectives.sample_images(draws, params, jax.random.key(0), **options))(params)
    lines = np.asarray(drawn).reshape(4, shown, *drawn.shape[1:])
    image_pictures.grid(path, {f"{shown * number}": line for number, line in enumerate(lines)})


def _between(path: Path, architecture: Any, params: Any, head: str, codes: Any) -> None:
    """From one code to another: those of images, or drawn."""
    if codes is None:
        codes = jax.random.normal(jax.random.key(1), (8, architecture.code))
    pairs = min(4, len(codes) // 2)
    draws, way = models.build(architecture, head), "linear" if head == "decoder" else "spherical"
    drawn = jax.jit(
        lambda params, first, second: objectives.interpolate_images(
            draws, params, first, second, steps=BETWEEN, path=way
        )
    )(params, codes[:pairs], codes[pairs : 2 * pairs])
    image_pictures.grid(path, {f"{number}": np.asarray(line) for number, line in enumerate(drawn)})
