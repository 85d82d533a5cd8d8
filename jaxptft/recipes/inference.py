"""A classifier from any folder, ready to score rows."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from jaxptft import data, models, objectives, optim, train
from jaxptft.recipes.model_source import open_model
from jaxptft.recipes.run_folder import CONFIG
from jaxptft.recipes.settings import read_yaml


class Classifier:
    """A model with a classification head, and its tokenizer and labels.

    Raises ValueError when the folder holds an encoder without a head.
    """

    def __init__(self, model: str | Path, *, family: str | None = None, allow_bin: bool = False):
        folder, checkpoint = open_model(model, family=family, allow_bin=allow_bin)
        if "classifier" not in checkpoint.params or not checkpoint.labels:
            raise ValueError(f"{model} has no classification head; fine-tune it first (jaxptft finetune)")
        problem = checkpoint.extras.fields.get("problem_type")
        if len(checkpoint.labels) < 2 or problem not in (None, "single_label_classification"):
            raise ValueError(
                f"{model} does not tell classes apart: its head has {len(checkpoint.labels)} outputs and problem_type "
                f"{problem!r}; expected two or more and single_label_classification"
            )
        self.names = tuple(checkpoint.labels)
        self.tokenizer = data.load_tokenizer(folder)
        self.config = checkpoint.config
        data.check_vocabulary(self.tokenizer, self.config.vocab_size)
        self.max_length = _length_of_run(folder) or min(self.config.max_length, self.tokenizer.model_max_length)
        network = models.build(self.config, "classification", classes=len(self.names))
        row = {name: np.zeros((1, 3), np.int32) for name in ("input_ids", "attention_mask", "token_type_ids")}
        wanted = jax.eval_shape(network.init, jax.random.key(0), row)
        known = set(optim.paths(checkpoint.params))
        if lacking := [path for path in optim.paths(wanted) if path not in known]:
            raise ValueError(f"{model} lacks {lacking[0]}; fine-tune it first (jaxptft finetune)")
        objective = objectives.classification(network)
        self._evaluator = train.make_evaluator(objective, labelled=False)
        self._mesh = train.make_mesh()
        self._params = train.replicate(checkpoint.params, self._mesh)

    def logits(
        self,
        table: data.Table,
        *,
        batch_size: int = 64,
        max_length: int | None = None,
        say: Callable[[str], None] = print,
    ) -> Float[np.ndarray, "rows classes"]:
        """The logits of each row, in the order of the rows; says how many texts were cut.

        Raises FloatingPointError where they are not finite.
        """
        longest: int = min(max_length or self.max_length, self.config.max_length)
        tokenized = data.tokenize(table, self.tokenizer, longest)
        data.check_tokens(tokenized, self.config.vocab_size)
        if tokenized.truncated:
            say(f"{tokenized.truncated} of {len(table)} texts are longer than {longest} tokens and were cut")
        batches = data.Batches(tokenized, batch_size=batch_size, shuffle=False, multiple_of=self._mesh.size)
        with train.Progress("rows", batches.steps_per_epoch) as progress:

            def stream():
                for step in range(batches.steps_per_epoch):
                    batch = batches.batch_at(step)
                    yield batch
                    progress.update(step + 1, None, int(batch["valid"].sum()))

            evaluation = train.evaluate(
                self._evaluator, self._params, {}, None, stream(), place=lambda batch: train.shard(batch, self._mesh)
            )
        logits = jax.device_get(evaluation.predictions["logits"])
        broken = np.flatnonzero(~np.isfinite(logits).all(-1))
        if len(broken):
            row = table.rows[broken[0]]
            raise FloatingPointError(
                f"{table.source}, row {row}: the model gives NaN or infinity; its weights are broken"
            )
        return logits


def _length_of_run(folder: Path) -> int | None:
    """The max_length of the run that the folder is the model of."""
    recorded = folder.parent / CONFIG
    if folder.name != "model" or not recorded.is_file():
        return None
    try:
        value = read_yaml(recorded).get("max_length")
    except ValueError:  # another program's file
        return None
    return value if type(value) is int and value >= 3 else None
