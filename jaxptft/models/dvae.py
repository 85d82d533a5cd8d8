"""A discrete variational autoencoder: an image as a grid of visual words, and back.

Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation" (arXiv:2102.12092, section 2.1 and appendix A), much smaller:
convolutions bring the image down to one place a patch, residual blocks let neighbours see each other, and a last
convolution gives the logits of the words. From weights of words, which choose rows of a codebook, the mirror image of
all that draws the image. What one convolution brings down by are the prime factors of the patch size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxptft.models.fields import DTYPES, check_choice, check_integers
from jaxptft.models.model import Model
from jaxptft.models.pure import as_model
from jaxptft.models.vit import read_images

# He et al. 2015, arXiv:1502.01852, section 2.2: in front of a rectifier.
_ACTIVATED = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")

Batch = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class DvaeConfig:
    """The values that fix a discrete autoencoder.

    Images of any size are read that squares of `patch_size` pixels divide. `width` is that of the grid of patches (less
    where the image is larger), `blocks` how many residual blocks work on it. `dtype` is what is computed in.
    """

    patch_size: int = 16
    channels: int = 3
    vocab_size: int = 8192
    width: int = 64
    blocks: int = 1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_integers(self, "patch_size", "channels", "width")
        check_integers(self, "vocab_size", least=2)
        check_integers(self, "blocks", least=0)
        check_choice(self, "dtype", DTYPES)

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch, in pixels."""
        return self.patch_size, self.patch_size

    @property
    def factors(self) -> tuple[int, ...]:
        """What each convolution brings the image down by."""
        found, rest = [], self.patch_size
        while rest > 1:
            found.append(next(n for n in range(2, rest + 1) if rest % n == 0))
            rest //= found[-1]
        return tuple(found)

    @property
    def widths(self) -> tuple[int, ...]:
        """The width behind each of these; that of the last is `width`, and halves towards the image."""
        count = max(len(self.factors), 1)
        return tuple(max(self.width >> (count - 1 - index), min(self.width, 8)) for index in range(count))


class Block(nn.Module):
    """x + conv(relu(conv(relu(x)))): He et al. 2016, arXiv:1603.05027, without norms."""

    config: DvaeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch rows columns width"]) -> Float[Array, "batch rows columns width"]:
        values = {"dtype": jnp.dtype(self.config.dtype), "padding": ((1, 1), (1, 1)), "kernel_init": _ACTIVATED}
        inner = nn.Conv(x.shape[-1], (3, 3), name="first", **values)(jax.nn.relu(x))
        return x + nn.Conv(x.shape[-1], (3, 3), name="second", **values)(jax.nn.relu(inner))


class Encoder(nn.Module):
    """Images -> the logits of the words at each patch, in float32."""

    config: DvaeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns vocab"]:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        values = {"dtype": dtype, "kernel_init": _ACTIVATED, "padding": "SAME"}
        if not config.factors:
            x = nn.Conv(config.width, (3, 3), name="down_0", **values)(x)
        for index, (factor, width) in enumerate(zip(config.factors, config.widths, strict=False)):
            x = x if index == 0 else jax.nn.relu(x)
            side, stride = (2 * factor, 2 * factor), (factor, factor)
            x = nn.Conv(width, side, stride, name=f"down_{index}", **values)(x)
        for index in range(config.blocks):
            x = Block(config, name=f"block_{index}")(x)
        return nn.Conv(config.vocab_size, (1, 1), dtype=dtype, name="words")(jax.nn.relu(x)).astype(jnp.float32)


class Decoder(nn.Module):
    """The weights of words at each patch -> images, in float32."""

    config: DvaeConfig

    @nn.compact
    def __call__(self, words: Float[Array, "batch rows columns vocab"]) -> Float[Array, "batch height width channels"]:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        # What comes in is about one row, not a mean of many.
        rows = nn.initializers.normal(1.0)
        x = nn.Dense(config.width, use_bias=False, dtype=dtype, kernel_init=rows, name="codebook")(words)
        for index in range(config.blocks):
            x = Block(config, name=f"block_{index}")(x)
        for index in reversed(range(len(config.factors))):
            factor, width = config.factors[index], config.widths[max(index - 1, 0)]
            side, stride = (2 * factor, 2 * factor), (factor, factor)
            up = nn.ConvTranspose(width, side, stride, dtype=dtype, kernel_init=_ACTIVATED, name=f"up_{index}")
            x = up(jax.nn.relu(x))
        pixels = nn.Conv(config.channels, (3, 3), padding=((1, 1), (1, 1)), dtype=dtype, name="pixels")
        return pixels(jax.nn.relu(x)).astype(jnp.float32)


class Dvae(nn.Module):
    """Encoder and decoder; which of them runs, the batch says."""

    config: DvaeConfig

    def setup(self) -> None:
        self.backbone, self.decoder = Encoder(self.config), Decoder(self.config)

    def __call__(self, batch: Batch, *, train: bool = False) -> Array:
        if "words" in batch:
            return self.decoder(self._checked(batch["words"]))
        logits = self.backbone(read_images(batch, self.config, initializing=self.is_initializing()))
        if self.is_initializing():
            self.decoder(logits)
        return logits

    def _checked(self, words: Array) -> Array:
        if words.ndim != 4 or words.shape[-1] != self.config.vocab_size:
            raise ValueError(
                f"words have shape {words.shape}; expected weights [batch, rows, columns, {self.config.vocab_size}]"
            )
        return words


def dvae(config: DvaeConfig) -> Model:
    """The autoencoder as one model with two uses, both in float32.

    `apply` gives the logits of words [batch, rows, columns, vocab] for a batch with `image`, floats [batch, height,
    width, channels], and images for one with `words`, weights [batch, rows, columns, vocab] that sum to 1 at each
    patch. Params are {"backbone": the encoder, "decoder": ...}.

    Raises ValueError in `apply` for images that patches do not divide, integers, other channels or another vocabulary.
    """
    return as_model(Dvae(config), dropouts=())
