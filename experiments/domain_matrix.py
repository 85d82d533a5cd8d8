"""Sentiment across four domains: does MMD, CORAL, DANN or importance weighting make MiniLM work better on another one?

Every domain (tweets, Amazon reviews, film reviews, New York Times) gives 3,300 sentences with the classes as drawn: 300
choose the learning rate of a source, once, without adaptation; of the others a seed draws 2,000 to train on and 1,000
to test. A target gives its 2,000 without their labels, and no label of a target chooses anything. MiniLM's last layer,
its pooler and a linear head learn, in one pass over the labelled rows; what is below is frozen and runs once a
sentence. The losses are the library's, in a loop of the script's own: one program a method serves every pair, seed and
rate. All methods read what the pooler gives; importance weighting reads it before any fine-tuning.

How much each method weighs was settled on one pair, movies to tweets, with seed 0 and no label of the target: the
largest power of ten (for importance weighting, of the `strength` of its domain classifier) at which macro F1 on the 300
rows of the source is no more than their standard error, .025, below that of no adaptation. Every pair then has the same
weight. The standard error of a difference is over the 12 pairs, each the mean of its seeds. Runs that are done are not
run again.

Command:  python experiments/domain_matrix.py
Result:   macro F1 .703 without adaptation; CORAL +.001, importance -.006, DANN -.050, MMD -.052: LOG.md
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxptft import convert, data, models, objectives, optim, train
from jaxptft.recipes.computing import computed_with
from jaxptft.recipes.importance import Importance, Weighted, features_of_rows, importance_weights
from jaxptft.recipes.metrics.classification import classification_metrics

DOMAINS = ("tweets", "amazon", "movies", "nyt")
METHODS = ("none", "MMD", "CORAL", "DANN", "importance")
# Macro F1 of none: .754. MMD: 1 .737, 10 .562. CORAL: 1e5 .753, 1e6 .691. DANN: .1 .743, 1 .578. Strength: 1e-4 .745,
# 1e-3 .715, 1 .330 (113 of 2,000 rows then do all the work).
WEIGHTS = {"MMD": 1.0, "CORAL": 1e5, "DANN": 0.1}
STRENGTH = 1e-4
RATES = (3e-4, 1e-3, 3e-3)
TOP, LENGTH, BATCH = 1, 32, 32  # layers that learn, tokens of a sentence at most, rows of a domain in a step
PAIRS = [(source, target) for source in DOMAINS for target in DOMAINS if source != target]
PICTURE = Path("experiments/results/domain_matrix.png")
# What adaptation and the head read: the features that `above` has put into the batch.
FEATURES = models.Model(lambda rng, batch: {}, lambda params, batch, rng=None, train=False: batch["features"])


class Sizes(NamedTuple):
    """Rows of each domain."""

    train: int
    choose: int
    test: int


class Domain(NamedTuple):
    """The rows of one domain, and what the frozen layers make of them."""

    tokens: data.Tokenized
    labels: np.ndarray
    hidden: np.ndarray  # float32 [rows, length, width]


class Hidden:
    """Batches of some of a domain's rows, entered above the frozen layers."""

    def __init__(self, domain: Domain, rows: np.ndarray, **options: Any):
        self._hidden, self._rows, self.tokenized = domain.hidden, rows, domain.tokens.rows(rows)
        self._batches = data.Batches(
            self.tokenized, domain.labels[rows], batch_size=BATCH, buckets=(LENGTH,), **options
        )
        self.steps_per_epoch, self.fingerprint = self._batches.steps_per_epoch, self._batches.fingerprint

    def batch_at(self, step: int) -> dict[str, Any]:
        batch = self._batches.batch_at(step)
        kept = {name: batch[name] for name in ("attention_mask", "ids", "valid", "label")}
        return {**kept, "hidden": self._hidden[self._rows[np.maximum(batch["ids"], 0)]]}

    def __iter__(self) -> Any:
        return map(self.batch_at, range(self.steps_per_epoch))


def above(model: models.Model, inner: objectives.Objective) -> objectives.Objective:
    """`inner` on what `model` makes of each domain's rows, in one pass whatever reads them."""

    def read(params: Any, batch: Any) -> Any:
        return {name: {**part, "features": model.apply(params, part)} for name, part in batch.items()}

    def init(rng: Any, batch: Any) -> Any:
        params = model.init(rng, batch["task"])
        return {**params, **inner.init(rng, read(params, batch))}

    return inner._replace(
        init=init,
        loss=lambda params, batch, context: inner.loss(params, read(params, batch), context),
        predict=lambda params, batch, context: inner.predict(params, read(params, batch), context),
    )


