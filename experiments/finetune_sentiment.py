"""Film-review sentiment, four ways to use a pre-trained MiniLM, two epochs each.

Command:  python experiments/finetune_sentiment.py
Result:   not recorded yet
"""

from pathlib import Path

from jaxptft.recipes import demo

CONFIG = demo.Config(out=Path("runs/sentiment"), epochs=2, seed=0, test_rows=2000, validation_rows=1000)

ROWS = {
    "from scratch": {"from_scratch": True, "learning_rate": 2e-4},
    "head only": {"freeze": "backbone", "learning_rate": 5e-3},
    "top 2 layers + L2": {"freeze": "all-but-top-2", "learning_rate": 3e-4, "l2_to_pretrained": 0.01},
    "all layers": {"learning_rate": 2e-4},
}

if __name__ == "__main__":
    demo.run(CONFIG, rows=ROWS)
