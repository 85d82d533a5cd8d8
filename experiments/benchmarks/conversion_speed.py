"""From the start of a process to the first forward pass of a BERT-base checkpoint in safetensors.

    python experiments/benchmarks/conversion_speed.py             # results/conversion_speed_cpu.json
    python experiments/benchmarks/conversion_speed.py --smoke

`ours` is jaxptft.convert and a compiled forward pass, its program kept by an earlier process; `p0` is transformers'
own load into torch; `via_torch` loads into torch, hands its tensors over as numpy, and runs the same forward pass as
ours: what one does without a converter that reads safetensors. Every tensor saved again must be byte for byte that of
the source, and hidden states those of torch. The weights are random; their number is what counts.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import interleaved
import numpy as np
import peers
import workload

WORK, SHAPE = Path("runs/benchmarks/conversion_speed"), (1, 16)


def ids_of(vocab: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, SHAPE, np.int32)


def ours(request: dict) -> dict:
    from jaxptft import convert

    folder = Path(request["folder"])
    if request["mode"] == "bits":
        return {"identical": identical(folder)}
    found = convert.load(folder / "model")
    return forward(request, found.config, found.params)


def via_torch(request: dict) -> dict:
    """Through torch's model and the converter's table, its tensors as numpy."""
    from transformers import BertForMaskedLM

    from jaxptft.convert.engine import import_tensors
    from jaxptft.convert.families import find_family

    model = BertForMaskedLM.from_pretrained(Path(request["folder"]) / "model")
    tensors = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    fields = json.loads((Path(request["folder"]) / "model" / "config.json").read_text())
    family = find_family("bert")
    config: Any = family.read_config(fields)
    params, _, _ = import_tensors(family, config, tensors, fields=fields)
    return forward(request, config, params)


def forward(request: dict, config: Any, params: Any) -> dict:
    """The hidden states of one row by a compiled encoder."""
    import jax

    from jaxptft import models
    from jaxptft.recipes.runtime import keep_compiled_programs

    keep_compiled_programs()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    model = models.build(config, "encoder")
    ids = ids_of(config.vocab_size)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    hidden = np.asarray(jax.jit(model.apply)({"backbone": params["backbone"]}, batch))
    return measured(request, hidden)


def theirs(request: dict) -> dict:
    if request["worker"] == "via_torch":
        return via_torch(request)
    import torch
    from transformers import BertModel

    model: Any = BertModel.from_pretrained(Path(request["folder"]) / "model", add_pooling_layer=False).eval()
    ids = torch.from_numpy(ids_of(model.config.vocab_size)).long()
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.numpy()
    return measured(request, hidden)


def measured(request: dict, hidden: np.ndarray) -> dict:
    return {
        "loads": 1,
        "seconds": time.time() - request["sent"],
        "cpu_seconds": peers.cpu_seconds(),
        "peak_rss_mb": peers.peak_rss_mb(),
        "hidden": hidden[0, ::5, ::7].ravel().tolist(),
    }


def identical(folder: Path) -> bool:
    """Whether an import saved again has every tensor of the source, byte for byte, and no other."""
    from safetensors.numpy import load_file

    from jaxptft import convert

    with tempfile.TemporaryDirectory() as place:
        convert.save(Path(place) / "back", convert.load(folder / "model"))
        source, back = (load_file(path / "model.safetensors") for path in (folder / "model", Path(place) / "back"))
    return source.keys() == back.keys() and all(
        (tensor.dtype, tensor.shape, tensor.tobytes()) == (back[name].dtype, back[name].shape, back[name].tobytes())
        for name, tensor in source.items()
    )


def main() -> None:
    arguments = interleaved.parse(interleaved.parser(__doc__, "conversion_speed_cpu.json"))
    work = WORK / ("smoke" if arguments.smoke else "base")
    if not (work / "model").exists():
        workload.draw_model(work / "model", workload.SMOKE if arguments.smoke else workload.BASE)

    def ask(name: str, mode: str = "time") -> dict:
        request = {"worker": name, "mode": mode, "folder": str(work), "threads": arguments.threads}
        cache = {"JAX_COMPILATION_CACHE_DIR": str((work / "cache").absolute())}
        return peers.ask(request, script=Path(__file__), environment=cache)

    exact, names = ask("ours", "bits")["identical"], ("p0", "via_torch", "ours")
    ask("ours")  # which fills the cache
    answers = interleaved.rounds(names, arguments.rounds, lambda name, _: ask(name), amount="loads")
    reference = np.asarray(answers["p0"][0].pop("hidden"))
    apart = {}
    for name, found in answers.items():
        values = [np.asarray(answer.pop("hidden")) for answer in found if "hidden" in answer]
        apart[name] = max((float(np.abs(value - reference).max()) for value in values), default=0.0)
    print(f"hidden states, largest difference from torch's: {apart}; saved again byte for byte: {exact}")
    if max(apart.values()) > 1e-3 or not exact:
        raise SystemExit("the workers do not compute the same")
    ratios = interleaved.ratios(answers, [("ours", "p0"), ("ours", "via_torch")], amount="loads")
    workers = interleaved.summary(answers, amount="loads")
    goals = [
        interleaved.goal(">= 3x HF's own load", ratios["ours/p0"]["paired_median"], least=3.0),
        interleaved.goal(">= 5x via torch", ratios["ours/via_torch"]["paired_median"], least=5.0),
        interleaved.goal("bit-exact", float(exact), least=1.0),
    ]
    seconds = {name: 1 / found["loads_per_second_median"] for name, found in workers.items()}
    values = {"p0": seconds["p0"], "p1": seconds["via_torch"], "ours": seconds["ours"]}
    line = interleaved.line("HF checkpoint to first forward pass (P1: via torch)", "seconds", **values, goals=goals)
    body = {"table": [line], "bit_exact": exact, "hidden_apart": apart, "workers": workers, "ratios": ratios}
    interleaved.write(arguments.out, answers, body)


if __name__ == "__main__":
    interleaved.answer(ours, theirs) if sys.argv[1:] == ["worker"] else main()
