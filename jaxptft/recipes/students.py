"""Where a student comes from, and which of its layers answer to which of the teacher's: what the flags say."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxptft.convert import Checkpoint
    from jaxptft.objectives import LayerMap

LAYERS = "layers:"


def read_layers(student: str) -> list[int]:
    """The layers that `layers:0,2,4` names; ValueError where that is no list of numbers."""
    numbers = student.removeprefix(LAYERS).split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise ValueError(f"student is {student!r}; expected layers counted from 0, as layers:0,2,4")
    return [int(number) for number in numbers]


def read_pairs(given: str) -> "LayerMap | None":
    """The pairs that `1:2,2:4` names; None for the words uniform and last. ValueError for anything else."""
    if given in ("uniform", "last"):
        return None
    pairs = [pair.split(":") for pair in given.split(",")]
    if not all(len(pair) == 2 and all(number.strip().isdecimal() for number in pair) for pair in pairs):
        raise ValueError(f"a layer map is {given!r}; expected uniform, last, or pairs STUDENT:TEACHER as 1:2,2:4")
    return tuple((int(one), int(other)) for one, other in pairs)


def layer_map(given: str, student: int, teacher: int, *, embeddings: bool) -> "LayerMap":
    """The pairs of layers of two models with so many layers; without `embeddings`, uniform begins at layer 1."""
    from jaxptft import objectives

    if (pairs := read_pairs(given)) is not None:
        return pairs
    if given == "last":
        return objectives.last_layers(student, teacher)
    return objectives.uniform_layers(student, teacher)[0 if embeddings else 1 :]


def make_student(student: str, teacher: "Checkpoint", load: Callable[[str], "Checkpoint"]) -> "Checkpoint":
    """The checkpoint a student starts from; without parameters where it starts from nothing.

    `load` opens a folder. Raises ValueError for layers that the teacher lacks or cannot do without.
    """
    from jaxptft.convert.surgery import keep_layers
    from jaxptft.recipes.pretrain_run import SIZES

    if student.startswith(LAYERS):
        return keep_layers(teacher, read_layers(student))
    if student in SIZES:
        return _of_size(teacher, *SIZES[student])
    return load(student)


def _of_size(teacher: "Checkpoint", layers: int, width: int, heads: int) -> "Checkpoint":
    """A model of the teacher's family and vocabulary, in another size, from nothing."""
    from jaxptft import convert

    config: Any = teacher.config
    values: dict[str, Any] = {"layers": layers, "width": width, "heads": heads, "mlp_width": 4 * width}
    if getattr(config, "embedding_width", None) is not None:
        narrow = min(config.embedding_width, width)
        values["embedding_width"] = None if teacher.family == "electra" and narrow == width else narrow
    if getattr(config, "layer_groups", None) is not None:
        values["layer_groups"] = min(config.layer_groups, layers)
    if hasattr(config, "global_layers"):
        values["global_layers"] = None
    fields = {name: value for name, value in teacher.extras.fields.items() if name.endswith("_token_id")}
    made = convert.new_checkpoint(replace(config, **values), family=teacher.family, fields=fields)
    return replace(made, params={"backbone": {}}, tokenizer_files=teacher.tokenizer_files)


def in_order(checkpoint: "Checkpoint", head: str | None, names: Sequence[str] | None) -> "Checkpoint":
    """The checkpoint with the outputs of its head in the order of `names`; as it is where the names are others."""
    import numpy as np

    labels = checkpoint.labels
    if head is None or names is None or labels is None or head not in checkpoint.params or list(names) == labels:
        return checkpoint
    if set(names) != set(labels):
        return checkpoint
    order = [labels.index(name) for name in names]
    held = checkpoint.params[head]
    last = {key: np.asarray(leaf)[..., order] for key, leaf in held.get("out", held).items()}
    moved = {**held, "out": last} if "out" in held else last
    return replace(checkpoint, params={**checkpoint.params, head: moved}, labels=list(names))
