"""Draw the sample data: scenes in COCO captions and VQAv2 format, packed to shards. Deterministic by seed.

python tools/make_sample_data.py --output data/sample

--keep FOLDER also leaves pictures and JSON files there, and in each split text.json: instruction rows that ask
the same kinds of questions about a caption that they hold.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sample_scenes

from excitor_mm.console import log
from excitor_mm.data.coco import Source, pack_coco
from excitor_mm.errors import ExcitorError

FIRST_ID = {"train": 100_000, "val": 200_000, "test": 300_000}


def write_split(folder: Path, split: str, count: int, seed: int) -> Source:
    """Draw one split into `folder`: images/, captions.json, questions.json, answers.json, text.json."""
    chooser, asker = random.Random(f"{seed} {split}"), random.Random(f"{seed} text")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []
    answered: list[dict[str, Any]] = []
    told: list[dict[str, str]] = []
    for image_id in range(FIRST_ID[split], FIRST_ID[split] + count):
        scene = sample_scenes.make_scene(chooser, training=split == "train")
        name = f"{image_id:012d}.jpg"
        sample_scenes.draw(scene, chooser).save(folder / "images" / name, "JPEG", quality=72)
        size = {"width": sample_scenes.SIDE, "height": sample_scenes.SIDE}
        images.append({"id": image_id, "file_name": name, **size, "scene": asdict(scene)})
        for caption in sample_scenes.captions(scene):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "caption": caption})
            told += text_rows(caption, sample_scenes.questions(scene, asker))
        for number, (text, answer, kind, answer_type) in enumerate(sample_scenes.questions(scene, chooser)):
            ids = {"image_id": image_id, "question_id": image_id * 1000 + number}
            ten = [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)]
            asked.append({**ids, "question": text})
            types = {"question_type": kind, "answer_type": answer_type, "multiple_choice_answer": answer}
            answered.append({**ids, **types, "answers": ten})
    head = {"info": {"description": f"excitor-mm drawn scenes, {split}, seed {seed}"}, "licenses": []}
    files: dict[str, Any] = {
        "captions": {**head, "type": "captions", "images": images, "annotations": annotations},
        "questions": {**head, "task_type": "Open-Ended", "data_subtype": split, "questions": asked},
        "answers": {**head, "data_subtype": split, "annotations": answered},
        "text": told,
    }
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return Source(
        folder / "images",
        captions=folder / "captions.json",
        questions=folder / "questions.json",
        answers=folder / "answers.json",
    )


def text_rows(caption: str, questions: list[tuple[str, str, str, str]]) -> list[dict[str, str]]:
    """Instruction rows: questions about a caption, so that a model learns to answer from it without a picture."""
    return [
        {"instruction": f"{text}\nPicture: {caption}\nAnswer:", "input": "", "output": answer}
        for text, answer, _, _ in questions
    ]


def main() -> int:
    """Draw and pack; returns the exit status."""
    parser = argparse.ArgumentParser(description="Draw the sample data of data/sample.")
    parser.add_argument("--output", type=Path, default=Path("data/sample"), help="folder for train/, val/, test/")
    parser.add_argument("--seed", type=int, default=0, help="other seeds draw other scenes")
    parser.add_argument("--train", type=int, default=360, help="number of training scenes")
    parser.add_argument("--val", type=int, default=40, help="number of validation scenes")
    parser.add_argument("--test", type=int, default=60, help="number of test scenes")
    parser.add_argument("--keep", type=Path, default=None, help="also keep pictures and JSON files here")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for split in FIRST_ID:
                folder = (options.keep or Path(scratch)) / split
                source = write_split(folder, split, getattr(options, split), options.seed)
                report = pack_coco(source, options.output / split, name="sample", samples_per_shard=120, workers=1)
                log(f"{split}: {report.samples} scenes, {report.captions} captions, {report.questions} questions")
    except ExcitorError as error:
        log(f"make_sample_data: {error}")
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
