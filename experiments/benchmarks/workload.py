"""Masked language modelling of one BERT, as the library trains it and as transformers + torch do.

What the benchmarks of the step, of start-up, memory, checkpoints and devices have in common: a folder with a model
drawn by transformers, a tokenizer and rows of full length; a training of it on either side; and the loss of one masked
batch, which must be the same everywhere before anything is timed. AdamW, clipping, linear schedule, 15 % masked.
"""

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peers

RATE, LEARNING_RATE, WARMUP, TOTAL = 0.15, 3e-4, 100, 10_000
PAD, UNKNOWN, CLS, SEP, MASK = 0, 100, 101, 102, 103  # as BERT's vocabularies have them


class Size(NamedTuple):
    """What fixes a model's work: the vocabulary and the rows' length, too."""

    layers: int
    width: int
    heads: int
    vocab: int
    length: int

    def step_flops(self, rows: int) -> float:
        """Model FLOPs of a step: matrix products of the forward pass of all tokens, and of the projections to the
        vocabulary of those that are masked, three times."""
        layer = 2 * 12 * self.width**2 + 4 * self.length * self.width
        masked = RATE * 2 * (self.width**2 + self.width * self.vocab)
        return 3.0 * rows * self.length * (self.layers * layer + masked)


MINI, BASE = Size(4, 256, 4, 30522, 128), Size(12, 768, 12, 30522, 128)
SMOKE = Size(2, 32, 2, 300, 16)


