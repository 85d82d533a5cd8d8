"""What damage is drawn from: a generator, and values that no sound file has."""

from typing import Any

import numpy as np

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 16, 17, 2**31, 2**40, 2**64, 10**400, 1.5, 8.0, -0.0, 1e308, float("nan"),
    float("inf"), float("-inf"), "", "8", "gelu", "nonsense", "a\nb", "\x00", "\ud800", "../..", "x" * 100_000, [], [1],
    [[[]]], ["BertModel"], ["BertForMaskedLM"], [None], {}, {"a": 1}, {"0": "a"}, {"0": None, "1": None}, {"x\ny": 1},
)  # fmt: skip
MORE_FIELDS = (
    "position_embedding_type", "is_decoder", "add_cross_attention", "pruned_heads", "quantization_config", "auto_map",
    "torch_dtype", "dtype", "num_labels", "use_cache", "_name_or_path", "surprise", "line\nbreak", "",
)  # fmt: skip


def pick(rng: np.random.Generator, of: Any) -> Any:
    return of[int(rng.integers(len(of)))]


def flipped(rng: np.random.Generator, content: bytes, first: int, last: int) -> bytes:
    damaged = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        damaged[int(rng.integers(first, last))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def deep(rng: np.random.Generator) -> bytes:
    depth, (opening, closing) = pick(rng, (50, 500, 100_000)), pick(rng, (("[", "]"), ('{"a":', "}")))
    return (opening * depth + "1" + closing * depth * int(rng.integers(2))).encode()
