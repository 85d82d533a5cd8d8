"""Distillation: a student learns to answer as its teacher does, and if asked to compute inside as it does.

    loss = soft * T^2 KL(teacher / T || student / T) + sum over matches of weight * (difference of inner layers)

Hinton et al. 2015 (arXiv:1503.02531), and for the inner layers what `losses.layer_matching` names. The teacher is a
constant of the objective: it travels to the step as an argument, is sharded and placed like parameters, and nothing
differentiates it. Or it has answered before: its logits then come with the batch.

With labels, `combine({"task": (a, classification(model)), "distill": (b, distillation(...))}, reads={"distill":
"task"})` lets both read one batch, with one dropout.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Mean, Metrics, Model, Objective, Params, Terms, lift, slice_rng
from jaxptft.objectives.layer_map import LayerMap, check_layers
from jaxptft.objectives.masked_lm import hide
from jaxptft.objectives.masking import Masking, TokenTable, check_table

HEAD = "distillation"  # the key in params of what the matching itself learns
TEACHER_LOGITS = "teacher_logits"  # in a batch

Read = Callable[[Array, Batch], tuple[Float[Array, "batch places classes"], Bool[Array, "batch places"]]]


class Match(NamedTuple):
    """One inner quantity of the student pulled towards the teacher's, summed over pairs of layers."""

    weight: float
    output: str  # of the two models' applies: "hidden", "attention", "scores" or "qkv"
    layers: LayerMap
    loss: Callable[..., Float[Array, " batch"]]  # (student, teacher, mask) of one layer


def match_hidden(layers: LayerMap, *, weight: float = 1.0, cosine: bool = False) -> Match:
    """Hidden states, by squared difference or by cosine; layer 0 are the embeddings.

    Where widths differ, one projection for all layers is learnt beside the model (TinyBERT, equation 8).
    """
    return Match(weight, "hidden", layers, losses.hidden_cosine if cosine else losses.hidden_mse)


def match_attention(layers: LayerMap, *, weight: float = 1.0, kl: bool = False) -> Match:
    """Attention: scores by squared difference (TinyBERT), or probabilities by divergence (MobileBERT, MiniLM)."""
    if kl:
        return Match(weight, "attention", layers, losses.attention_kl)
    return Match(weight, "scores", layers, losses.attention_mse)


def match_relations(layers: LayerMap, *, weight: float = 1.0, heads: int | None = None, parts: str = "qkv") -> Match:
    """Relations between the tokens' queries, keys and values, as many of the three as `parts` names; their mean.

    "qkv" with `heads` is MiniLMv2; "v" beside `match_attention(kl=True)`, both of the last layer, is MiniLM.
    """
    if not parts or set(parts) - set("qkv") or len(set(parts)) < len(parts):
        raise ValueError(f"parts is {parts!r}; expected some of the letters q, k and v")
    places = ["qkv".index(part) for part in parts]

    def loss(student, teacher, mask):
        each = [losses.relation_kl(student[at], teacher[at], mask, relation_heads=heads) for at in places]
        return jnp.stack(each).mean(0)

    return Match(weight, "qkv", layers, loss)