def draw_model(folder: Path, size: Size) -> None:
    """A BertForMaskedLM of this size, drawn by transformers with seed 0."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": size.vocab,
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.width,
        "max_position_embeddings": max(512, size.length),
    }
    folder.mkdir(parents=True, exist_ok=True)
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(folder)


def prepare(folder: Path, size: Size, *, rows: int = 512) -> None:
    """The folder, made where it is not there: `model/` with a tokenizer of made-up words, `rows.npy` of such words.

    Speed does not depend on which words they are, and nothing has to be fetched.
    """
    if (folder / "rows.npy").is_file() and json.loads((folder / "size.json").read_text()) == [*size, rows]:
        return
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    named = {PAD: "[PAD]", UNKNOWN: "[UNK]", CLS: "[CLS]", SEP: "[SEP]", MASK: "[MASK]"}
    words = {named.get(token, f"w{token}"): token for token in range(size.vocab)}
    draw_model(folder / "model", size)
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))  # pyright: ignore[reportCallIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    ends = [("[CLS]", CLS), ("[SEP]", SEP)]
    template = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
    tokens = {f"{name[1:-1].lower()}_token": name for name in named.values()}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens).save_pretrained(folder / "model")
    found = np.random.default_rng(0).integers(MASK + 1, size.vocab, (rows, size.length), np.int32)
    found[:, 0], found[:, -1] = CLS, SEP
    np.save(folder / "rows.npy", found)
    (folder / "size.json").write_text(json.dumps([*size, rows]))


def masked_batch(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """These rows with 15 % of their tokens masked, and the labels, -100 elsewhere: for the comparison of losses."""
    chosen = np.random.default_rng(0).random(rows.shape) < RATE
    chosen[:, [0, -1]] = False
    return np.where(chosen, MASK, rows), np.where(chosen, rows, -100)


def our_loss(folder: Path, rows: np.ndarray) -> float:
    """The library's loss of `masked_batch(rows)`, dropout off."""
    import jax.numpy as jnp

    from jaxptft import convert, losses, models

    imported = convert.load(folder)
    ids, labels = masked_batch(rows)
    model = models.build(imported.config, "masked_lm")
    logits = model.apply(imported.params, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    total, count = losses.masked_token_cross_entropy(logits, jnp.maximum(labels, 0), jnp.asarray(labels >= 0))
    return float(total.sum() / count.sum())


def torch_loss(folder: Path, rows: np.ndarray, *, gathered: bool = False) -> float:
    """The torch model's loss of `masked_batch(rows)`, dropout off."""
    import torch
    from transformers import BertForMaskedLM

    model: Any = BertForMaskedLM.from_pretrained(folder).eval()
    ids, labels = (torch.from_numpy(part.astype(np.int64)) for part in masked_batch(rows))
    with torch.no_grad():
        return _loss_of(model, gathered)(ids, torch.ones_like(ids), labels).item()


def check(found: Mapping[str, float], *, within: float = 1e-4) -> Mapping[str, float]:
    """`found`, the losses by worker; SystemExit where they are not the same."""
    print(f"loss of one masked batch: {dict(found)}")
    if not max(found.values()) - min(found.values()) <= within * abs(min(found.values())):
        raise SystemExit("the workers do not compute the same: not timed")
    return found


def batch_of(rows: np.ndarray, size: int, step: int) -> dict[str, np.ndarray]:
    """The batch of a step: rows in order, again and again."""
    ids = np.arange(size, dtype=np.int32) + step * size
    full = np.ones((size, rows.shape[1]), np.int32)
    return {
        "input_ids": rows[ids % len(rows)],
        "attention_mask": full,
        "token_type_ids": 0 * full,
        "ids": ids,
        "valid": np.ones(size, bool),
    }


class Training:
    """The library's objective and step from the folder's model; `together` steps are one dispatch.

    `changes` replaces fields of the model's config (dtype, dropouts); `devices` is how many share a batch.
    """

    def __init__(
        self, folder: Path, rows: np.ndarray, *, batch: int, together: int = 1, devices: int = 1, **changes: Any
    ):
        from dataclasses import replace

        import jax

        from jaxptft import convert, data, models, objectives, optim, train
        from jaxptft.recipes.training_state import first_state

        imported = convert.load(folder)
        config: Any = replace(imported.config, **changes)
        table = objectives.TokenTable(*data.token_table(data.load_tokenizer(folder), config.vocab_size))
        model = models.build(config, "masked_lm")
        self.objective = objectives.masked_lm(model, tokens=table, group=max(1, batch // devices))
        self.optimizer = optim.adamw(
            optim.schedule("linear", peak=LEARNING_RATE, steps=TOTAL, warmup=WARMUP),
            weight_decay=peers.DECAY,
            clip_norm=peers.CLIP,
        )
        self.trainable = jax.tree.map(lambda _: True, imported.params)
        self.mesh = train.make_mesh(jax.devices()[:devices])
        self.rows, self.batch, self.together = rows, batch, together
        self.state = first_state(
            self.objective,
            self.optimizer,
            imported.params,
            self.batch_at(0),
            trainable=self.trainable,
            rng=jax.random.key(0),
            mesh=self.mesh,
        )
        self.constants = train.replicate(self.objective.constants, self.mesh)
        make = partial(train.make_step, self.objective, self.optimizer, trainable=self.trainable)
        self.step: Any = train.compile_step(make, self.mesh, together=together)

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        return batch_of(self.rows, self.batch, step)

    def placed(self, first: int) -> Any:
        """The batches of the dispatch that starts with a step, where the devices want them."""
        from jaxptft import train

        batches = [self.batch_at(first + number) for number in range(self.together)]
        if self.together == 1:
            return train.shard(batches[0], self.mesh)
        return train.shard_together(batches, self.mesh, self.together)

    def dispatch(self, first: int) -> Any:
        """Takes the steps from `first` on; their losses, which need not be there yet."""
        self.state, metrics = self.step(self.state, self.constants, self.placed(first))
        return metrics["loss"].total

    def run(self, steps: int, *, first: int) -> np.ndarray:
        """The losses of so many steps, a multiple of `together`; waits for each dispatch, as the loop does on CPU."""
        found = []
        for number in range(0, steps, self.together):
            began = time.perf_counter()
            found.append(np.ravel(self.dispatch(first + number)))
            time.sleep(min(0.003, (time.perf_counter() - began) / 200))
        return np.concatenate(found)


def _loss_of(model: Any, gathered: bool) -> Callable:
    """Loss of (ids, mask, labels); with `gathered` the masked positions alone reach the vocabulary projection."""
    import torch

    def whole(ids, mask, labels):
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    def masked(ids, mask, labels, chosen=None):
        hidden = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        if chosen is None:
            chosen = (labels.view(-1) >= 0).nonzero().squeeze(1)
        logits = model.cls(hidden.view(-1, hidden.shape[-1])[chosen])
        return torch.nn.functional.cross_entropy(logits.float(), labels.view(-1)[chosen])

    return masked if gathered else whole


def torch_training(
    folder: Path,
    rows: np.ndarray,
    *,
    batch: int,
    gathered: bool = False,
    compiled: bool = False,
    device: str = "cpu",
    bf16: bool = False,
    workers: int = 0,
) -> Any:
    """A function that takes one step of transformers + torch and returns its loss; `.model`, `.optimizer` are its own.

    Masked by transformers' collator in a DataLoader, fused AdamW. `bf16` is autocast, as Trainer has it. Where
    `gathered`, which positions are masked is found before they are sent to the device, so that nothing waits for it.
    """
    import torch
    from transformers import AutoTokenizer, BertForMaskedLM, DataCollatorForLanguageModeling

    torch.manual_seed(0)
    model: Any = BertForMaskedLM.from_pretrained(folder)
    model = model.to(device).train()
    if compiled and gathered:
        model.bert = torch.compile(model.bert)  # the gather has another size each step
    loss_of = _loss_of(torch.compile(model) if compiled and not gathered else model, gathered)
    collator = DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(folder), mlm_probability=RATE)
    optimizer = peers.adamw(model, LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, peers.linear_with_warmup(TOTAL, WARMUP))
    loader = torch.utils.data.DataLoader(
        [{"input_ids": row} for row in rows],  # pyright: ignore[reportArgumentType]
        batch_size=batch,
        collate_fn=collator,
        drop_last=True,
        num_workers=workers,
        pin_memory=device != "cpu" and workers > 0,
        persistent_workers=workers > 0,
    )

    def batches():
        while True:
            yield from loader

    coming = batches()

    def step() -> torch.Tensor:
        found = next(coming)
        ids, labels = found["input_ids"], found["labels"]
        extra = {"chosen": (labels.view(-1) >= 0).nonzero().squeeze(1)} if gathered else {}
        inputs = {"ids": ids, "mask": found.get("attention_mask", torch.ones_like(ids)), "labels": labels, **extra}
        inputs = {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = loss_of(**inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), peers.CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return loss.detach()

    step.model, step.optimizer = model, optimizer  # pyright: ignore[reportFunctionMemberAccess]
    return step
