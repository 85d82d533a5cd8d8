"""LoRA adapters alone, in the format of the `peft` library, both ways and without torch.

adapter_config.json        rank, alpha, which modules have adapters, which were trained whole
adapter_model.safetensors  base_model.model.MODULE.lora_A.weight [rank, inputs] and .lora_B.weight [outputs, rank],
                           and under their own names the tensors of modules that were trained whole: the head

`peft` puts such a folder on the Hugging Face model that the adapters were trained on. MODULE is a tensor's name there
without `.weight`, so the families' tables of rules give it. Adapters of GPT-2's Conv1D modules, which hold kernels as
we do, are stored alike, and `fan_in_fan_out` says so.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxptft.convert import engine
from jaxptft.convert.checkpoint import Checkpoint
from jaxptft.convert.families import find_family
from jaxptft.convert.heads import find_architecture, free_axes, head_rules
from jaxptft.convert.hf_config import read_json
from jaxptft.convert.match import standard_name
from jaxptft.convert.rules import IDENTITY, Config, Family, Rule
from jaxptft.convert.slimming import narrowed_adapters, widened_adapters
from jaxptft.convert.staging import new_folder
from jaxptft.convert.tensors import read_safetensors
from jaxptft.convert.wording import listed
from jaxptft.models import Params

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_ROOT = "base_model.model."
_TASKS = {"classifier": "SEQ_CLS", "token_classifier": "TOKEN_CLS", "question_answering": "QUESTION_ANS"}
_EXPECTED = {  # what would change the sum W + scale * a b, and is not read
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", None),  # others start from a changed W
}


class Adapter(NamedTuple):
    """What a folder holds: {"lora": adapters, and what was trained whole: a head}, and how the product is scaled."""

    params: Params
    rank: int
    alpha: float
    rank_stabilized: bool
    base: str | None  # the model that it was trained on


def save_adapter(
    folder: str | Path,
    checkpoint: Checkpoint,
    params: Params,
    *,
    alpha: float,
    rank_stabilized: bool = False,
    trained: Collection[str] = (),
    base: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the adapters under `params["lora"]`, and its heads, as a folder that `peft` loads onto the base model.

    `checkpoint` is the base model, of which the family and config are read; `base` its name or folder, for whoever
    loads the adapters. `trained` are the paths in the backbone that were trained whole: a pooler that the base lacks.
    The folder appears whole or not at all.

    Raises ValueError for parameters that no rule takes, heads that share the word table, and adapters of several ranks;
    FileExistsError for a folder that is not empty, unless `overwrite` and it holds a model or an adapter.
    """
    from safetensors.numpy import save_file

    family = find_family(checkpoint.family)
    params = widened_adapters(checkpoint.config, params)
    heads = engine.heads_of(family, params)
    for head in heads:
        if family.heads[head].tied:
            raise ValueError(f"the head {head} shares the word table, which peft cannot save apart: merge the adapters")
    leaves = engine.flatten(params)
    rules = _by_path(family, checkpoint.config, engine.sizes_of(family, checkpoint.config, heads, leaves))
    prefix = _prefix(family, heads)

    def module_of(path: str) -> str:
        if path not in rules:
            raise ValueError(f"no rule of family {family.name} takes parameter {path}: leave it out")
        name = rules[path].hf_name
        return (prefix if path.startswith("backbone/") else "") + name.rpartition(".")[0]

    kernels = sorted({path.removeprefix("lora/").rpartition("/")[0] for path in leaves if path.startswith("lora/")})
    if not kernels:
        raise ValueError(f"params has {', '.join(sorted(params))} and no adapters under lora: there is nothing to save")
    if strangers := [path for path in kernels if not path.startswith("backbone/")]:
        raise ValueError(f"a head is saved whole, and {listed(strangers)} has an adapter: adapt the backbone's kernels")
    ranks = {leaves[f"lora/{path}/a"].shape[1] for path in kernels}
    if len(ranks) > 1:
        raise ValueError(f"the adapters have the ranks {sorted(ranks)}: expected one for all")
    tensors = {}
    for path in kernels:
        for part, name in (("a", "lora_A"), ("b", "lora_B")):
            tensors[f"{_ROOT}{module_of(path)}.{name}.weight"] = leaves[f"lora/{path}/{part}"].T
    whole = {module_of(path) for path in trained}
    for path, rule in rules.items():
        if path in leaves and (not path.startswith("backbone/") or module_of(path) in whole):
            name = f"{module_of(path)}.{rule.hf_name.rpartition('.')[2]}"
            tensors[_ROOT + name] = rule.layout.to_hf(leaves[path])
            if not path.startswith("backbone/"):
                whole.add(name.partition(".")[0])  # a head is saved by its outermost module

    config = {
        "peft_type": "LORA",
        "task_type": _task_type(family, heads),
        "base_model_name_or_path": base,
        "r": ranks.pop(),
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": rank_stabilized,
        "fan_in_fan_out": all(rules[path].layout is IDENTITY for path in kernels),
        "target_modules": [module_of(path) for path in kernels],
        "modules_to_save": sorted(whole) or None,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    with new_folder(folder, overwrite=overwrite) as staging:
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        whole_tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
        save_file(whole_tensors, staging / WEIGHTS, metadata={"format": "pt"})


def load_adapter(folder: str | Path, checkpoint: Checkpoint, *, head: str | None = None) -> Adapter:
    """Reads adapters for the kernels of `checkpoint`, its base model: ours, or `peft`'s own.

    `head` is the key in params of the head among the tensors, where the folder's task does not tell it.

    Raises FileNotFoundError for absent files, and ValueError in one line for what is not LoRA on this model.
    """
    source = Path(folder)
    fields = read_json(source / CONFIG)
    for name, expected in _EXPECTED.items():
        if fields.get(name, expected[-1]) not in expected:
            raise ValueError(f"{source / CONFIG}: {name} is {fields[name]!r}; only {expected[0]!r} is read")
    for name in ("r", "lora_alpha"):
        if not isinstance(fields.get(name), int | float):
            raise ValueError(f"{source / CONFIG}: {name} is {fields.get(name)!r}; expected a number")
    if not (source / WEIGHTS).is_file():
        raise FileNotFoundError(f"{source / WEIGHTS} does not exist")
    tensors = read_safetensors(source / WEIGHTS)
    family, config = find_family(checkpoint.family), checkpoint.config
    named = {standard_name(family, name.removeprefix(_ROOT)): array for name, array in tensors.items()}
    if head is None:
        head = next((key for key, task in _TASKS.items() if task == fields.get("task_type")), None)
    sizes = {} if head is None else {head: _classes(family, config, head, named)}
    rules = {rule.hf_name: rule for rule in _by_path(family, config, sizes).values()}

    params: Params = {}
    for name, array in named.items():
        rule, parts, shape = _place(rules, name)
        if rule is None:
            raise ValueError(f"{source / WEIGHTS}: tensor {name} is of nothing in family {family.name}")
        if parts:  # of an adapter: [rank, inputs] or [outputs, rank]
            inputs, outputs = rule.layout.to_flax(np.empty(rule.shape, np.bool_)).shape
            shape = (array.shape[0], inputs) if parts[-1] == "a" else (outputs, array.shape[-1])
        if array.shape != shape:
            raise ValueError(f"{source / WEIGHTS}: tensor {name} has shape {array.shape}, expected {shape}")
        value = array.T if parts else rule.layout.to_flax(array)
        _put(params, parts or rule.flax_path.split("/"), np.ascontiguousarray(value, np.float32))
    if "lora" not in params:
        raise ValueError(f"{source / WEIGHTS} holds no adapters, but {listed(sorted(named))}")
    return Adapter(
        narrowed_adapters(config, params),
        rank=int(fields["r"]),
        alpha=float(fields["lora_alpha"]),
        rank_stabilized=bool(fields.get("use_rslora")),
        base=fields.get("base_model_name_or_path"),
    )


def _place(rules: Mapping[str, Rule], name: str) -> tuple[Rule | None, list[str], tuple[int, ...]]:
    """The rule of a tensor, and where in params it belongs if it is part of an adapter."""
    for part, ending in (("a", ".lora_A.weight"), ("b", ".lora_B.weight")):
        if name.endswith(ending):
            rule = rules.get(name.removesuffix(ending) + ".weight")
            if rule is None or not rule.flax_path.endswith("/kernel"):
                return None, [], ()
            return rule, ["lora", *rule.flax_path.split("/"), part], ()
    rule = rules.get(name)
    return rule, [], () if rule is None else rule.shape


def _put(params: Params, path: Sequence[str], value: np.ndarray) -> None:
    node: dict[str, Any] = params
    for name in path[:-1]:
        node = node.setdefault(name, {})
    node[path[-1]] = value


def _by_path(family: Family, config: Config, sizes: Mapping[str, int]) -> dict[str, Rule]:
    return {rule.flax_path: rule for rule in family.backbone_rules(config) + head_rules(family, config, sizes)}


def _prefix(family: Family, heads: Sequence[str]) -> str:
    """What modules of the backbone begin with in the class that is written for these heads."""
    architecture = find_architecture(family, heads)
    bare = architecture.endswith("Model") and not architecture.endswith("HeadModel")
    return "" if bare else family.prefix


def _task_type(family: Family, heads: Sequence[str]) -> str | None:
    if not heads:
        return "CAUSAL_LM" if find_architecture(family, heads).endswith("LMHeadModel") else None
    return _TASKS.get(heads[0])


def _classes(family: Family, config: Config, head: str, named: Mapping[str, np.ndarray]) -> int:
    if head not in family.heads:
        raise ValueError(f"family {family.name} has no head {head!r}: expected one of {', '.join(family.heads)}")
    if not family.heads[head].sized:
        return 0
    found = [named[rule.hf_name].shape[axis] for rule, axis in free_axes(family, config, head) if rule.hf_name in named]
    return found[0] if found else 1
