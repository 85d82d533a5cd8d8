"""Masked language modelling on Brown, the library against transformers + torch: same start, batches, schedule.

Both sides begin with the weights that one torch model was initialised with, see the same rows in the same order, and
use AdamW (rate 1e-3, linear with a tenth of warm-up, decay .01, clip 1) and dropout .1; each masks on its own, 15 % of
the tokens, 80/10/10. At the end both are scored by torch on one set of held-out rows with one set of masks.

    python experiments/benchmarks/mlm_curves.py prepare   # corpus, tokenizer, starting folders
    python experiments/benchmarks/mlm_curves.py torch
    python experiments/benchmarks/mlm_curves.py jaxptft
    python experiments/benchmarks/mlm_curves.py compare   # results/mlm_curves.json and mlm_curves.png
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

SEEDS, STEPS, RATE, LENGTH, BATCH, LOG = (0, 1, 2), 1200, 1e-3, 64, 32, 10
WORK = Path("runs/mlm-curves")
RESULTS = Path(__file__).parent / "results"


def prepare(work: Path) -> None:
    """The corpus as text files, a tokenizer made from it, and one torch initialisation a seed."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    from jaxptft import data
    from jaxptft.recipes import tokenizer_train

    corpus = data.brown_corpus()
    folder = work / "tokenizer"
    if not folder.exists():
        tokenizer_train.run(
            tokenizer_train.Config(corpus=(str(corpus),), kind="wordpiece", vocab_size=4000, out=folder)
        )
    tokenizer = data.load_tokenizer(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=512,
        pad_token_id=tokenizer.pad_token_id,
    )
    for seed in SEEDS:
        torch.manual_seed(seed)
        BertForMaskedLM(config).save_pretrained(work / f"init-{seed}")
        tokenizer.save_pretrained(work / f"init-{seed}")


def config_of(work: Path, seed: int):
    """The recipe's values, which also decide what torch sees."""
    from jaxptft import data
    from jaxptft.recipes import pretrain

    return pretrain.Config(
        corpus=(str(data.brown_corpus()),),
        model=str(work / f"init-{seed}"),
        out=work / f"jaxptft-{seed}",
        max_length=LENGTH,
        length_buckets=2,
        batch_size=BATCH,
        steps=STEPS,
        learning_rate=RATE,
        log_every=LOG,
        eval_rows=512,
        seed=seed,
        overwrite=(work / f"jaxptft-{seed}").exists(),
    )


def rows_of(work: Path, seed: int):
    """The batches that the recipe trains and evaluates on."""
    from jaxptft.recipes.pretrain_run import PretrainRun
    from jaxptft.train import StopFlag

    return PretrainRun(config_of(work, seed), name="rows", say=lambda line: None, stop=StopFlag()).batches


def masked(batch: dict, collator, special: np.ndarray) -> dict:
    """A batch of ours as transformers' collator would hand it to torch."""
    import torch

    inputs = {
        key: torch.from_numpy(batch[key].astype(np.int64)) for key in ("input_ids", "attention_mask", "token_type_ids")
    }
    never = torch.from_numpy(np.isin(batch["input_ids"], special))
    inputs["input_ids"], inputs["labels"] = collator.torch_mask_tokens(inputs["input_ids"], never)
    return inputs


def torch_side(work: Path, seed: int) -> None:
    """Training as people write it; the losses go to torch-SEED.json, the model to torch-SEED/."""
    import torch
    from transformers import (
        AutoTokenizer,
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        get_linear_schedule_with_warmup,
    )

    tokenizer = AutoTokenizer.from_pretrained(work / f"init-{seed}")
    collator, special = DataCollatorForLanguageModeling(tokenizer), np.asarray(tokenizer.all_special_ids)
    model = BertForMaskedLM.from_pretrained(work / f"init-{seed}").train()
    torch.manual_seed(1000 + seed)
    plain = [name for name, _ in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
    groups = [
        {"params": [p for name, p in model.named_parameters() if name not in plain], "weight_decay": 0.01},
        {"params": [p for name, p in model.named_parameters() if name in plain], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(0.1 * STEPS), STEPS)
    batches, losses = rows_of(work, seed)["train"], []
    for step in range(STEPS):
        inputs = masked(batches.batch_at(step), collator, special)
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append((float(loss.detach()), int((inputs["labels"] != -100).sum())))
    means = [
        [start + LOG, sum(loss * count for loss, count in part) / sum(count for _, count in part)]
        for start in range(0, STEPS, LOG)
        for part in [losses[start : start + LOG]]
    ]
    model.save_pretrained(work / f"torch-{seed}")
    (work / f"torch-{seed}.json").write_text(json.dumps(means))
    print(f"torch, seed {seed}: training loss of the last {LOG} steps {means[-1][1]:.4f}")


def jaxptft_side(work: Path, seed: int) -> None:
    """The pretrain recipe; its log is read for the losses."""
    from jaxptft.recipes import pretrain

    config = config_of(work, seed)
    pretrain.run(config)
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    means = [[line["step"], line["loss"]] for line in lines if line["kind"] == "train"]
    (work / f"jaxptft-{seed}.json").write_text(json.dumps(means))


def score(work: Path, folder: Path, seed: int) -> float:
    """Held-out loss by torch, with masks that depend on the seed alone."""
    import torch
    from transformers import AutoTokenizer, BertForMaskedLM, DataCollatorForLanguageModeling

    tokenizer = AutoTokenizer.from_pretrained(work / f"init-{seed}")
    collator, special = DataCollatorForLanguageModeling(tokenizer), np.asarray(tokenizer.all_special_ids)
    model, batches = BertForMaskedLM.from_pretrained(folder).eval(), rows_of(work, seed)["eval"]
    torch.manual_seed(seed)
    total = count = 0
    with torch.no_grad():
        for step in range(batches.steps_per_epoch):
            inputs = masked(batches.batch_at(step), collator, special)
            chosen = int((inputs["labels"] != -100).sum())
            total, count = total + float(model(**inputs).loss) * chosen, count + chosen
    return total / count


def compare(work: Path) -> None:
    """The two curves of every seed in one picture, and the held-out losses in a table."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes, found = figure.subplots(), []
    for side, colour, folder in (("torch", "tab:orange", "torch-{}"), ("jaxptft", "tab:blue", "jaxptft-{}/model")):
        for seed in SEEDS:
            curve = np.asarray(json.loads((work / f"{side}-{seed}.json").read_text()))
            axes.plot(*curve.T, color=colour, alpha=0.7, label=side if seed == SEEDS[0] else None)
            held = score(work, work / folder.format(seed), seed)
            found.append({"side": side, "seed": seed, "held_out_loss": held, "curve": curve.tolist()})
            print(f"{side:8} seed {seed}: held-out loss {held:.4f}, last training loss {curve[-1, 1]:.4f}")
    axes.set(xlabel="optimizer step", ylabel="masked language modelling loss (nats)")
    axes.legend()
    axes.grid(alpha=0.3)
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "mlm_curves.png", dpi=150)
    (RESULTS / "mlm_curves.json").write_text(json.dumps(found) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("prepare", "torch", "jaxptft", "compare"))
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args()
    if options.part in ("prepare", "compare"):
        {"prepare": prepare, "compare": compare}[options.part](options.work)
        return
    for seed in SEEDS:
        {"torch": torch_side, "jaxptft": jaxptft_side}[options.part](options.work, seed)


if __name__ == "__main__":
    main()
