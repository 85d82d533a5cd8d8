"""A vocabulary of nineteen tokens, examples of it packed and unpacked, and models so small that torch repeats them."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxptft.objectives import Context, TokenTable

PAD, CLS, SEP, MASK = 1, 2, 3, 4  # as in RoBERTa's vocabulary, token 0 is none of them
VOCAB = 19
WIDTH = 6


@pytest.fixture(scope="session")
def quick():
    """`jax.jit` that compiles in half the time: these programs run once, on next to nothing."""
    return partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="session")
def tokens():
    """Tokens 1 to 4 are special; a third of the others, 14 to 18, continue a word."""
    numbers = np.arange(VOCAB)
    return TokenTable(MASK, (numbers >= PAD) & (numbers <= MASK), numbers < 14)


def ordinary(rng, size):
    drawn = rng.integers(0, VOCAB - 4, size)
    return np.where(drawn > 0, drawn + 4, 0).astype(np.int32)


def unpacked(examples, width, rows=None, order=None):
    """One example a row in the given order, then rows that only fill the batch."""
    order = list(range(len(examples))) if order is None else order
    order = order + [-1] * ((rows or len(order)) - len(order))
    input_ids = np.full((len(order), width), PAD, np.int32)
    lengths = np.array([len(examples[number]) if number >= 0 else 0 for number in order])
    for row, number in enumerate(order):
        input_ids[row, : lengths[row]] = examples[number] if number >= 0 else []
    return {
        "input_ids": input_ids,
        "attention_mask": (np.arange(width) < lengths[:, None]).astype(np.int32),
        "token_type_ids": np.zeros_like(input_ids),
        "ids": np.array(order, np.int32),
        "valid": np.array(order) >= 0,
        "label": np.array([number % 2 if number >= 0 else 0 for number in order], np.int32),
    }


def packed(examples, width, rows):
    """The examples, in order, into rows that still have room; at most `segments` = 6 a row."""
    batch = {name: np.zeros((rows, width), np.int32) for name in ("token_type_ids", "segment_ids", "position_ids")}
    batch["input_ids"] = np.full((rows, width), PAD, np.int32)
    ids, used, count = np.full((rows, 6), -1, np.int32), [0] * rows, [0] * rows
    for number, example in enumerate(examples):
        row = next(row for row in range(rows) if used[row] + len(example) <= width and count[row] < 6)
        here = slice(used[row], used[row] + len(example))
        batch["input_ids"][row, here] = example
        ids[row, count[row]] = number
        count[row] += 1
        used[row] += len(example)
        batch["segment_ids"][row, here] = count[row]
        batch["position_ids"][row, here] = np.arange(len(example))
    return batch | {"attention_mask": (batch["segment_ids"] > 0).astype(np.int32), "ids": ids, "valid": ids >= 0}


@pytest.fixture(scope="session")
def text():
    """Sixteen examples of 2 to 12 tokens (some with special tokens around them, some without), and ways to batch them.

    Their lengths, and so the counts of any two slices of a batch, are very unequal.
    """
    rng = np.random.default_rng(0)
    examples = [ordinary(rng, length) for length in [12, 12, 11, 12, 12, 2, 3, 2, 12, 2, 4, 3, 12, 2, 7, 5]]
    for example in examples[::3]:
        example[0], example[-1] = CLS, SEP
    return SimpleNamespace(
        examples=examples,
        ordinary=ordinary,
        batch=unpacked(examples, 12),
        unpacked=lambda width, **options: unpacked(examples, width, **options),
        packed=packed(examples, 30, 8),
    )


def _draw(rng, *shape):
    return jax.random.normal(rng, shape)


def hidden_of(params, batch):
    """tanh((word + position) W): each token sees itself and its place alone, so packing must change nothing."""
    backbone = params["backbone"]
    length = batch["input_ids"].shape[1]
    places = batch.get("position_ids", jnp.arange(length)[None])
    x = backbone["embeddings"]["word"]["embedding"][batch["input_ids"]]
    x = x + backbone["embeddings"]["position"]["embedding"][places]
    return jnp.tanh(x @ backbone["layer_0"]["kernel"])


@pytest.fixture(scope="session")
def toy():
    """`toy(*heads)`: a model with these heads; their logits, in a dict where there are several."""

    def make(*heads, width=WIDTH, see=None, embedding=WIDTH):
        def init(rng, batch):
            keys = iter(jax.random.split(rng, 9))
            embeddings = {
                "word": {"embedding": _draw(next(keys), VOCAB, embedding)},
                "position": {"embedding": _draw(next(keys), 40, embedding)},
            }
            params = {
                "backbone": {"embeddings": embeddings, "layer_0": {"kernel": _draw(next(keys), embedding, width)}}
            }
            outputs = {"mlm": VOCAB, "clm": VOCAB, "nsp": 2, "sop": 2, "discriminator": 1}
            for head in heads:
                params[head] = {"kernel": _draw(next(keys), width, outputs[head])}
            return params

        def apply(params, batch, *, rng=None, train=False):
            if see is not None:
                see(batch)
            hidden = hidden_of(params, batch)
            logits = {}
            for head in heads:
                x = hidden
                if head == "mlm" and "positions" in batch:
                    together = hidden.reshape(len(batch["positions"]), -1, hidden.shape[-1])
                    x = jnp.take_along_axis(together, batch["positions"][..., None], axis=1)
                if head in ("nsp", "sop"):
                    x = (hidden * batch["attention_mask"][..., None]).sum(1)
                logits[head] = x @ params[head]["kernel"]
                if head == "discriminator":
                    logits[head] = logits[head][..., 0]
            return logits if len(heads) > 1 else logits[heads[0]]

        return SimpleNamespace(init=init, apply=apply)

    return make


@pytest.fixture(scope="session")
def context_of():
    def make(objective, seed=0, train=True):
        return Context({}, objective.constants, jax.random.key(seed), train, None)

    return make


@pytest.fixture(scope="session")
def repeat():
    """The toy models' parameters as torch leaves, and their hidden states from them."""

    def leaves(params):
        return jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), params)

    def hidden(params, input_ids):
        backbone = params["backbone"]
        x = backbone["embeddings"]["word"]["embedding"][torch.tensor(np.asarray(input_ids), dtype=torch.long)]
        x = x + backbone["embeddings"]["position"]["embedding"][: x.shape[1]]
        return torch.tanh(x @ backbone["layer_0"]["kernel"])

    def assert_same_gradients(ours, leaves):
        theirs = jax.tree.map(lambda leaf: leaf.grad.numpy(), leaves)
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for own, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-6)

    return SimpleNamespace(leaves=leaves, hidden=hidden, assert_same_gradients=assert_same_gradients)
