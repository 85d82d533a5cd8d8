"""A GPT-2 of 4 layers, width 256, from scratch on Brown and the State of the Union; then a few lines of its own.

Command:  python experiments/pretrain_gpt2.py
Result:   held-out loss 5.69, perplexity 295, accuracy .141 after 1.2 M tokens; 662 s on one busy core
"""

from pathlib import Path

from jaxptft import data
from jaxptft.recipes import generate, pretrain, tokenizer_train

OUT, TOKENIZER = Path("runs/gpt2-mini-english"), Path("runs/tokenizer-gpt2")


def main() -> None:
    corpus = str(data.brown_corpus()), str(data.sotu_corpus())
    if not TOKENIZER.exists():
        tokenizer_train.run(
            tokenizer_train.Config(corpus=corpus, kind="bpe", family="gpt2", vocab_size=8000, out=TOKENIZER)
        )
    config = pretrain.Config(
        objective="clm",
        corpus=corpus,
        tokenizer=str(TOKENIZER),
        size="mini",
        out=OUT,
        max_length=128,
        length_buckets=2,
        batch_size=32,
        steps=300,
        learning_rate=1e-3,
        dropout=0.0,
        evaluate_every=50,
        eval_rows=256,
    )
    result = pretrain.run(config)
    print(f"{result.metrics}\n{result.seconds:.0f} seconds of training")
    for prompt in ("The people of the United States", "He opened the door and"):
        generate.run(generate.Config(model=str(OUT), prompt=prompt, max_new_tokens=30, temperature=0.8, top_p=0.9))


if __name__ == "__main__":
    main()
