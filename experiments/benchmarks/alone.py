"""Runs a script where jax and numpy are all there is: what else this library needs, and itself, cannot be imported.

python -I experiments/benchmarks/alone.py shipped/program/run.py rows.jsonl
"""

import runpy
import sys

BLOCKED = (
    *("jaxptft", "flax", "optax", "orbax", "transformers", "tokenizers", "datasets", "huggingface_hub", "safetensors"),
    *("pydantic", "tyro", "yaml", "rich", "jaxtyping", "sklearn", "matplotlib", "PIL", "torch"),
)
ALLOW = "--allow="  # some of them, as in --allow=tokenizers,huggingface_hub


class Blocked:
    """An importer that comes before all others, and refuses."""

    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(f"{name} is blocked")


if __name__ == "__main__":
    words = sys.argv[1:]
    allowed = words.pop(0).removeprefix(ALLOW).split(",") if words[0].startswith(ALLOW) else []
    blocked = set(BLOCKED) - set(allowed)
    if already := sorted(blocked & {name.split(".")[0] for name in sys.modules}):
        sys.exit(f"{already[0]} is imported already; start python with -I")
    sys.meta_path.insert(0, Blocked(blocked))
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
