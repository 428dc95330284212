"""Feed damaged and hostile files to everything that reads a stranger's file.

    python -m tests.trust.fuzz --inputs 20000

Each kind runs in a process of its own with limited memory. hypothesis chooses the mutations of valid files: bytes
flipped, cut, doubled, spliced in, and JSON values replaced by hostile ones. An input may be read or refused with an
ExcitorError; everything else is a finding, and so is a file written outside the scratch folder, a process started
or a pickle opened, which an audit hook sees.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image

from excitor_mm.adapter import CONFIG, TENSORS, load_config, load_tensors
from excitor_mm.commands import make_parser
from excitor_mm.config import RunConfig, from_dict
from excitor_mm.data.annotations import read_records
from excitor_mm.data.coco import Source
from excitor_mm.data.images import load_image
from excitor_mm.data.instructions import read_instructions
from excitor_mm.data.scienceqa import read_problems
from excitor_mm.data.shards import list_shards, read_shard
from excitor_mm.errors import ConfigError, ExcitorError
from excitor_mm.prepare import build_for_training
from excitor_mm.references import read_predictions, read_references
from tests.conftest import jpeg, make_shards, tiny_run, write_encoder, write_language

MEMORY = 6 * 2**30  # address space of a process; what torch and its libraries map takes about half
HOSTILE = [
    None,
    True,
    -1,
    0,
    1e308,
    10**400,
    "",
    "\0",
    "../../x",
    "/etc/passwd",
    "\ud800",
    [],
    {},
    [[]],
    [{}],
    {"": 0},
]
PIECES = [b"\0" * 64, b"\xff" * 64, b"!!python/object/apply:os.system ['true']", b"&a [*a]", b"{" * 5000, b"[" * 5000]
REFUSED: list[object] = []
"""What refused the present input."""
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"image_id": 1, "id": 1, "caption": "A cat."}, {"image_id": 2, "id": 2, "caption": "A dog."}],
}
KARPATHY = {
    "images": [
        {
            "cocoid": 1,
            "filename": "a.jpg",
            "filepath": "train2014",
            "split": "train",
            "sentences": [{"raw": "A cat."}],
        }
    ]
}
QUESTIONS = {"questions": [{"question_id": 5, "image_id": 1, "question": "What is it?"}]}
ANSWERS = {
    "annotations": [{"question_id": 5, "image_id": 1, "answers": [{"answer": "cat"}], "question_type": "what"}]
}
PROBLEM = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "", "image": None, "split": "train"}
PROBLEMS = {
    "1": {**PROBLEM, "lecture": "", "solution": "", "subject": "x", "grade": "grade1", "topic": "", "skill": ""}
}
CONVERSATION = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]
ROWS = [{"instruction": "Say hi", "input": "", "output": "hi"}, {"id": 2, "conversations": CONVERSATION}]
PREDICTIONS = [{"image_id": 1, "caption": "A cat."}, {"image_id": 2, "caption": "A dog."}]


class Kind:
    """Valid files of one kind, and what reads them."""

    def __init__(self, files: list[tuple[str, bytes]], read: Callable[[Path], object]) -> None:
        self.files, self.read = files, read
        """(name in the scratch folder, content); all are written, one is mutated."""


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with a few mutations; of JSON also with a few hostile values."""
    if content[:1] in b"[{" and draw(st.booleans()):
        return json.dumps(_poison(json.loads(content), draw), ensure_ascii=False).encode("utf-8", "replace")
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "drop", "double", "insert", "end"]))
        length = draw(st.sampled_from([1, 2, 4, 8, 32, 512]))
        if kind == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            data[place : place + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + length]
        elif kind == "double":
            data[place:place] = data[place : place + length]
        elif kind == "insert":
            data[place:place] = draw(st.sampled_from(PIECES))
        else:
            data += draw(st.sampled_from(PIECES))
    return bytes(data)


