"""BBC news topics, five classes, whole articles cut to 128 tokens; MiniLM's upper half trains.

Command:  python experiments/finetune_news.py
Result:   accuracy .970, macro F1 .970 on 500 test articles (standard error .008); 231 s on 2 busy cores
"""

from pathlib import Path

from jaxptft import data
from jaxptft.recipes import finetune
from jaxptft.recipes.demo import write_csv

OUT = Path("runs/news")


def main() -> None:
    articles = dict(data.bbc_news())  # 98 of the 2,225 articles are repeated
    table = data.make_table(list(articles), list(articles.values()), source="BBC news")
    rest, test = data.split(table, 500, seed=0)
    train, validation = data.split(rest, 200, seed=0)
    parts = {"train": train, "validation": validation, "test": test}
    files = {name: write_csv(Path("runs/news-data") / f"{name}.csv", part) for name, part in parts.items()}
    config = finetune.Config(
        model=str(data.minilm_folder()),
        train=str(files["train"]),
        eval=str(files["validation"]),
        test=str(files["test"]),
        out=OUT,
        epochs=2,
        learning_rate=3e-4,
        freeze="all-but-top-3",
        length_buckets=1,
    )
    result = finetune.run(config)
    print(result.reports["test"].text, f"{result.seconds:.0f} seconds of training", sep="\n")


if __name__ == "__main__":
    main()
