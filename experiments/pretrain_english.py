"""BERT-mini (4 layers, width 256) from scratch by masked language modelling on Brown and the State of the Union.

Command:  python experiments/pretrain_english.py
Result:   held-out loss 4.07 over 30 % of the tokens, perplexity 58.8, accuracy .336; 77 minutes on one busy core
"""

from pathlib import Path

from jaxptft import data
from jaxptft.recipes import pretrain, tokenizer_train
from jaxptft.recipes.training_settings import Optimizer

OUT, TOKENIZER = Path("runs/bert-mini-english"), Path("runs/tokenizer-english")


def corpus() -> tuple[str, ...]:
    return str(data.brown_corpus()), str(data.sotu_corpus())


def main() -> None:
    if not TOKENIZER.exists():
        tokenizer_train.run(
            tokenizer_train.Config(corpus=corpus(), kind="wordpiece", vocab_size=8000, out=TOKENIZER, lowercase=True)
        )
    config = pretrain.Config(
        corpus=corpus(),
        tokenizer=str(TOKENIZER),
        size="mini",
        out=OUT,
        max_length=64,
        length_buckets=1,
        batch_size=16,
        steps=12_000,
        learning_rate=1e-3,
        optimizer=Optimizer(b2=0.98),
        masking=pretrain.Masking(rate=0.3),  # a small model learns more from more tokens to predict
        dropout=0.0,  # few passes: little to overfit
        evaluate_every=500,
        eval_rows=256,
        resume=(OUT / "config.yaml").exists(),  # it takes an hour and more, and may be stopped
    )
    result = pretrain.run(config)
    print(f"{result.metrics}\n{result.seconds:.0f} seconds of training")


if __name__ == "__main__":
    main()
