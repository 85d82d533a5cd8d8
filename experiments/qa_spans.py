"""Extractive question answering on questions made from CoNLL-2003's entities: MiniLM, and the same from scratch.

Sentences are joined to paragraphs of three. A question asks for the person, place or organisation that a sentence names
together with another entity of the paragraph; where that sentence has none, the question has no answer.

Command:  python experiments/qa_spans.py
Result:   exact match .500 (sd .023), F1 .532; from scratch .153 and .180: LOG.md
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxptft import data
from jaxptft.data.tag_schemes import spans
from jaxptft.recipes import finetune
from jaxptft.recipes.tasks.settings import Answers

SEEDS, OUT = (0, 1, 2), Path("runs/qa-spans")
SENTENCES, UNANSWERABLE = 3, 0.25  # in a paragraph; share of the questions
ROWS = {"train": 2000, "valid": 400, "test": 1000}
KINDS = {"PER": "person", "LOC": "place", "ORG": "organisation"}
Entity = tuple[str, int, int]  # type, first word, word after the last


def paragraph(words: Sequence[Sequence[str]]) -> tuple[str, list[list[int]]]:
    """The sentences as one text, and the character at which each of their words begins."""
    parts: list[str] = []
    starts: list[list[int]] = []
    length = 0
    for sentence in words:
        starts.append([])
        for word in sentence:
            starts[-1].append(length)
            parts.append(word)
            length += len(word) + 1
    return " ".join(parts), starts


def questions(
    sentences: Sequence[Sequence[str]], entities: Sequence[Sequence[Entity]], seed: int
) -> Iterator[tuple[str, str, list[tuple[str, int]]]]:
    """(question, context, answers) of all paragraphs, in order; of questions without an answer only some are kept."""
    chance = random.Random(seed)
    for first in range(0, len(sentences) - SENTENCES + 1, SENTENCES):
        words, found = sentences[first : first + SENTENCES], entities[first : first + SENTENCES]
        context, starts = paragraph(words)

        def place(number: int, entity: Entity, starts=starts, words=words, context=context) -> tuple[str, int]:
            _, begin, past = entity
            start = starts[number][begin]
            return context[start : starts[number][past - 1] + len(words[number][past - 1])], start

        named = [place(number, entity)[0] for number, inside in enumerate(found) for entity in inside]
        for number, inside in enumerate(found):
            for entity in inside:
                other = place(number, entity)[0]
                if named.count(other) > 1:
                    continue  # which sentence is meant could not be told
                for kind, noun in KINDS.items():
                    answers = [place(number, one) for one in inside if one[0] == kind and one != entity]
                    if len(answers) == 1 or (not answers and chance.random() < UNANSWERABLE / 3):
                        yield f"Which {noun} is named together with {other}?", context, answers


def write(split: str, path: Path, tagged: Path) -> Path:
    """ROWS questions of one split as rows of JSON."""
    read = data.read_taggings(tagged)
    entities = [[(span.type, span.start, span.end) for span in spans(tags, "IOB2")] for tags in read.tags or ()]
    made: list[Any] = list(questions(read.words, entities, seed=0))
    chosen = sorted(random.Random(1).sample(range(len(made)), min(ROWS[split], len(made))))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number in chosen:
            question, context, answers = made[number]
            columns = {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]}
            row = {"id": f"{split}-{number}", "question": question, "context": context, "answers": columns}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    rows = data.read_questions(path)
    print(f"{split}: {len(rows)} questions, {rows.unanswerable} without an answer, e.g. {rows.questions[0]}")
    return path


def main() -> None:
    files = {split: write(split, OUT / "data" / f"{split}.jsonl", path) for split, path in data.conll2003().items()}
    scores: dict[str, list[tuple[float, float]]] = {"MiniLM": [], "from scratch": []}
    for seed in SEEDS:
        for arm in scores:
            out = OUT / f"{arm.replace(' ', '-')}-{seed}"
            config = finetune.Config(
                task="question_answering",
                model=str(data.minilm_folder()),
                train=str(files["train"]),
                eval=str(files["valid"]),
                test=str(files["test"]),
                out=out,
                answers=Answers(stride=24, max_answer=12),
                max_length=112,
                length_buckets=3,
                epochs=2,
                learning_rate=2e-4,
                from_scratch=arm == "from scratch",
                seed=seed,
                overwrite=(out / "config.yaml").exists(),
            )
            if not (out / "report.json").exists():  # of a run that came to its end
                finetune.run(config)
            found = json.loads((out / "report.json").read_text())["test"]["metrics"]
            scores[arm].append((found["question_answering/exact_match"], found["question_answering/f1"]))
            print(f"{arm}, seed {seed}: exact match {scores[arm][-1][0]:.4f}, F1 {scores[arm][-1][1]:.4f}")
    for arm, values in scores.items():
        mean, spread = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
        print(f"{arm}: exact match {mean[0]:.4f} ± {spread[0]:.4f}, F1 {mean[1]:.4f} ± {spread[1]:.4f}")


if __name__ == "__main__":
    main()
