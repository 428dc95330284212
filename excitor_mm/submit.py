"""Submission files for the COCO, VQAv2 and VizWiz servers, written and checked offline.

A server takes hours and says little; every reason for which it would reject a file is found here, one sentence
each. Writing checks as well: a file with a flaw is never written.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from excitor_mm.errors import ConfigError, DataError
from excitor_mm.files import read_json, write_bytes, write_text
from excitor_mm.metrics.vqa import normalize
from excitor_mm.references import Id, read_answers, read_predictions

COCO_NAME = re.compile(r"captions_(val2014|test2014)_(.*)_results\.json")
VQA_NAME = re.compile(r"v2_OpenEnded_mscoco_(val2014|test2015|test-dev2015)_(.*)_results\.json")
ALGORITHM = re.compile(r"[A-Za-z0-9.-]+")


def write_coco(
    val: Path,
    test: Path,
    val_images: Path,
    test_images: Path,
    algorithm: str,
    output: Path,
    fill_missing: bool = False,
) -> Path:
    """The zip for the COCO captions server: two results files, no folder.

    Args:
        val, test: predictions for val2014 and test2014.
        val_images, test_images: captions_val2014.json and image_info_test2014.json, or files like them.
        algorithm: the method's name in the file names.
        output: folder for the zip.
        fill_missing: an empty caption for images without a prediction; some of test2014 are unreadable.

    Raises:
        DataError: one sentence for each reason to reject it.
    """
    check_algorithm(algorithm)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for split, predictions, images in (("val2014", val, val_images), ("test2014", test, test_images)):
            captions = _filled(read_predictions(predictions), official_ids(images, "images", "id"), fill_missing)
            rows = [{"image_id": i, "caption": text} for i, text in captions.items()]
            name = f"captions_{split}_{algorithm}_results.json"
            archive.writestr(zipfile.ZipInfo(name), json.dumps(rows))
    _refuse(_coco_problems(buffer.getvalue(), val_images, test_images))
    path = output / f"{algorithm}_results.zip"
    write_bytes(path, buffer.getvalue())
    return path


def check_coco(path: Path, val_images: Path, test_images: Path) -> list[str]:
    """Every reason to reject a zip for the COCO server, a sentence each; see `write_coco`."""
    return _coco_problems(_read_bytes(path), val_images, test_images)


def _coco_problems(content: bytes, val_images: Path, test_images: Path) -> list[str]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        members = {item.filename: archive.read(item) for item in archive.infolist() if not item.is_dir()}
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        return [f"The file is not a readable zip ({error})."]
    problems = [
        f"The zip has a folder in the name {name!r}; files must lie at its top." for name in members if "/" in name
    ]
    found: dict[str, list[tuple[str, bytes]]] = {"val2014": [], "test2014": []}
    for name, data in members.items():
        match = COCO_NAME.fullmatch(name.rpartition("/")[2])
        if match is None:
            problems.append(f"The zip holds {name!r}, expected only captions_<val2014|test2014>_<alg>_results.json.")
        else:
            found[match[1]].append((match[2], data))
            problems += _algorithm_problems(match[2], name)
    algorithms = {algorithm for files in found.values() for algorithm, _ in files}
    if len(algorithms) > 1:
        problems.append(f"The two files name different methods: {', '.join(sorted(map(repr, algorithms)))}.")
    for split, images in (("val2014", val_images), ("test2014", test_images)):
        if len(found[split]) != 1:
            problems.append(f"The zip holds {len(found[split])} files for {split}, expected one.")
        for _, data in found[split]:
            problems += _row_problems(data, split, "image_id", "caption", official_ids(images, "images", "id"))
    return problems


def write_vqa(predictions: Path, questions: Path, algorithm: str, output: Path, fill_missing: bool = False) -> Path:
    """The results file for VQAv2 on EvalAI, with normalised answers (the server's rule wants them so).

    Args:
        predictions: see `read_answers`.
        questions: the official questions file; every question of it must be answered, for test-dev too.
        algorithm: the method's name in the file name.
        output: folder for the file.
        fill_missing: answer "" to questions without a prediction.

    Raises:
        DataError: one sentence for each reason to reject it.
    """
    check_algorithm(algorithm)
    split = read_json(questions).get("data_subtype")
    answers = _filled(read_answers(predictions), official_ids(questions, "questions", "question_id"), fill_missing)
    rows = [{"question_id": i, "answer": normalize(text)} for i, text in answers.items()]
    text = json.dumps(rows)
    path = output / f"v2_OpenEnded_mscoco_{split}_{algorithm}_results.json"
    _refuse(_vqa_problems(path.name, text.encode(), questions))
    write_text(path, text)
    return path


def check_vqa(path: Path, questions: Path) -> list[str]:
    """Every reason to reject a file for VQAv2 on EvalAI, a sentence each; see `write_vqa`."""
    return _vqa_problems(path.name, _read_bytes(path), questions)


def _vqa_problems(name: str, content: bytes, questions: Path) -> list[str]:
    match = VQA_NAME.fullmatch(name)
    problems = _algorithm_problems(match[2], name) if match else []
    if match is None:
        problems.append(f"The file is called {name!r}, expected v2_OpenEnded_mscoco_<split>_<alg>_results.json.")
    elif match[1] != read_json(questions).get("data_subtype"):
        problems.append(f"The file's name says {match[1]}, but {questions.name} is another split.")
    ids = official_ids(questions, "questions", "question_id")
    return problems + _row_problems(content, "the file", "question_id", "answer", ids)


def write_vizwiz(predictions: Path, questions: Path, output: Path, fill_missing: bool = False) -> Path:
    """The results file for VizWiz, with normalised answers; arguments as in `write_vqa`."""
    answers = _filled(read_answers(predictions), official_ids(questions, "", "image"), fill_missing)
    text = json.dumps([{"image": i, "answer": normalize(text)} for i, text in answers.items()])
    _refuse(_row_problems(text.encode(), "the file", "image", "answer", official_ids(questions, "", "image")))
    path = output / "vizwiz_results.json"
    write_text(path, text)
    return path


def check_vizwiz(path: Path, questions: Path) -> list[str]:
    """Every reason to reject a file for VizWiz, a sentence each."""
    return _row_problems(_read_bytes(path), "the file", "image", "answer", official_ids(questions, "", "image"))


def official_ids(path: Path, table: str, key: str) -> list[Id]:
    """The ids of an official file: of the list `table` in it, or of the list that it is."""
    value = read_json(path)
    rows = value.get(table) if table and isinstance(value, dict) else value
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and key in row for row in rows):
        raise DataError(f"{path} has no list of entries with {key!r}: give the official file.")
    return [row[key] for row in rows]


def _filled(answers: Mapping[Id, str], ids: Iterable[Id], fill_missing: bool) -> dict[Id, str]:
    return {**(dict.fromkeys(ids, "") if fill_missing else {}), **answers}


def _row_problems(content: bytes, where: str, key: str, value: str, expected: list[Id]) -> list[str]:
    """What is wrong with a JSON list of {key: id, value: text}."""
    try:
        rows: Any = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return [f"{where}: not UTF-8 ({error})."]
    except (ValueError, RecursionError) as error:
        return [f"{where}: not JSON ({error})."]
    if not isinstance(rows, list):
        return [f"{where}: a JSON {type(rows).__name__}, expected a list of objects."]
    kind = type(expected[0])
    flawed = [row for row in rows if not isinstance(row, dict) or row.keys() != {key, value}]
    rows = [row for row in rows if isinstance(row, dict) and key in row]
    badly_typed = [row[key] for row in rows if type(row[key]) is not kind]
    ids = Counter(row[key] for row in rows if type(row[key]) is kind)
    texts = [row[key] for row in rows if not isinstance(row.get(value), str)]
    known = set(expected)
    findings = {
        f"entries are not objects of {key} and {value} alone": flawed,
        f"{key}s are not of the type {kind.__name__}": badly_typed,
        f"{key}s are there more than once": [i for i, count in ids.items() if count > 1],
        f"{key}s are missing": [i for i in expected if i not in ids],
        f"{key}s are not in the official file": [i for i in ids if i not in known],
        f"{value}s are not texts": texts,
    }
    return [
        f"{where}: {len(found)} {what}, such as {str(found[0])[:80]!r}." for what, found in findings.items() if found
    ]


def _algorithm_problems(algorithm: str, name: str) -> list[str]:
    return [] if algorithm else [f"The method's name in {name!r} is empty; the server's scorer crashes on it."]


def check_algorithm(algorithm: str) -> None:
    """Refuse a name that a server or a file system could misread."""
    if not ALGORITHM.fullmatch(algorithm):
        raise ConfigError(f"--algorithm is {algorithm!r}, expected letters, digits, points and hyphens.")


def _refuse(problems: list[str]) -> None:
    if problems:
        raise DataError("Nothing was written, the server would reject it: " + " ".join(problems))


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the path.") from error