def combined(method: str, steps: int) -> objectives.Objective:
    """Classification of the source's rows, and what draws the domains' features together."""
    parts = {"task": (1.0, objectives.classification(models.mlp("classifier", hidden=(), outputs=2)))}
    adaptation: dict[str, Callable[[], objectives.Objective]] = {
        "MMD": lambda: objectives.mmd(FEATURES),
        "CORAL": lambda: objectives.coral(FEATURES),
        "DANN": lambda: objectives.dann(FEATURES, models.mlp("domain"), steps=steps),
    }
    if method not in adaptation:
        return objectives.combine(parts)
    parts["adaptation"] = (WEIGHTS[method], adaptation[method]())
    return objectives.combine(parts, reads={"adaptation": ("task", "target")})


class Study:
    """The models and rows that all runs share, made when they are first asked for."""

    def __init__(self, sizes: Sizes):
        checkpoint = convert.load(data.minilm_folder(), heads=())
        self.sizes, self.steps = sizes, -(-sizes.train // BATCH)
        # Without dropout: what is below the last layer is then the same in training, and one pass is not overfitted.
        self.architecture = computed_with(checkpoint.config, dtype="float32", dropout=0.0)
        self.start, self.params = checkpoint.config.layers - TOP, checkpoint.params
        learnt = {f"layer_{index}" for index in range(self.start, checkpoint.config.layers)} | {"pooler"}
        self.learnt = {name: leaves for name, leaves in checkpoint.params["backbone"].items() if name in learnt}
        self.model = models.pooled(self.architecture, "pooler", start=self.start)
        self.mesh = train.make_mesh()
        self.domain, self.program, self.weights = cache(self._domain), cache(self._program), cache(self._weights)
        self._texts, self._pooled = cache(self._read), cache(self._pool)
        self._run_frozen = jax.jit(models.features(self.architecture, stop=self.start))
        self.evaluator = train.make_evaluator(above(self.model, combined("none", self.steps)), labelled=False)

    def _read(self) -> dict[str, list[tuple[str, float]]]:
        """Sentences of all domains, in an order drawn once; none comes twice."""
        known: set[str] = set()
        found: dict[str, list[tuple[str, float]]] = {name: [] for name in DOMAINS}
        for name in DOMAINS:
            for text, score in data.hutto_sentences(name):
                if (key := " ".join(text.casefold().split())) not in known:
                    known.add(key)
                    found[name].append((text, score))
            order = np.random.default_rng(0).permutation(len(found[name]))[: sum(self.sizes)]
            found[name] = [found[name][row] for row in order]
        return found

    def _domain(self, name: str) -> Domain:
        texts, scores = zip(*self._texts()[name], strict=True)
        labels = np.array([score > 0 for score in scores], np.int32)
        table = data.make_table(list(texts), [("negative", "positive")[label] for label in labels], source=name)
        tokens = data.tokenize(table, data.load_tokenizer(data.minilm_folder()), LENGTH)
        hidden = np.zeros((len(tokens), LENGTH, self.architecture.width), np.float32)
        batches = data.Batches(tokens, batch_size=64, shuffle=False, buckets=(LENGTH,))
        params = jax.device_put(self.params)
        for batch in map(batches.batch_at, range(batches.steps_per_epoch)):
            hidden[batch["ids"][batch["valid"]]] = np.asarray(self._run_frozen(params, batch))[batch["valid"]]
        return Domain(tokens, labels, hidden)

    def rows(self, part: str, seed: int) -> np.ndarray:
        """Places of rows in a domain: those that choose are the same for every seed, the others are drawn by it."""
        sizes = self.sizes
        if part == "choose":
            return np.arange(sizes.choose)
        drawn = sizes.choose + np.random.default_rng(seed).permutation(sizes.train + sizes.test)
        return drawn[: sizes.train] if part == "train" else drawn[sizes.train :]

    def _program(self, method: str) -> tuple[objectives.Objective, Any, Any]:
        """A method's objective, and its compiled first parameters and step, for any rate."""
        objective = above(self.model, combined(method, self.steps))
        init = jax.jit(objective.init)

        def step(state: Any, constants: Any, batch: Any) -> Any:  # the first call shows what there is to train
            learns = jax.tree.map(lambda _: True, state.params)
            return train.make_step(objective, self.optimizer(1.0), trainable=learns)(state, constants, batch)

        return objective, init, train.jit_step(step, self.mesh)

    def optimizer(self, rate: float) -> optax.GradientTransformation:
        """AdamW whose rate is part of its state, so that no rate is compiled in."""
        schedule = optim.schedule("linear", peak=1.0, steps=self.steps, warmup=0.1)
        return optax.chain(optim.adamw(schedule), optax.inject_hyperparams(optax.scale)(step_size=rate))

    def _pool(self, name: str) -> np.ndarray:
        every = Hidden(self.domain(name), np.arange(sum(self.sizes)), shuffle=False)
        return features_of_rows(self.model, {"backbone": self.learnt}, every)

    def _weights(self, source: str, target: str, seed: int) -> Importance:
        rows = self.rows("train", seed)
        return importance_weights(self._pooled(source)[rows], self._pooled(target)[rows], strength=STRENGTH, seed=seed)

    def fit(self, method: str, source: str, target: str, seed: int, rate: float) -> tuple[Any, dict[str, float]]:
        """The trained parameters, and the losses as means of the last ten steps."""
        rows = self.rows("train", seed)
        weights = self.weights(source, target, seed).weights if method == "importance" else np.ones(len(rows))
        batches: dict[str, Any] = {"task": Weighted(Hidden(self.domain(source), rows, seed=seed), weights)}
        if method in WEIGHTS:
            batches["target"] = Hidden(self.domain(target), rows, seed=seed + 1000)  # not in the source's order

        def batch_at(step: int) -> dict[str, Any]:
            found = {name: part.batch_at(step) for name, part in batches.items()}
            found.get("target", {}).pop("label", None)
            return found

        objective, init, step = self.program(method if method in WEIGHTS else "none")
        init_rng, step_rng = jax.random.split(jax.random.key(seed))
        first = batch_at(0)
        params = {**init(init_rng, first), "backbone": self.learnt}
        learns = jax.tree.map(lambda _: True, params)
        state = train.create_state(objective, self.optimizer(rate), params, first, trainable=learns, rng=step_rng)
        state, logged = train.replicate(state, self.mesh), []
        for number in range(self.steps):
            state, metrics = step(state, objective.constants, batch_at(number))
            logged.append(metrics)
        logged = jax.device_get(logged)[-10:]
        return state.params, {
            name: float(np.mean([means[name].total / max(means[name].count, 1e-9) for means in logged]))
            for name in logged[0]
        }

    def score(self, params: Any, name: str, part: str, seed: int) -> dict[str, float]:
        """Macro F1 and accuracy on some of a domain's rows."""
        rows = self.rows(part, seed)
        held = Hidden(self.domain(name), rows, shuffle=False)
        kept = {name: params[name] for name in ("backbone", "classifier")}
        batches = ({"task": batch} for batch in held)
        logits = train.evaluate(self.evaluator, kept, {"task": {}}, None, batches).predictions["logits"]
        found = classification_metrics(logits, self.domain(name).labels[rows])
        return {key.rpartition("/")[2]: value for key, value in found.items()}


class Results:
    """What has been found, in one file that is replaced whole."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, settings = path, json.loads(json.dumps(settings))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"settings": settings}
        if self.found["settings"] != settings:
            raise ValueError(f"{path} holds runs of other settings: choose another --out")

    def add(self, entries: dict[str, Any]) -> None:
        self.found |= entries
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.found, indent=1) + "\n")
        new.replace(self.path)


def carry_out(study: Study, results: Results, seeds: int) -> None:
    """Every run that is not in the results yet."""
    found = results.found
    for source in DOMAINS:
        if f"rates/{source}" not in found:
            tried = {}
            for rate in RATES:
                params, _ = study.fit("none", source, source, 0, rate)
                tried[str(rate)] = study.score(params, source, "choose", 0)["macro_f1"]
            best = max(RATES, key=lambda rate: tried[str(rate)])
            results.add({f"rates/{source}": {"tried": tried, "rate": best}})
            print(f"{source}: rate {best:g} of macro F1 {tried}", flush=True)
    for seed in range(seeds):
        for method in METHODS:
            for source, target in [(each, each) for each in DOMAINS] if method == "none" else PAIRS:
                targets = DOMAINS if method == "none" else (target,)
                keys = {each: f"{method}/{source}/{each}/{seed}" for each in targets}
                if all(key in found for key in keys.values()):
                    continue
                began = time.perf_counter()
                params, losses = study.fit(method, source, target, seed, found[f"rates/{source}"]["rate"])
                shared: dict[str, Any] = {"losses": losses, "validation": study.score(params, source, "choose", seed)}
                if method == "importance":
                    weights = study.weights(source, target, seed)
                    shared |= {"separation": weights.separation, "effective_rows": weights.effective_rows}
                runs = {key: {**study.score(params, each, "test", seed), **shared} for each, key in keys.items()}
                seconds = time.perf_counter() - began
                results.add({key: {**run, "seconds": seconds} for key, run in runs.items()})
                said = ", ".join(f"{each} {runs[key]['macro_f1']:.4f}" for each, key in keys.items())
                print(f"seed {seed}, {method}, from {source}: macro F1 on {said} ({seconds:.1f} s)", flush=True)


def matrices(found: dict[str, Any], seeds: int, metric: str) -> dict[str, np.ndarray]:
    """[seeds, sources, targets] of each method; the diagonal, where there is nothing to adapt to, is that of none."""

    def value(method: str, source: str, target: str, seed: int) -> float:
        return found[f"{'none' if source == target else method}/{source}/{target}/{seed}"][metric]

    def table(method: str, seed: int) -> list[list[float]]:
        return [[value(method, source, target, seed) for target in DOMAINS] for source in DOMAINS]

    return {method: np.array([table(method, seed) for seed in range(seeds)]) for method in METHODS}


def off_diagonal(values: np.ndarray) -> np.ndarray:
    """The pairs of two different domains, each the mean of its seeds."""
    return values.mean(0)[~np.eye(len(DOMAINS), dtype=bool)]


def gain(found: dict[str, np.ndarray], method: str) -> tuple[float, float]:
    """Mean difference to none over the pairs, and its standard error."""
    difference = off_diagonal(found[method] - found["none"])
    return float(difference.mean()), float(difference.std(ddof=1) / len(difference) ** 0.5)


def show(found: dict[str, np.ndarray], metric: str) -> None:
    for method, values in found.items():
        print(f"\n{metric}, {method}: source in rows, target in columns")
        print(" " * 8 + "".join(f"{name:>16}" for name in DOMAINS))
        spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])
        for name, means, deviations in zip(DOMAINS, values.mean(0), spread, strict=True):
            print(f"{name:8}" + "".join(f"{m:8.3f} ± {d:.3f}" for m, d in zip(means, deviations, strict=True)))
    within = found["none"].mean(0).diagonal().mean()
    print(f"\n{metric}, mean of the {len(PAIRS)} pairs, and difference to none ± its standard error")
    for method, values in found.items():
        mean, error = gain(found, method)
        better = int((off_diagonal(values - found["none"]) > 0).sum())
        compared = "" if method == "none" else f"  {mean:+.4f} ± {error:.4f}, better in {better} pairs"
        print(f"{method:12} {off_diagonal(values).mean():.4f}{compared}")
    print(f"{'in domain':12} {within:.4f}  (trained on the target's own labels)", flush=True)


def plot(found: dict[str, np.ndarray], picture: Path) -> None:
    """None as it is, the others as what they change, and the mean change with its standard error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.6), layout="constrained")
    panels = figure.subplots(2, 3).flat
    plain = found["none"].mean(0)
    changes = {method: found[method].mean(0) - plain for method in METHODS[1:]}
    most = max(0.01, *(float(np.abs(change).max()) for change in changes.values()))
    for method, axes in zip(METHODS, panels, strict=False):
        values = plain if method == "none" else changes[method]
        colours = {"cmap": "viridis"} if method == "none" else {"cmap": "RdBu", "vmin": -most, "vmax": most}
        axes.imshow(values, **colours)
        for (row, column), value in np.ndenumerate(values):
            if method == "none" or row != column:
                light = method == "none" and value < (values.min() + values.max()) / 2
                form = ".3f" if method == "none" else "+.3f"
                axes.text(column, row, f"{value:{form}}", ha="center", va="center", color="white" if light else "black")
        axes.set(title="none: macro F1" if method == "none" else f"{method} minus none", ylabel="source")
        axes.set_xticks(range(len(DOMAINS)), DOMAINS)
        axes.set_yticks(range(len(DOMAINS)), DOMAINS)
    axes = list(figure.axes)[-1]
    means, errors = zip(*(gain(found, method) for method in METHODS[1:]), strict=True)
    axes.bar(METHODS[1:], means, yerr=errors, capsize=4)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(title="mean change ± standard error", ylabel="macro F1")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="labelled sentences of a source; half as many test")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/domain-matrix"))
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()
    sizes = Sizes(given.rows, given.rows * 3 // 20, given.rows // 2)
    weighed = {"weights": WEIGHTS, "strength": STRENGTH, "rates": RATES}
    settings = {"sizes": sizes, **weighed, "top": TOP, "length": LENGTH, "batch": BATCH}
    results = Results(given.out / "results.json", settings)
    carry_out(Study(sizes), results, given.seeds)
    for metric in ("accuracy", "macro_f1"):
        show(found := matrices(results.found, given.seeds, metric), metric)
    plot(found, given.picture)


if __name__ == "__main__":
    main()
