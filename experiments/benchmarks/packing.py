"""What packing saves on real short texts: padding, equality of loss and gradient, and tokens a second.

Film-review sentences under masked language modelling with a BERT of 4 layers, width 256: one sentence a row, padded to
the longest of a shuffled batch (to a multiple of 16) or to one of six fitted lengths, against several sentences in rows
of 128 tokens. A step holds about the same number of real tokens in each; they take turns, and medians are reported.

    python experiments/benchmarks/packing.py   # results/packing_cpu.json
"""

import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxptft import data, models, objectives, train

LENGTH, ROWS, ROUNDS, STEPS, OUT = 128, 8, 5, 4, Path(__file__).parent / "results" / "packing_cpu.json"


def rows() -> tuple[data.Tokenized, object]:
    texts = sorted({text for text, _ in data.hutto_sentences("movies")})
    tokenizer = data.load_tokenizer(data.minilm_folder())
    table = data.make_table(texts, source="film reviews")
    return data.tokenize(table, tokenizer, LENGTH), tokenizer


def kinds(tokenized: data.Tokenized) -> dict:
    """The three kinds of batches; unpacked ones have as many sentences as a packed one holds on average."""
    packed = data.PackedBatches(tokenized, batch_size=ROWS, length=LENGTH)
    many = round(len(tokenized) / packed.steps_per_epoch)
    longest = data.Batches(tokenized, batch_size=many, window=1, buckets=range(16, LENGTH + 1, 16))
    buckets = data.fitted_buckets(tokenized.lengths, 6, most=LENGTH)
    return {
        "longest of a shuffled batch": longest,
        "six fitted lengths": data.Batches(tokenized, batch_size=many, buckets=buckets),
        "packed": packed,
    }


def masked_lm(tokenizer: object, vocab_size: int) -> objectives.Objective:
    config = models.BertConfig(
        vocab_size=vocab_size, width=256, layers=4, heads=4, mlp_width=1024, dropout=0.0, attention_dropout=0.0
    )
    table = objectives.TokenTable(*data.token_table(tokenizer, vocab_size))
    return objectives.masked_lm(models.build(config, "masked_lm"), tokens=table)


def equality(objective: objectives.Objective, batches: data.PackedBatches) -> dict[str, float]:
    """Loss and gradient of one packed batch, and of its sentences one a row: the relative difference of each."""
    packed = batches.batch_at(0)
    ids = packed["ids"][packed["valid"]]
    width = int(batches.tokenized.lengths[ids].max())
    tokens, mask = np.zeros((2, len(ids), width), np.int32)
    for place, row in enumerate(ids):
        found = batches.tokenized.row(row)
        tokens[place, : len(found)], mask[place, : len(found)] = found, 1
    alone = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": 0 * mask, "ids": ids, "valid": ids >= 0}
    params = objective.init(jax.random.key(0), alone)

    def loss(params, batch):
        context = objectives.Context({}, objective.constants, jax.random.key(1), True, None)
        return objectives.total_loss(objective.loss(params, batch, context)[0])

    run = jax.jit(jax.value_and_grad(loss))
    (one, gradient), (other, expected) = run(params, packed), run(params, alone)
    apart = optax.global_norm(jax.tree.map(jnp.subtract, gradient, expected)) / optax.global_norm(expected)
    return {"loss": abs(float(one / other) - 1), "gradient": float(apart)}


def speeds(objective: objectives.Objective, parts: dict) -> dict[str, float]:
    """Real tokens a second of a training step; compiled before, measured in turns."""
    mesh = train.make_mesh(jax.devices()[:1])
    optimizer = optax.adamw(1e-4)
    first = next(iter(parts.values())).batch_at(0)
    params = objective.init(jax.random.key(0), first)
    trainable = jax.tree.map(lambda leaf: True, params)
    step = train.jit_step(train.make_step(objective, optimizer, trainable=trainable), mesh)
    state = train.create_state(objective, optimizer, params, first, trainable=trainable, rng=jax.random.key(1))
    state, constants = train.replicate(state, mesh), train.replicate(objective.constants, mesh)
    found: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(ROUNDS + 1):
        for name, batches in parts.items():
            chosen = [batches.batch_at(turn * STEPS + number) for number in range(STEPS)]
            for batch in chosen:  # every shape once, unmeasured
                state, metrics = step(state, constants, train.shard(batch, mesh))
            jax.block_until_ready(metrics)
            began = time.perf_counter()
            for batch in chosen:
                state, metrics = step(state, constants, train.shard(batch, mesh))
            jax.block_until_ready(metrics)
            seconds = time.perf_counter() - began
            if turn:
                found[name].append(sum(int(batch["attention_mask"].sum()) for batch in chosen) / seconds)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    tokenized, tokenizer = rows()
    parts = kinds(tokenized)
    objective = masked_lm(tokenizer, 30522)
    padding = {name: data.padding_share(batches) for name, batches in parts.items()}
    same = equality(objective, parts["packed"])
    rates = speeds(objective, parts)
    base = rates["longest of a shuffled batch"]
    for name, rate in rates.items():
        print(f"{name:28} padding {padding[name]:6.1%}   {rate:7.0f} tokens/s   {rate / base:.2f}x")
    print(f"packed against one a row: loss {same['loss']:.1e}, gradient {same['gradient']:.1e} (relative)")
    OUT.parent.mkdir(exist_ok=True)
    record = {"sentences": len(tokenized), "padding": padding, "tokens_per_second": rates, "difference": same}
    OUT.write_text(json.dumps(record | {"jax": jax.__version__}, indent=2) + "\n")


if __name__ == "__main__":
    main()
