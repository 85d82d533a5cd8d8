"""The parts of one pre-training put together: corpus, examples, model, objective, loop, and what remains of it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxptft import convert, data, models, objectives, train
from jaxptft.convert.families import find_family
from jaxptft.convert.heads import find_architecture
from jaxptft.recipes import report as reports
from jaxptft.recipes.adoption import adopt, draw_missing, fresh_pieces, refuse_frozen_fresh
from jaxptft.recipes.computing import computed_as, dropouts_of
from jaxptft.recipes.device_mesh import choose_mesh
from jaxptft.recipes.model_source import model_fingerprint, open_model
from jaxptft.recipes.pretrain import Config
from jaxptft.recipes.training import (
    EVALUATION_ROWS,
    LAST,
    Training,
    frozen_depth,
    last,
)

if TYPE_CHECKING:
    from jaxptft.train import LoopState, StopFlag

MANY_UNKNOWN = 0.1  # share of [UNK] above which the log says so


class Size(NamedTuple):
    """A named size; the small ones are those of Turc et al. 2019 (arXiv:1908.08962)."""

    layers: int
    width: int
    heads: int


SIZES = {
    "tiny": Size(2, 128, 2),
    "mini": Size(4, 256, 4),
    "small": Size(4, 512, 8),
    "medium": Size(8, 512, 8),
    "base": Size(12, 768, 12),
    "large": Size(24, 1024, 16),
}

_FAMILIES = {"clm": "gpt2", "rtd": "electra", "mlm+sop": "albert"}
_HEADS = {
    "mlm": ("mlm",),
    "nsp": ("nsp",),
    "mlm+nsp": ("mlm", "nsp"),
    "mlm+sop": ("mlm", "sop"),
    "clm": (),
    "rtd": ("discriminator", "generator"),
    "simclr": (),
}
_SPECIAL_IDS = {  # that a config.json of the family names
    "roberta": ("pad", "bos", "eos"),
    "albert": ("pad", "bos", "eos"),
    "modernbert": ("pad", "bos", "eos", "cls", "sep"),
    "gpt2": ("bos", "eos"),
}


class PretrainRun:
    """Everything between a `Config` and its results; built whole before the first step, so that mistakes come first."""

    def __init__(self, config: Config, *, name: str, say: Callable[[str], None], stop: "StopFlag"):
        self.config, self.say = config, say
        self.mesh = choose_mesh(config)
        self._open_model()
        self._read_data()
        stop.raise_if_set()
        self._build_model()
        monitor, higher_is_better, watch = self._monitor()
        self.training = Training(
            config,
            name=name,
            say=say,
            stop=stop,
            mesh=self.mesh,
            objective=lambda learns: self._objective(frozen_depth(learns, self.architecture)),
            params=self.params,
            trainable=self.trainable,
            rng=self.step_rng,
            batches=self.batches,
            judge=lambda evaluation: language_metrics(evaluation.metrics),
            watch=watch,
            monitor=monitor,
            higher_is_better=higher_is_better,
            identity={
                "tokenizer": data.tokenizer_fingerprint(self.tokenizer),
                # What was imported: fresh parameters follow from the seed, but for last bits that differ by machine.
                "initial_model": model_fingerprint(self.kept, self.architecture),
            },
            imported=None if self.checkpoint is None else self.kept,
        )
        training = self.training
        say(f"model: {self.origin}; {training.trainable_count:,} of {training.parameter_count:,} parameters train")

    def _open_model(self) -> None:
        config = self.config
        self.checkpoint: convert.Checkpoint | None = None
        folder = None
        if config.model is not None:
            folder, self.checkpoint = open_model(
                config.model,
                allow_bin=config.allow_bin,
                allow_unused=config.allow_unused,
                allow_missing=config.allow_missing,
            )
        self.tokenizer_folder = Path(config.tokenizer) if config.tokenizer is not None else folder
        assert self.tokenizer_folder is not None  # Config sees to it
        self.tokenizer = data.load_tokenizer(self.tokenizer_folder)
        self.token_ids: dict[str, Any] = {}
        vocab_size = max(self.tokenizer.get_vocab().values(), default=-1) + 1
        if self.checkpoint is None:
            self.family = config.family or _FAMILIES.get(config.objective, "bert")
            self.architecture = self._from_nothing(self.family, vocab_size)
        else:
            self.family, self.architecture = self.checkpoint.family, self.checkpoint.config
        data.check_vocabulary(self.tokenizer, self.architecture.vocab_size)
        positions = self.architecture.max_length
        if config.max_length > positions:
            raise ValueError(
                f"max_length is {config.max_length}, but {config.model or 'the model'} has {positions} positions; "
                "lower it" + ("" if self.checkpoint else ", or give shape.positions")
            )
        self.saved_architecture = self.architecture  # dtype and dropout are of this run, not of the model
        self.architecture = computed_as(self.architecture, config, self.say)
        # What this model or tokenizer cannot do, or no config.json can name, is refused before the corpus is read.
        self._objective(None)
        held = [head for head in _HEADS[config.objective] if head != "generator"]
        try:
            find_architecture(find_family(self.family), held)
        except ValueError:
            raise ValueError(
                f"{self.family} has no architecture for objective {config.objective} (heads {' and '.join(held)}): "
                "choose another family or objective"
            ) from None

    def _from_nothing(self, family: str, vocab_size: int) -> Any:
        """A config of the family's own defaults in the size asked for."""
        shape, size = self.config.shape, SIZES[self.config.size or "base"]
        table = find_family(family)
        fields: dict[str, Any] = {"model_type": family, "vocab_size": vocab_size}
        for name in _SPECIAL_IDS.get(family, ("pad",)):
            number = getattr(self.tokenizer, f"{name}_token_id")
            if number is None and name == "pad":
                raise ValueError(f"{self.tokenizer_folder}: {family} needs a tokenizer with a padding token")
            fields[f"{name}_token_id"] = number  # None where there is no such token, lest a default stand for it
        base: Any = table.read_config(fields)
        width, offset = shape.width or size.width, getattr(base, "position_offset", 0)
        values: dict[str, Any] = {
            "layers": shape.layers or size.layers,
            "width": width,
            "heads": shape.heads or (size.heads if shape.width is None else _heads_for(width)),
            "mlp_width": shape.mlp_width or 4 * width,
        }
        if shape.positions is not None or offset:
            values["positions"] = (shape.positions or base.positions) + offset
        if shape.embedding_width is not None:
            values["embedding_width"] = shape.embedding_width
        elif getattr(base, "embedding_width", None) is not None:
            values["embedding_width"] = min(base.embedding_width, width)
        if family == "electra" and values.get("embedding_width") == width:
            values["embedding_width"] = None  # as its checkpoints have it: no projection between equals
        architecture = replace(base, **values)
        self.token_ids = {name: number for name, number in fields.items() if name.endswith("_token_id")}
        # Made once for nothing, so that what the family's config.json cannot express is refused now.
        convert.new_checkpoint(architecture, family=family, fields=self.token_ids)
        return architecture

    def _read_data(self) -> None:
        config, say = self.config, self.say
        read = partial(
            data.tokenize_corpus,
            tokenizer=self.tokenizer,
            workers=config.workers,
            text_column=config.text_column,
            documents=config.documents,
            on_bad_document=config.on_bad_document,
        )
        whole = read(config.corpus)
        sources = {"train": ", ".join(config.corpus)}
        if config.eval_corpus:
            stores = {"train": whole, "eval": read(config.eval_corpus)}
            sources["eval"] = ", ".join(config.eval_corpus)
        else:
            stores = dict(
                zip(("train", "eval"), data.split_documents(whole, config.eval_share, config.seed), strict=True)
            )
            sources["eval"] = f"{config.eval_share:.0%} of the documents"
        skipped = whole.report.skipped + (stores["eval"].report.skipped if config.eval_corpus else 0)
        if skipped:
            say(f"{skipped} bad documents skipped")
        self.batches: dict[str, Any] = {}
        self.facts: dict[str, Any] = {"skipped_documents": skipped}
        for split, store in stores.items():
            try:
                tokenized, labels = self._examples(store, most=config.eval_rows if split == "eval" else None)
            except ValueError as error:
                advice = "; raise --eval-share, or give --eval-corpus" if split == "eval" else ""
                raise ValueError(f"{split} text, {sources[split]}: {error}{advice}") from None
            self._check_words(split, store, tokenized)
            self.batches[split] = self._batches(split, tokenized, labels)
            padding = data.padding_share(self.batches[split])
            counts = {"documents": store.document_count, "tokens": store.token_count, "examples": len(tokenized)}
            counts |= {"sentences": store.sentence_count, "characters": store.character_count}
            shares = {"unknown": round(store.unknown_share, 6), "padding": round(padding, 4)}
            for fact, count in (counts | shares).items():
                self.facts.setdefault(fact, {})[split] = count
            say(
                f"{split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['examples']:,} "
                f"examples from {sources[split]}; {padding:.1%} padding, {store.unknown_share:.1%} unknown"
            )

    def _check_words(self, split: str, store: data.TokenStore, tokenized: data.Tokenized) -> None:
        """Refuse text of which the tokenizer knows nothing, which would be learnt without a fault."""
        data.check_tokens(tokenized, self.architecture.vocab_size)
        special = data.token_table(self.tokenizer, self.architecture.vocab_size, mask=False).special
        if special[tokenized.tokens].all():
            raise ValueError(
                f"{split} text: every token is a special one, [UNK] for instance; "
                f"{self.tokenizer_folder} is a tokenizer of other text: train one on this"
            )
        if store.unknown_share > MANY_UNKNOWN:
            self.say(f"note: the tokenizer does not know {store.unknown_share:.0%} of the {split} tokens")

    def _examples(self, store: data.TokenStore, *, most: int | None = None) -> tuple[data.Tokenized, Any]:
        config, labels = self.config, None
        if "nsp" in config.objective or "sop" in config.objective:
            kind = "nsp" if "nsp" in config.objective else "sop"
            tokenized, labels = data.sentence_pairs(
                store, self.tokenizer, config.max_length, kind=kind, seed=config.seed
            )
        elif config.objective == "clm":
            # Packed, documents share rows and see only themselves; else one text runs through all rows.
            tokenized = data.causal_segments(store, self.tokenizer, config.max_length, cross_documents=not config.pack)
        elif config.rows == "documents":
            tokenized = data.line_segments(store, self.tokenizer, config.max_length)
        else:
            tokenized = data.full_segments(store, self.tokenizer, config.max_length)
        if most is not None and len(tokenized) > most:
            rows = np.linspace(0, len(tokenized) - 1, most).round().astype(np.int64)  # from all of the held-out text
            tokenized, labels = tokenized.rows(rows), None if labels is None else labels[rows]
        return tokenized, labels

    def _batches(self, split: str, tokenized: data.Tokenized, labels: Any) -> Any:
        config, training = self.config, split == "train"
        options: dict[str, Any] = {
            "batch_size": config.batch_size if training else EVALUATION_ROWS,
            "seed": config.seed,
            "shuffle": training,
            "multiple_of": self.mesh.size * (config.accumulate if training else 1),
        }
        if config.pack:
            return data.PackedBatches(tokenized, length=config.max_length, **options)
        buckets = data.fitted_buckets(tokenized.lengths, config.length_buckets, most=config.max_length)
        return data.Batches(tokenized, labels, buckets=buckets, **options)

    def _build_model(self) -> None:
        config = self.config
        init_rng, self.step_rng = jax.random.split(jax.random.key(config.seed))
        example = self.batches["train"].batch_at(0)
        heads = _HEADS[config.objective]
        kept: dict[str, Any] = {}
        if self.checkpoint is None:
            self.origin = f"{self.family} from scratch"
        else:
            imported = self.checkpoint.params
            kept = {name: imported[name] for name in ("backbone", *heads) if name in imported}
            self.origin = f"{self.family} from {config.model}"
            if dropped := sorted(imported.keys() - kept.keys()):
                self.say(f"the checkpoint's heads of other tasks are dropped: {', '.join(dropped)}")
        self.kept = kept
        compiled = lambda init: train.made_spread(init, self.mesh)  # noqa: E731
        fresh = draw_missing(self._objective(None).init, kept, init_rng, example, compiled=compiled)
        new = [*fresh_pieces(fresh, kept), *(name for name in heads if name not in kept)]
        if new and self.checkpoint is not None:
            self.say(f"{config.model} lacks {', '.join(new)}: fresh")
        self.params, self.trainable = adopt(kept, fresh, config.freeze)
        if self.checkpoint is not None:
            refuse_frozen_fresh(fresh, self.trainable, kept, model=str(config.model), freeze=config.freeze)

    def _monitor(self) -> tuple[str, bool, Callable[[train.State], dict[str, float]] | None]:
        kind = self.config.monitor or ("last" if self.config.objective == "simclr" else "loss")
        if kind == "accuracy":
            return _accuracy_of(self.config.objective), True, None
        return (LAST, True, last) if kind == "last" else ("pretraining/loss", False, None)

    def _objective(self, frozen_layers: int | None) -> objectives.Objective:
        name = self.config.objective
        build = partial(models.build, self.architecture, frozen_layers=frozen_layers)
        if name == "simclr":
            return self._contrast(frozen_layers)
        if name == "clm":
            return objectives.next_token(build("causal_lm"))
        if name == "nsp":
            return objectives.next_sentence(build("next_sentence"))
        table = data.token_table(self.tokenizer, self.architecture.vocab_size)
        usual: dict[str, Any] = {"mask_share": 1.0, "random_share": 0.0} if name == "rtd" else {}  # as in its paper
        chosen = {key: value for key, value in self.config.masking.model_dump().items() if value is not None}
        masking = objectives.Masking(**(usual | chosen))
        rows = -(-self.config.batch_size // (self.mesh.size * self.config.accumulate))  # of a device
        masked: dict[str, Any] = {"tokens": objectives.TokenTable(*table), "masking": masking, "group": rows}
        if name == "mlm":
            return objectives.masked_lm(build("masked_lm"), **masked)
        if name == "rtd":
            generator = models.build(self._generator_config(self.architecture), "masked_lm")
            weight = self.config.generator.weight
            return objectives.replaced_token(generator, build("replaced_token"), weight=weight, **masked)
        return objectives.sentence_pretraining(build("pretraining"), "nsp" if name == "mlm+nsp" else "sop", **masked)

    def _contrast(self, frozen_layers: int | None) -> objectives.Objective:
        """Two passes over every text, which differ by their dropout alone."""
        chosen, architecture = self.config.contrast, self.architecture
        if not any(getattr(architecture, name) for name in dropouts_of(architecture)):
            raise ValueError("simclr tells two passes of a text by their dropout, and dropout is 0; raise it")
        pooling = chosen.pooling or models.usual_pooling(architecture)
        if self.checkpoint is None and getattr(architecture, "pooler", False) and pooling != "pooler":
            raise ValueError(
                f"contrast.pooling {pooling!r} would leave the pooler that {self.family} has as it is drawn; leave it "
                "out, or go on from a --model"
            )
        encoder = network = models.pooled(architecture, pooling, frozen_layers=frozen_layers)
        if chosen.projection:
            *hidden, outputs = chosen.projection
            network = models.stack(encoder, models.mlp("projector", hidden=hidden, outputs=outputs))
        return objectives.simclr(network, encoder=encoder, views=None, temperature=chosen.temperature)

    def _generator_config(self, whole: Any) -> Any:
        share = self.config.generator.share
        heads = max(1, round(whole.heads * share))
        width = max(heads, round(whole.width * share) // heads * heads)
        own = getattr(whole, "embedding_width", None) or whole.width
        return replace(
            whole,
            width=width,
            heads=heads,
            mlp_width=max(1, round(whole.mlp_width * share)),
            embedding_width=None if own == width else own,
        )

    def finish(self, loop: "LoopState") -> dict[str, float]:
        """Take the best model, say how good it is, and save it as a Hugging Face folder."""
        training, out = self.training, self.config.out
        state = training.best_state(loop)
        evaluation = training.evaluate(state, "eval")
        found = evaluation.metrics | language_metrics(evaluation.metrics)
        metrics = {name: value for name, value in found.items() if np.isfinite(value)}
        params = train.to_host(state.params)
        own = {key: params[key] for key in params if key not in ("generator", "projector")}
        self._save(out / "model", self.saved_architecture, own)
        if "generator" in params:
            architecture = self._generator_config(self.saved_architecture)
            self._save(out / "generator", architecture, objectives.generator_params(params), fresh=True)
        facts = {**training.facts(loop), **self.facts}
        text = reports.save_metrics(out, metrics, facts, heading="held-out text")
        self.say(text)
        reports.plot_history(out / "history.png", training.journal.read(), training.charted)
        return metrics

    def _save(self, folder: Path, architecture: Any, params: Any, *, fresh: bool = False) -> None:
        if self.checkpoint is None or fresh:
            checkpoint = convert.new_checkpoint(architecture, family=self.family, fields=self.token_ids)
            dtype = None
        else:
            checkpoint = self.checkpoint
            # What was evaluated; float16 would lose steps.
            dtype = None if set(checkpoint.extras.dtypes.values()) <= {"float32"} else "float32"
        convert.save(
            folder, checkpoint, params=params, tokenizer_from=self.tokenizer_folder, overwrite=True, dtype=dtype
        )


def _heads_for(width: int) -> int:
    """Heads of 64 where the width allows, else the next number of heads that divides it."""
    return next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)


def language_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """The whole loss as `pretraining/loss`, and the perplexity exp(loss) of whatever predicts tokens."""
    found = {"pretraining/loss": sum(value for name, value in metrics.items() if name.endswith("/loss"))}
    for term in ("masked_lm", "next_token", "generator"):
        if f"{term}/loss" in metrics:
            found[f"{term}/perplexity"] = float(np.exp(metrics[f"{term}/loss"]))
    return found


def _accuracy_of(objective: str) -> str:
    names = {"mlm": "masked_lm", "clm": "next_token", "rtd": "discriminator", "nsp": "next_sentence"}
    return f"{names.get(objective.split('+')[0], 'sentence_order')}/accuracy"
