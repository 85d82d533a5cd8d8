"""AdamW over a plan: each stage brings parameters of its own, and whatever has been learnt of the others is kept.

Adam's moments start at zero and are corrected by 1 - beta^t, with t the updates so far. A parameter that is unfrozen
late needs a t of its own: with zero moments and an old t its first step would be (1 - b1) / sqrt(1 - b2) times, which
is 3.2 times, as long as it should be. So each stage has moments and a count of its own from the start, which is why
the optimizer's state has one structure throughout; those of a stage that has not begun stay bitwise as they are.
"""

from collections.abc import Callable, Sequence

import jax
import optax
from jaxtyping import Array, Float, PyTree

from jaxptft.optim.adamw import check_numbers, clip_by_global_norm
from jaxptft.optim.patterns import by_pattern, paths
from jaxptft.optim.plan import Rule, Timetable


def by_stage(inner: optax.GradientTransformation, table: Timetable) -> optax.GradientTransformation:
    """`inner` apart for the parameters of each stage, by the step at which it begins.

    `init` takes the parameters that ever train; `update` takes those of the stages so far, None standing for the rest,
    and tells by them which stages have begun. The state is a dict of `inner`'s, keyed `from_STEP`.

    Raises:
        ValueError: at `init` or `update`, a parameter that the plan keeps frozen, or only a part of a stage.
    """

    def parts(tree: PyTree) -> dict[str, PyTree]:
        begins = [table.begin(path) for path in paths(tree)]
        leaves, structure = jax.tree.flatten(tree)
        return {
            f"from_{begin}": structure.unflatten(
                [leaf if own == begin else None for leaf, own in zip(leaves, begins, strict=True)]
            )
            for begin in sorted(set(begins))
        }

    def init(params: PyTree) -> dict[str, PyTree]:
        return {name: inner.init(part) for name, part in parts(params).items()}

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        own = parts(updates) if params is None else parts(params)
        if len(jax.tree.leaves(updates)) != len(jax.tree.leaves(own)):
            raise ValueError("updates and params must have the same leaves: partition both by one mask")
        state, found = dict(state), {}
        for name, part in parts(updates).items():
            updated, state[name] = inner.update(part, state[name], None if params is None else own[name])
            found |= dict(zip(paths(part), jax.tree.leaves(updated), strict=True))
        return jax.tree.unflatten(jax.tree.structure(updates), [found[path] for path in paths(updates)]), state

    return optax.GradientTransformation(init, update)


def _each(table: Timetable, change: Callable[[Rule, PyTree, PyTree], PyTree]) -> optax.GradientTransformation:
    """`change(rule, update, parameter)` at each leaf; no state."""

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        leaves, structure = jax.tree.flatten(updates)
        rules = [table.rules[path] for path in paths(updates)]
        changed = [
            change(rule, leaf, own)
            for rule, leaf, own in zip(rules, leaves, jax.tree.leaves(params), strict=True)
            if rule is not None
        ]
        return structure.unflatten(changed), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def clip_by_group(clip_norm: float, apart: Sequence[str]) -> optax.GradientTransformation:
    """`clip_by_global_norm` for each group of leaves by itself; no state.

    The leaves that a pattern of `apart` matches are a group, the first pattern's that does; all others are one more. So
    two players that learn from one loss are clipped as if each had a loss of its own.

    Raises:
        ValueError: at `init`, a pattern matches nothing, or nothing that the patterns before it had not taken.
    """
    groups, clip = dict(zip(apart, range(len(apart)), strict=True)), clip_by_global_norm(clip_norm)

    def init(params: PyTree) -> optax.EmptyState:
        by_pattern(params, groups, default=-1)
        return optax.EmptyState()

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        del params
        leaves, structure = jax.tree.flatten(updates)
        numbers = jax.tree.leaves(by_pattern(updates, groups, default=-1, strict=False))
        for group in sorted(set(numbers)):
            own = [place for place, number in enumerate(numbers) if number == group]
            clipped, _ = clip.update([leaves[place] for place in own], optax.EmptyState())
            for place, leaf in zip(own, jax.tree.leaves(clipped), strict=True):
                leaves[place] = leaf
        return structure.unflatten(leaves), state

    return optax.GradientTransformation(init, update)


def plan_adamw(
    learning_rate: optax.ScalarOrSchedule,
    table: Timetable,
    *,
    weight_decay: float | Float[Array, ""] = 0.01,
    clip_norm: float | None = 1.0,
    clip_apart: Sequence[str] = (),
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """`adamw` with the rates, decays and stages of a timetable.

    Initialise it with all that ever trains (`partition(params, table.ever)`), and update what trains now
    (`partition(params, table.stages[step])`): the norm that is clipped is that of what trains now, and the learning
    rate is the schedule's at the number of updates so far, for new and old parameters alike. Where the plan has one
    stage its updates are `adamw`'s, bit for bit. What a pattern of `clip_apart` matches is clipped by a norm of its
    own, and the rest by theirs (`clip_by_group`). `weight_decay` may be an array, and so an argument of the program.

    Raises:
        ValueError: a number out of range, or patterns to clip apart where nothing is clipped; at `init` or `update`, a
            parameter that the plan keeps frozen; at `init`, a pattern that matches nothing.
    """
    check_numbers(weight_decay=weight_decay, clip_norm=clip_norm, b1=b1, b2=b2, eps=eps)
    if clip_norm is None and clip_apart:
        raise ValueError(f"clip_apart is {list(clip_apart)}, but without clip_norm nothing is clipped: give both")
    clip = optax.identity() if clip_norm is None else clip_by_global_norm(clip_norm)

    def decayed(rule: Rule, update: PyTree, parameter: PyTree) -> PyTree:
        decay = weight_decay if rule.decay is None else rule.decay
        return update + decay * parameter if isinstance(decay, jax.Array) or decay else update

    return optax.chain(
        clip_by_group(clip_norm, clip_apart) if clip_norm is not None and clip_apart else clip,
        by_stage(optax.scale_by_adam(b1=b1, b2=b2, eps=eps), table),
        _each(table, decayed),
        _each(table, lambda rule, update, _: update if rule.rate == 1.0 else rule.rate * update),
        optax.scale_by_learning_rate(learning_rate),
    )