def distillation(
    student: Model,
    teacher: Model | None = None,
    *,
    teacher_params: Params | None = None,
    soft: float = 1.0,
    temperature: float | None = 2.0,
    read: Read | None = None,
    matches: Mapping[str, Match] | None = None,
    tokens: TokenTable | None = None,
    masking: Masking | None = None,
    capacity: int | None = None,
) -> Objective:
    """A student against a teacher; weights of 0 leave a term out.

    `apply` of both returns logits, [batch, classes] or one set of classes for each of [batch, places], or a dict with
    "logits" and every output that `matches` name. Terms: `soft`, and one under the name of each match. Without a
    teacher, `batch["teacher_logits"]` are its logits, and there is nothing to match.

    Args:
        temperature: of both distributions; None takes the mean squared difference of the logits instead, which is what
            a regression, and classes that do not exclude each other, can be distilled by.
        read: what of the logits are distributions, and which of these count, where that is not as said below:
            `answer_places` for questions, `response_tokens` for responses.
        matches: the inner layers, by the name of the term.
        tokens, masking, capacity: hide tokens as `masked_lm` does, and read the logits at the hidden ones alone. With
            the same values, and combined so that it reads the same batch, the same tokens are hidden as there.

    Logits at places count where there is a real token. Metrics: `distillation/agreement`, how often both give most to
    the same class, and `distillation/soft`, the unweighted divergence. Predictions: `logits` of the student. Where
    hidden states of different widths are matched, params have "distillation"/"projection".

    Raises ValueError on nothing to learn, matches or parameters without a teacher, a match called "soft", layers that
    the models lack, logits of a single class under a temperature, both `read` and `tokens`, and packed rows.
    """
    matches = {name: match for name, match in (matches or {}).items() if match.weight}
    _check(teacher, teacher_params, soft, matches)
    if read is not None and tokens is not None:
        raise ValueError("both read and tokens say which places count; give one")
    constants: dict[str, Any] = {} if teacher is None else {"teacher": teacher_params}
    if tokens is not None:
        constants["tokens"] = check_table(tokens)

    def taught(constants: Any, batch: Batch) -> dict[str, Array]:
        if teacher is None:
            if TEACHER_LOGITS not in batch:
                raise ValueError(f"there is no teacher, and the batch has no {TEACHER_LOGITS!r}, only {sorted(batch)}")
            return {"logits": batch[TEACHER_LOGITS]}
        return _outputs(teacher.apply(constants["teacher"], batch, rng=None, train=False))

    def init(rng, batch):
        model_rng, projection_rng = jax.random.split(rng)
        params = student.init(model_rng, batch)
        if not any(match.output == "hidden" for match in matches.values()):
            return params
        shapes = [
            jax.eval_shape(partial(model.apply, train=False), given, batch)["hidden"].shape[-1]
            for model, given in ((student, params), (teacher, teacher_params))
            if model is not None
        ]
        if shapes[0] == shapes[1]:
            return params
        kernel = jax.random.normal(projection_rng, shapes) / jnp.sqrt(shapes[0])
        return {**params, HEAD: {"projection": {"kernel": kernel}}}

    def ready(batch, context):
        """What both models read, which places of the logits count, and the key of the student's dropout."""
        if "segment_ids" in batch:
            raise ValueError("distillation got a packed batch; give one text a row")
        rng, counted = context.rng, _real(batch)
        if tokens is not None:
            corruption, rng = jax.random.split(rng)
            hidden = hide(corruption, batch, context.constants["tokens"], masking or Masking(), capacity)
            batch, counted = hidden.batch, hidden.used
        return batch, counted, slice_rng(rng, batch) if context.train else None

    def loss(params, batch, context):
        batch, counted, rng = ready(batch, context)
        ours = _outputs(student.apply(params, batch, rng=rng, train=context.train))
        theirs = jax.tree.map(jax.lax.stop_gradient, taught(context.constants, batch))
        terms: Terms = {}
        first, second = (_of_choices(outputs["logits"], batch) for outputs in (ours, theirs))
        if read is not None:
            (first, counted), (second, _) = read(first, batch), read(second, batch)
        divergence, metrics = _soft(first, second, temperature, counted, batch["valid"])
        if soft:
            terms["soft"] = Mean(soft * divergence.total, divergence.count)
        projection = params.get(HEAD, {}).get("projection", {}).get("kernel")
        mask = _real(batch)
        # Of an example's choices each is a text; one that it lacks has no tokens.
        valid = jnp.repeat(batch["valid"], len(mask) // len(batch["valid"])) & mask.any(-1)
        for name, match in matches.items():
            per_text = _matched(match, ours[match.output], theirs[match.output], mask, projection)
            terms[name] = Mean(match.weight * jnp.where(valid, per_text, 0.0).sum(), valid.sum())
        return terms, metrics

    def predict(params, batch, context):
        batch, _, rng = ready(batch, context)
        return {"logits": _outputs(student.apply(params, batch, rng=rng, train=context.train))["logits"]}

    return lift(loss, init=init, predict=predict, constants=constants or None)


def _check(teacher: Model | None, params: Params | None, soft: float, matches: Mapping[str, Match]) -> None:
    if (teacher is None) != (params is None):
        raise ValueError("teacher and teacher_params belong together; give both, or neither and the batch its logits")
    if not soft and not matches:
        raise ValueError("all weights are 0, so the teacher teaches nothing; give soft or a match a weight")
    if "soft" in matches:
        raise ValueError("a match is called 'soft', which is the term of the logits; give it another name")
    if matches and teacher is None:
        raise ValueError(f"logits alone cannot be matched inside ({', '.join(matches)}); give the teacher itself")


def _outputs(result: Any) -> dict[str, Array]:
    return result if isinstance(result, dict) else {"logits": result}


def _of_choices(logits: Array, batch: Batch) -> Array:
    """Logits, those of choices that an example lacks so low that their probability is exactly 0."""
    return jnp.where(batch["valid_choices"], logits, -1e30) if "valid_choices" in batch else logits


def _real(batch: Batch) -> Array:
    mask = batch.get("attention_mask")
    mask = jnp.ones(batch["input_ids"].shape, bool) if mask is None else jnp.asarray(mask, bool)
    return mask.reshape(-1, mask.shape[-1])


def _soft(ours: Array, theirs: Array, temperature: float | None, counted: Array, valid: Array) -> tuple[Mean, Metrics]:
    """The divergence over what counts, unweighted, and the metrics."""
    if ours.shape != theirs.shape:
        raise ValueError(f"student and teacher must give logits of one shape, got {ours.shape} and {theirs.shape}")
    if temperature is not None and ours.shape[-1] == 1:
        raise ValueError(
            "the models have a single output, whose softmax is always 1; pass temperature=None for squared differences"
        )
    if ours.ndim == 3 and counted.shape != ours.shape[:2]:
        raise ValueError(f"logits are {ours.shape}, but the batch has {counted.shape} places to compare them at")
    counts = jnp.asarray(valid) if ours.ndim == 2 else counted & valid[:, None]
    if temperature is None:
        each = jnp.square(ours.astype(jnp.float32) - theirs.astype(jnp.float32)).mean(-1)
    else:
        each = losses.distillation_kl(ours, theirs, temperature=temperature)
    total = Mean(jnp.where(counts, each, 0.0).sum(), counts.sum())
    metrics = {"distillation/soft": Mean(jax.lax.stop_gradient(total.total), total.count)}
    if ours.shape[-1] > 1:
        same = (jax.lax.stop_gradient(ours).argmax(-1) == theirs.argmax(-1)) & counts
        metrics["distillation/agreement"] = Mean(same.sum(), counts.sum())
    return total, metrics


def _matched(match: Match, ours: Array, theirs: Array, mask: Array, projection: Array | None) -> Float[Array, " batch"]:
    hidden = match.output == "hidden"
    first = 0 if hidden else 1  # only hidden states begin with the embeddings
    pairs = check_layers(match.layers, len(ours) - 1 + first, len(theirs) - 1 + first, embeddings=hidden)
    loss = partial(match.loss, projection=projection) if hidden else match.loss
    each = (loss(ours[one - first], theirs[other - first], mask) for one, other in pairs)
    return sum(each, start=jnp.zeros(len(mask)))
