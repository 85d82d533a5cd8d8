"""The torch side of the side-by-side measurements: plain transformers + torch, no library of ours.

Both `parity.py` (accuracy) and `finetune.py` (speed) take their reference from here, so that the one whose
accuracy is compared is also the one whose speed is compared.
"""

import csv
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

LABELS = ("negative", "positive")
BETAS, EPSILON, DECAY, CLIP = (0.9, 0.999), 1e-8, 0.01, 1.0
MAX_LENGTH, BATCH, WINDOW = 128, 32, 50

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SCRIPTS = {
    **dict.fromkeys(("ours", "ours-packed"), HERE / "jax_worker.py"),
    **dict.fromkeys(("p0", "p1"), HERE / "torch_worker.py"),
}
EAGER = {"compile": "no", "attention": "sdpa", "optimizer": "fused", "multiple": 1}  # options of p1 before any trial

Tokens = Sequence[list[int]] | Mapping[int, list[int]]  # token ids by row number


def machine() -> dict:
    """CPU model, cores and operating system, for the head of a results file."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}


def versions(*names: str) -> dict[str, str]:
    """Installed versions of the packages; one that is not installed is left out."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_seconds() -> float:
    """User and system seconds of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins with what the process that started this one had
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


def write_json(path: Path, value: object) -> None:
    """Written whole or not at all, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def ask(
    request: dict,
    *,
    script: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> dict:
    """The answer of a fresh worker process: JSON on its stdin, JSON on the last line of its stdout.

    The script is by default the fine-tuning worker of that name; another is called with the argument `worker`.
    RuntimeError with the worker's stderr when it fails, subprocess.TimeoutExpired after `timeout` seconds.
    """
    threads = {"OMP_NUM_THREADS": str(request["threads"]), "TOKENIZERS_PARALLELISM": "false"}
    command = [str(SCRIPTS[request["worker"]])] if script is None else [str(script), "worker"]
    asked = json.dumps({**request, "sent": time.time()})
    running = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **threads, **(environment or {})},
        start_new_session=True,
    )
    try:
        output, errors = running.communicate(asked, timeout)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)  # its own helpers too, compilers for instance
        running.wait()
        raise
    if running.returncode != 0:
        raise RuntimeError(f"worker {request['worker']}, mode {request['mode']}, exit {running.returncode}:\n{errors}")
    return json.loads(output.strip().splitlines()[-1])


def read_rows(path: Path) -> tuple[list[str], np.ndarray]:
    """Texts and integer labels of a `text,label` CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], np.asarray([LABELS.index(row["label"]) for row in rows], dtype=np.int64)


def encode(folder: Path, texts: list[str], max_length: int = MAX_LENGTH) -> list[list[int]]:
    """Token ids with [CLS] and [SEP], truncated, not padded."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)(texts, truncation=True, max_length=max_length)["input_ids"]


def random_batches(lengths: list[int], seed: int, batch: int = BATCH) -> list[np.ndarray]:
    """One epoch of row numbers in random order; the last batch may be smaller."""
    order = np.random.default_rng(seed).permutation(len(lengths))
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def bucketed_batches(lengths: list[int], seed: int, batch: int = BATCH, window: int = WINDOW) -> list[np.ndarray]:
    """One epoch: shuffle, sort by length within windows of `window` batches, shuffle the batches."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    size = np.asarray(lengths)
    batches = []
    for start in range(0, len(order), batch * window):
        rows = order[start : start + batch * window]
        rows = rows[np.argsort(size[rows], kind="stable")]
        batches += [rows[first : first + batch] for first in range(0, len(rows), batch)]
    return [batches[i] for i in rng.permutation(len(batches))]


def collate(tokens: Tokens, labels: np.ndarray | None, rows: np.ndarray, multiple: int = 1) -> dict:
    """Numpy batch padded to its longest row, rounded up to a multiple; [PAD] is token 0 in BERT's vocabulary."""
    longest = -(-max(len(tokens[row]) for row in rows) // multiple) * multiple
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(tokens[row])] = tokens[row]
        mask[i, : len(tokens[row])] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return batch if labels is None else {**batch, "labels": np.asarray(labels)[rows]}


