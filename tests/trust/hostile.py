"""Valid files of every kind that strangers send, what reads them, and hostile mutations of them; see fuzz.py."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
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
            refusing(read_records, source)
        refusing(read_problems, folder / "problems.json")
        refusing(read_instructions, folder / "rows.json")
        refusing(read_predictions, folder / "predictions.json")
        refusing(read_references, str(folder / "captions.json"))

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
        refusing(load_config, folder)
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
    refusing(load_image, path)


def refusing(read: Callable[..., object], *arguments: object) -> None:
    """Read; an ExcitorError is noted in `REFUSED`, and everything else goes on."""
    try:
        read(*arguments)
    except ExcitorError:
        REFUSED.append(read)