def _poison(value: Any, draw: st.DrawFn) -> Any:
    """A copy with one to three nodes replaced."""
    holder = [copy.deepcopy(value)]
    for _ in range(draw(st.integers(1, 3))):
        node: Any = holder
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(node[key], (dict, list)) or draw(st.integers(0, 2)) == 0:
                node[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
                break
            node = node[key]
    return holder[0]


def kinds(scratch: Path) -> dict[str, Kind]:
    """All kinds, built from tiny real files."""
    language, encoder = write_language(scratch / "language"), write_encoder(scratch / "encoder.safetensors")
    shards = make_shards(scratch / "shards", [3, 1])
    config = tiny_run(language, encoder, shards, scratch / "run")
    model = build_for_training(config)
    model.save_pretrained(scratch / "adapter")
    expected = {name: tensor.detach() for name, tensor in model.trainables().items()}
    parser = make_parser()

    def annotations(folder: Path) -> None:
        paths = {name: folder / f"{name}.json" for name in ("captions", "karpathy", "questions", "answers")}
        for source in (
            Source(folder, captions=paths["captions"], questions=paths["questions"], answers=paths["answers"]),
            Source(folder, karpathy=paths["karpathy"], split="train"),
        ):
            _refusing(read_records, source)
        _refusing(read_problems, folder / "problems.json")
        _refusing(read_instructions, folder / "rows.json")
        _refusing(read_predictions, folder / "predictions.json")
        _refusing(read_references, str(folder / "captions.json"))

    def run(folder: Path) -> None:
        try:
            options = parser.parse_args(["train", "--config", str(folder / "run.yaml")])
        except SystemExit as stop:
            if stop.code != 2:
                raise RuntimeError(f"exit status {stop.code}") from stop
            raise ConfigError("refused while parsing") from stop
        names = ("language", "vision", "excitor", "prompt", "data", "train", "decoding", "lora")
        from_dict(RunConfig, {name: options.train.as_dict()[name] for name in names})

    def adapter(folder: Path) -> None:
        _refusing(load_config, folder)
        load_tensors(folder / TENSORS, expected)

    def shard(folder: Path) -> None:
        for _ in read_shard(str(folder / "x.tar"), lambda _: None):
            pass

    def index(folder: Path) -> None:
        for path in list_shards(str(folder)):
            assert Path(path).parent == folder

    plain = {"captions": COCO, "karpathy": KARPATHY, "questions": QUESTIONS, "answers": ANSWERS}
    plain |= {"problems": PROBLEMS, "rows": ROWS, "predictions": PREDICTIONS}
    values = json.loads(json.dumps(config, default=lambda item: vars(item)))
    folder = scratch / "adapter"
    return {
        "image": Kind(
            [(f"image-{i}", data) for i, data in enumerate(_images())],
            lambda f: [*map(_load, sorted(f.glob("image-*")))],
        ),
        "shard": Kind([("x.tar", (shards / "tiny-000000.tar").read_bytes())], shard),
        "index": Kind([("index.json", (shards / "index.json").read_bytes())], index),
        "annotations": Kind([(f"{k}.json", json.dumps(v).encode()) for k, v in plain.items()], annotations),
        "adapter": Kind([(name, (folder / name).read_bytes()) for name in (CONFIG, TENSORS)], adapter),
        "config": Kind([("run.yaml", yaml.safe_dump(values).encode())], run),
    }


def _images() -> list[bytes]:
    encoded = [jpeg()]
    for kind in ("PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        buffer = io.BytesIO()
        Image.effect_noise((32, 32), 50).convert("RGB").save(buffer, kind)
        encoded.append(buffer.getvalue())
    return encoded


def _load(path: Path) -> None:
    _refusing(load_image, path)


def _refusing(read: Callable[..., object], *arguments: object) -> None:
    try:
        read(*arguments)
    except ExcitorError:
        REFUSED.append(read)


def fuzz(kind: Kind, scratch: Path, inputs: int, seed: int) -> dict[str, Any]:
    """Run one kind in this process; counts and findings."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    scratch.mkdir()
    os.chdir(scratch)
    set_hypothesis_home_dir(scratch / "hypothesis")
    outside: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if not path.startswith((str(scratch), "/dev/")):
                outside.append(path)
        elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class"):
            outside.append(f"{event} {arguments}"[:200])

    findings: dict[str, tuple[str, bytes]] = {}
    counts = {"inputs": 0, "refused": 0}

    @settings(
        max_examples=inputs, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=HealthCheck
    )
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(kind.files) - 1))
        for place, (name, content) in enumerate(kind.files):
            found = data.draw(mutated(content)) if place == number else content
            (scratch / name).write_bytes(found)
            if place == number:
                changed = found
        counts["inputs"] += 1
        REFUSED.clear()
        try:
            _refusing(kind.read, scratch)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} in {frame.filename}:{frame.lineno}"
            findings.setdefault(where, (traceback.format_exc(limit=-4), changed))
        counts["refused"] += bool(REFUSED)

    sys.addaudithook(watch)
    torch.manual_seed(seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run._hypothesis_internal_use_seed = seed
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    run()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        **counts,
        "findings": {where: [text, data[:300].hex()] for where, (text, data) in findings.items()},
        "outside": sorted(set(outside)),
        "peak_mib": after / 1024,
        "grown_mib": (after - before) / 1024,
    }


def main(inputs: int, seed: int, chosen: list[str]) -> int:
    """Fork a process for each kind; print a table; 0 without findings."""
    torch.set_num_threads(1)
    bad = total = 0
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        table = kinds(scratch)
        chosen = chosen or list(table)
        print("| kind | inputs | refused | tracebacks | outside | crashed | peak MiB | grown MiB |")
        print("|---|---|---|---|---|---|---|---|")
        for kind in chosen:
            report = scratch / f"{kind}.json"
            process = os.fork()
            if not process:
                try:
                    report.write_text(json.dumps(fuzz(table[kind], scratch / f"{kind}-inputs", inputs, seed)))
                except BaseException:
                    report.with_suffix(".txt").write_text(traceback.format_exc())
                finally:
                    os._exit(0)
            crashed = os.waitpid(process, 0)[1] != 0 or not report.exists()
            facts = json.loads(report.read_text()) if report.exists() else {}
            counts = [len(facts.get("findings", ())), len(facts.get("outside", ())), int(crashed)]
            cells = [kind, facts.get("inputs"), facts.get("refused"), *counts]
            cells += [round(facts.get("peak_mib", 0)), round(facts.get("grown_mib", 0))]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
            for where, (text, data) in facts.get("findings", {}).items():
                print(f"\n{where}\n{text}{data}\n", file=sys.stderr)
            for item in facts.get("outside", ()):
                print(f"outside: {item}", file=sys.stderr)
            if crashed and report.with_suffix(".txt").exists():
                print(report.with_suffix(".txt").read_text(), file=sys.stderr)
            bad += sum(counts)
            total += facts.get("inputs", 0)
    print(f"{total} inputs, {bad} findings")
    return 1 if bad else 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--inputs", type=int, default=20_000, help="over all kinds")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument(
        "kinds", nargs="*", help="image, shard, index, annotations, adapter, config; all unless given"
    )
    options = arguments.parse_args()
    count = len(options.kinds) or 6
    sys.exit(main(-(-options.inputs // count), options.seed, options.kinds))