def tensors(batch: dict) -> dict:
    """The batch as torch tensors (memory shared)."""
    import torch

    return {name: torch.from_numpy(value) for name, value in batch.items()}


def load(folder: Path, *, dropout: bool = True):
    """BertForSequenceClassification of the folder, in training mode; dropout=False sets every rate to 0."""
    from transformers import AutoModelForSequenceClassification

    rates = (
        {} if dropout else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    )
    # The problem type is told, or the first forward pass would set it, and a compiled one would be traced twice.
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, problem_type="single_label_classification", **rates
    )
    return model.train()


def frozen_modules(model, layers: int) -> list:
    """The embeddings and the first `layers` encoder layers."""
    return [] if layers == 0 else [model.bert.embeddings, *model.bert.encoder.layer[:layers]]


def training_mode(model, layers: int) -> None:
    """Training mode, but frozen modules evaluate: their dropout is off."""
    model.train()
    for module in frozen_modules(model, layers):
        module.eval()


def freeze(model, layers: int) -> None:
    """No gradients for the embeddings and the first `layers` layers."""
    for module in frozen_modules(model, layers):
        module.requires_grad_(False)
    training_mode(model, layers)


def adamw(model, learning_rate: float, **options):
    """AdamW over the trainable tensors; biases and LayerNorms do not decay."""
    import torch

    trainable = [(name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad]
    plain = [tensor for name, tensor in trainable if name.endswith("bias") or "LayerNorm" in name]
    decayed = [tensor for name, tensor in trainable if not (name.endswith("bias") or "LayerNorm" in name)]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, eps=EPSILON, **options)


def linear_with_warmup(total: int, warmup: int) -> Callable[[int], float]:
    """A factor of the peak: 0 at step 0, 1 after `warmup`, 0 at `total`.

    Source: transformers, `get_linear_schedule_with_warmup`.
    """
    return lambda step: step / max(1, warmup) if step < warmup else max(0.0, (total - step) / max(1, total - warmup))


def reference_of(model) -> list:
    """Pairs (tensor, its value now) of the trainable backbone: what the L2-to-pretrained penalty is measured from."""
    return [(tensor, tensor.detach().clone()) for tensor in model.bert.parameters() if tensor.requires_grad]


def train_step(model, optimizer, schedule, batch: dict, reference: list, strength: float) -> tuple[float, float]:
    """One update; returns the task loss (mean cross-entropy) and the penalty strength * ||theta - theta_pre||^2."""
    import torch

    task = model(**batch).loss
    penalty = sum((((tensor - start) ** 2).sum() for tensor, start in reference), torch.zeros(())) * strength
    (task + penalty).backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], CLIP)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return task.item(), penalty.item()


def predict(model, tokens: list[list[int]], batch: int = 128) -> np.ndarray:
    """Predicted class of each row, in row order; batches sorted by length to save padding."""
    import torch

    model.eval()
    order = np.argsort([len(row) for row in tokens], kind="stable")
    predicted = np.zeros(len(tokens), dtype=np.int64)
    with torch.no_grad():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            predicted[rows] = model(**tensors(collate(tokens, None, rows))).logits.argmax(-1).numpy()
    return predicted


def score(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy and macro F1 by scikit-learn."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
    }


def progress(batches: list[np.ndarray], every: int = 20) -> Iterator[np.ndarray]:
    """Yields the batches and prints one plain line every `every` of them."""
    started = time.perf_counter()
    for i, batch in enumerate(batches):
        yield batch
        if (i + 1) % every == 0:
            print(f"  {i + 1}/{len(batches)} steps, {time.perf_counter() - started:.0f} s", flush=True)
