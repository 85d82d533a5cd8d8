"""Plans that are made for any model: lower rates below, one layer more at a time, biases alone.

The pieces of a backbone are its embeddings, its layers as they are stored (ALBERT's groups count as one each), and what
follows them: a pooler, a last norm. A convolutional one has a stem and stages instead. Everything outside the backbone
is a head.
"""

import itertools
from collections.abc import Sequence

from jaxtyping import PyTree

from jaxptft.optim.freezing import backbone_of, entry_of, layers_of
from jaxptft.optim.patterns import matches, paths
from jaxptft.optim.plan import Plan, Rule


def _ordered(params: PyTree) -> tuple[list[str], list[str]]:
    """The backbone's pieces from the input up to its last layer, and those that follow."""
    backbone = backbone_of(params)
    below = [*entry_of(backbone), *layers_of(backbone)]
    return below, sorted(set(backbone) - set(below))


def layer_decay(params: PyTree, decay: float) -> Plan:
    """Rates that fall by the factor `decay` from piece to piece toward the input; the heads keep the whole rate.

        rate = decay ^ (layers + 2 - depth)

    with depth 0 for the embeddings, k + 1 for layer k, layers + 1 for what follows them, and layers + 2 for the heads.
    Clark et al. 2020 (ELECTRA), arXiv:2003.10555, appendix B, and `_get_layer_lrs` in their code.

    Raises:
        ValueError: decay is not in (0, 1], or params has no backbone.

    >>> params = {"backbone": {"embeddings": {"word": 0}, "layer_0": {"bias": 0}, "pooler": {"bias": 0}}}
    >>> {pattern: rule.rate for pattern, rule in layer_decay(params, 0.5).rules.items()}
    {'backbone/embeddings/**': 0.125, 'backbone/layer_0/**': 0.25, 'backbone/pooler/**': 0.5}
    """
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"layer_decay must lie in (0, 1], got {decay}")
    below, above = _ordered(params)
    layers = layers_of(backbone_of(params))
    depths = {piece: layers.index(piece) + 1 if piece in layers else 0 for piece in below}
    depths |= dict.fromkeys(above, len(layers) + 1)
    rules = {f"backbone/{piece}/**": Rule(rate=decay ** (len(layers) + 2 - depth)) for piece, depth in depths.items()}
    return Plan(rules, "layer_decay", whole=True)


def gradual_unfreezing(params: PyTree, *, every: int | float | None = None, at: Sequence[int | float] = ()) -> Plan:
    """The heads and what follows the layers train from the start, then the top layer too, then the one below it, and
    the embeddings last.

    One piece more is unfrozen `every` so many steps, or at each of the steps `at`, where the last brings all that is
    left. A float is a fraction of the run. Howard and Ruder 2018 (ULMFiT), arXiv:1801.06146, section 3.3.

    Raises:
        ValueError: neither or both of `every` and `at`, numbers out of order, or params has no backbone.

    >>> params = {"backbone": {"embeddings": {"word": 0}, "layer_0": {"bias": 0}, "layer_1": {"bias": 0}}}
    >>> {pattern: rule.unfreeze for pattern, rule in gradual_unfreezing(params, every=10).rules.items()}
    {'backbone/layer_1/**': 10, 'backbone/layer_0/**': 20, 'backbone/embeddings/**': 30}
    >>> {pattern: rule.unfreeze for pattern, rule in gradual_unfreezing(params, at=(5, 8)).rules.items()}
    {'backbone/layer_1/**': 5, 'backbone/layer_0/**': 8, 'backbone/embeddings/**': 8}
    """
    if (every is None) == (not at):
        raise ValueError("unfreeze needs either every (a number of steps) or at (a list of steps), and not both")
    if every is not None and not every > 0:
        raise ValueError(f"unfreeze.every must be positive, got {every}")
    if any(first > second for first, second in itertools.pairwise(at)) or any(step < 0 for step in at):
        raise ValueError(f"unfreeze.at must rise from 0 on, got {', '.join(map(str, at))}")
    if len({isinstance(step, int) for step in at}) > 1:
        raise ValueError(f"unfreeze.at must be steps (ints) or fractions (floats), not both: {', '.join(map(str, at))}")
    pieces = _ordered(params)[0][::-1]
    if not pieces:
        raise ValueError("unfreeze needs a backbone with embeddings or layers; this one has neither")
    steps = [(index + 1) * every if every is not None else at[min(index, len(at) - 1)] for index in range(len(pieces))]
    rules = {f"backbone/{piece}/**": Rule(unfreeze=step) for piece, step in zip(pieces, steps, strict=True)}
    return Plan(rules, "unfreeze", whole=True)


def bias_only(params: PyTree, *, fresh: Sequence[str] = ()) -> Plan:
    """Of the backbone only the biases train, those of its norms included; the heads train whole.

    So do the backbone's paths in `fresh`: what a checkpoint lacks has nothing to keep. Ben Zaken et al. 2022 (BitFit),
    arXiv:2106.10199, section 3.

    Raises:
        ValueError: the backbone has no biases (ModernBERT's has none).

    >>> list(bias_only({"backbone": {"pooler": {"bias": 0, "kernel": 0}}}).rules.items())[1]
    ('backbone/**', 'frozen')
    """
    backbone_of(params)
    if not any(matches("backbone/**/bias", path) for path in paths(params)):
        raise ValueError("bitfit trains the backbone's biases, and this backbone has none; choose another plan")
    learning = ("backbone/**/bias", *(path for path in fresh if not path.endswith("/bias")))
    return Plan({**dict.fromkeys(learning, Rule()), "backbone/**": "frozen"}, "bitfit", whole=True)
