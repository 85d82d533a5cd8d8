"""Film-review sentiment, four ways to use a pre-trained MiniLM, two epochs each.

Command:  python experiments/finetune_sentiment.py
Result:   not recorded yet
"""

from pathlib import Path

from jaxptft.recipes import demo

CONFIG = demo.Config(
    out=Path("runs/sentiment"), epochs=2, seed=0, train_rows=10_000, validation_rows=1000, test_rows=2000
)

if __name__ == "__main__":
    demo.run(CONFIG, rows=demo.ROWS)
