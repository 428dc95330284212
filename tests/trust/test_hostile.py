"""Files from strangers: each is read or refused with a sentence, in bounded memory, and nothing in it is executed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from excitor_mm.adapter import CONFIG, TENSORS, load_config, load_tensors, save_adapter
from excitor_mm.cli import main
from excitor_mm.config import RunConfig
from excitor_mm.data.annotations import read_records
from excitor_mm.data.coco import Source
from excitor_mm.data.images import BadImage, load_image
from excitor_mm.data.instructions import read_instructions
from excitor_mm.data.samples import BadSample, parse_sample
from excitor_mm.data.shards import BadRecord, list_shards, read_shard
from excitor_mm.errors import AdapterError, DataError, ExcitorError
from excitor_mm.files import write_bytes, write_folder
from excitor_mm.prepare import build_for_training
from excitor_mm.train import train
from tests.conftest import jpeg, make_shards
from tests.data.test_stream import members
from tests.trust import fuzz
from tests.trust.ranks import ROOT
from tests.trust.test_trust import run_tool


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_no_member_of_a_tar_leaves_it(tmp_path: Path) -> None:
    """Absolute paths, parents, links and devices; a size that no disk holds; pickles and scripts beside the image."""
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    marker = tmp_path / "executed"
    plain = [("/etc/1.jpg", jpeg()), ("../2.jpg", jpeg()), ("a/../../3.jpg", jpeg())]
    plain += [*members(4), ("5.pyd", pickle.dumps(Bomb(marker))), ("5.jpg", jpeg()), ("5.json", b"{}"), *members(6)]
    path = tmp_path / "in" / "x.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for number, kind in enumerate(kinds):
            tar.addfile(special(f"x{number}.jpg", kind, "/etc/passwd"))
        for name, content in plain:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with path.open("r+b") as file:  # a last member that says it is an exabyte long
        file.seek(len(path.read_bytes().rstrip(b"\0")) // 512 * 512 + 512)
        huge = tarfile.TarInfo("z.jpg")
        huge.size = 2**60
        file.write(huge.tobuf(tarfile.GNU_FORMAT))
    bad: list[BadRecord] = []
    assert [sample.image_id for sample in read_shard(str(path), bad.append)] == [4, 5]  # 6 may have lost a member
    reasons = [record.reason for record in bad]
    assert reasons[:8] == ["unsafe member"] * 8
    assert reasons[8:] == ["truncated or corrupt tar"]
    assert [item.name for item in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_name_of_many_megabytes_is_not_read(tmp_path: Path, kind: bytes) -> None:
    info = special("x", kind)
    info.size = 3 * 2**20
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(info.size))
    bad: list[BadRecord] = []
    assert list(read_shard(str(path), bad.append)) == []
    assert [record.reason for record in bad] == ["truncated or corrupt tar"]


def chunked(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *extra: tuple[bytes, bytes], rows: int | None = None) -> bytes:
    """A grey PNG of zeros, with more chunks before the picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    deflate = zlib.compressobj(9)
    line = bytes(width + 1)
    body = b"".join(deflate.compress(line) for _ in range(height if rows is None else rows)) + deflate.flush()
    chunks = [(b"IHDR", header), *extra, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunked(*chunk) for chunk in chunks)


def picture(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, kind, **options)
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) (w) file\n%%EOF\n"
BAD_IMAGES = {
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>x</script></svg>', "not an image"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(64), "not an image"),
    "eps": (EPS, "not an image"),
    "pickle": (pickle.dumps({"a": 1}), "not an image"),
    "cut jpeg": (jpeg(size=(99, 99))[:-300], "damaged"),
    "100 megapixels and one row": (png(10_000, 10_001, rows=0), "too large"),
    "2^31 pixels": (png(2**16, 2**15, rows=0), "too large"),
    "bomb in a text": (png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 9))), "damaged"),
    "bomb in a profile": (png(8, 8, (b"iCCP", b"a\0\0" + zlib.compress(bytes(200_000_000), 9))), "damaged"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_picture_that_is_none_is_a_sentence(name: str) -> None:
    data, reason = BAD_IMAGES[name]
    with pytest.raises(BadImage) as caught:
        load_image(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_the_first_picture_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "red", "green")]
    red, _, blue = load_image(picture(kind, save_all=True, append_images=frames)).getpixel((2, 2))
    assert (red > 240, blue < 15) == (True, True)


def test_a_picture_under_another_name_is_read_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(picture("PNG"))
    assert load_image(tmp_path / "x.jpg").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "facts",
    [
        b"[" * 100_000,
        b'{"image_id": ' + b"9" * 5000 + b"}",
        b'{"image_id": 1e999}',
        b'{"image_id": [1]}',
        b'{"captions": "one"}',
        b'{"captions": [{"a": 1}]}',
        b'{"questions": [{"question_id": "x", "question": 5}]}',
        b"[]",
        b"\xff\xfe",
    ],
)
def test_json_of_a_sample_that_is_not_as_it_should_be(facts: bytes) -> None:
    with pytest.raises(BadSample) as caught:
        parse_sample("1", {"jpg": jpeg(), "json": facts})
    assert caught.value.reason == "json invalid"


def replaced(value: object, *place: object, by: object) -> object:
    """A copy of nested JSON with one part replaced."""
    if not place:
        return by
    node = json.loads(json.dumps(value))
    node[place[0]] = replaced(node[place[0]], *place[1:], by=by)
    return node


@pytest.mark.parametrize(
    ("name", "hostile"),
    [
        ("karpathy", replaced(fuzz.KARPATHY, "images", 0, "sentences", by=["A cat."])),
        ("karpathy", replaced(fuzz.KARPATHY, "images", 0, "sentences", by=[{}])),
        ("answers", replaced(fuzz.ANSWERS, "annotations", 0, "answers", by=[-1])),
        ("answers", replaced(fuzz.ANSWERS, "annotations", 0, "question_id", by=[[]])),
        ("rows", replaced(fuzz.ROWS, 1, "id", by=[[]])),
    ],
)
def test_annotations_the_fuzz_run_found(tmp_path: Path, name: str, hostile: object) -> None:
    for other, value in (("captions", fuzz.COCO), ("questions", fuzz.QUESTIONS), (name, hostile)):
        (tmp_path / f"{other}.json").write_text(json.dumps(value))
    path, captions, questions = (tmp_path / f"{file}.json" for file in (name, "captions", "questions"))
    readers = {
        "rows": lambda: read_instructions(path),
        "karpathy": lambda: read_records(Source(tmp_path, karpathy=path, split="train")),
        "answers": lambda: read_records(Source(tmp_path, captions=captions, questions=questions, answers=path)),
    }
    with pytest.raises(DataError, match=name):
        readers[name]()


@pytest.fixture
def adapter(run_config: RunConfig, tmp_path: Path) -> Path:
    build_for_training(run_config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def hostile_tensors(kind: str, good: bytes) -> bytes:
    length = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + length])
    if kind == "huge header":
        return struct.pack("<Q", 2**62) + good[8:]
    if kind == "overlapping offsets":
        for facts in header.values():
            facts["data_offsets"][0] = 0
    if kind == "offsets beyond the file":
        for facts in header.values():
            facts["data_offsets"][1] += 2**40
    if kind == "shape that overflows":
        for facts in header.values():
            facts["shape"] = [2**40, 2**40]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + good[8 + length :]


@pytest.mark.parametrize(
    "kind", ["huge header", "overlapping offsets", "offsets beyond the file", "shape that overflows"]
)
def test_hostile_tensors_are_damage(adapter: Path, kind: str) -> None:
    expected = load_file(adapter / TENSORS)
    (adapter / TENSORS).write_bytes(hostile_tensors(kind, (adapter / TENSORS).read_bytes()))
    with pytest.raises(AdapterError, match="damaged"):
        load_tensors(adapter / TENSORS, expected)


def test_pickles_in_an_adapter_folder_are_never_opened(adapter: Path, tmp_path: Path) -> None:
    marker, expected = tmp_path / "executed", load_file(adapter / TENSORS)
    bomb = pickle.dumps(Bomb(marker))
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "excitor.pkl"):
        (adapter / name).write_bytes(bomb)
    assert load_tensors(adapter / TENSORS, expected).keys() == expected.keys()
    (adapter / TENSORS).write_bytes(bomb)
    with pytest.raises(AdapterError, match="damaged"):
        load_tensors(adapter / TENSORS, expected)
    torch.save({"gate": torch.zeros(1)}, adapter / TENSORS)
    with pytest.raises(AdapterError, match="damaged"):
        load_tensors(adapter / TENSORS, expected)
    assert not marker.exists()


@pytest.mark.parametrize(
    "edit", ["[" * 100_000, '{"format_version": 99}', "[]", "{}", '{"format_version": "x"}', "\0"]
)
def test_hostile_adapter_configs(adapter: Path, edit: str) -> None:
    (adapter / CONFIG).write_text(edit)
    with pytest.raises(AdapterError):
        load_config(adapter)


def test_a_number_that_no_float_holds_is_refused(adapter: Path) -> None:
    values = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(replaced(values, "decoding", "temperature", by=10**400)))
    with pytest.raises(AdapterError, match="too large"):
        load_config(adapter)


def aliases(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines) + f"\ntrain:\n  trackers: *a{levels - 1}\n"


@pytest.mark.parametrize(
    "text",
    [
        "train: !!python/object/apply:pathlib.Path.touch [executed]\n",
        "train: !!python/name:os.system\n",
        aliases(12),
        "train: " + "[" * 20_000,
        "train: {steps: " + "9" * 5000 + "}\n",
        "train:\n  output: caf\udce9\n",
        "data:\n  train: 'pipe:touch executed'\n",
        "train: {learning_rate: " + "9" * 400 + "}\n",
        "\0",
    ],
    ids=["tag", "name", "aliases", "nesting", "number", "latin-1", "pipe", "float", "nul"],
)
def test_hostile_configurations(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    try:
        status = main(["train", "--config", "run.yaml", "--train.output", "run", "--train.device", "cpu"])
    except SystemExit as stop:
        status = int(stop.code or 0)
    error = capsys.readouterr().err
    assert (status, "Traceback" in error, len(error) < 3000) == (2, False, True)
    assert [item.name for item in tmp_path.iterdir()] == ["run.yaml"]


def test_an_index_names_files_of_its_own_folder(tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "s", [2])
    for name in ("../s/tiny-000000.tar", "/etc/passwd", "..", "x#sha256=0.tar"):
        text = (folder / "index.json").read_text().replace("tiny-000000.tar", name)
        (tmp_path / "t").mkdir(exist_ok=True)
        (tmp_path / "t" / "index.json").write_text(text)
        with pytest.raises(DataError, match="not a file name"):
            list_shards(str(tmp_path / "t"))


def test_the_largest_picture_and_a_bomb_keep_within_two_gigabytes() -> None:
    """In a process that may not have more."""
    code = (
        "import resource, zlib; from tests.trust.test_hostile import png, load_image, BAD_IMAGES\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30,) * 2)\n"
        "assert load_image(png(10_000, 10_000)).size == (10_000, 10_000)\n"
        "for name, (data, _) in BAD_IMAGES.items():\n"
        "    try: load_image(data)\n"
        "    except Exception as error: assert 'MemoryError' not in repr(error.__cause__), name\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """No file of this process may grow above 16 kB, as on a disk that is full. Not a fixture: pytest writes its own
    report, which may be a longer file, before it leaves a fixture."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_sentence_and_leaves_what_was_there(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"old")
    write_folder(tmp_path / "folder", {"file": b"old"})
    with small_disk(), pytest.raises(DataError, match="cannot be written"):
        write_bytes(tmp_path / "file", bytes(20_000))
    with small_disk(), pytest.raises(DataError, match="cannot be written"):
        write_folder(tmp_path / "folder", {"file": b"new", "large": bytes(20_000)})
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [(item.name, item.read_bytes()) for item in (tmp_path / "folder").iterdir()] == [("file", b"old")]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "folder"]


def test_a_run_on_a_full_disk_ends_with_a_sentence_and_can_be_resumed(run_config: RunConfig) -> None:
    """The disk fills up after the first checkpoint."""
    from tests.invariants.test_training import change

    config = change(run_config, save_every=1, log_every=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    output = Path(config.train.output)

    def fill() -> None:
        while not (output / "checkpoints" / "step-00000001" / "manifest.json").exists():
            pass
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))

    filler = threading.Thread(target=fill)
    filler.start()
    try:
        with pytest.raises(DataError, match="cannot be written"):
            train(change(config, steps=40))
    finally:
        filler.join()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert train(change(config, steps=40, log_every=100, save_every=100), resume=True) == output / "best"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody may write: /proc")
def test_a_folder_that_cannot_be_written_is_a_sentence(run_config: RunConfig) -> None:
    from tests.invariants.test_training import change

    for write in (
        lambda: write_bytes(Path("/proc/excitor-mm/file"), b""),
        lambda: write_folder(Path("/proc/excitor-mm"), {}),
        lambda: train(change(run_config, output="/proc/excitor-mm")),
    ):
        with pytest.raises(ExcitorError, match="cannot be written"):
            write()


def test_an_adapter_is_whole_while_it_is_replaced(adapter: Path) -> None:
    """As `caption` sees it when a training writes its best adapter anew."""
    config, tensors = load_config(adapter), load_file(adapter / TENSORS)
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            save_adapter(adapter, config, tensors)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(150):
            assert load_config(adapter) == config
            assert load_tensors(adapter / TENSORS, tensors).keys() == tensors.keys()
    finally:
        ended.set()
        writer.join()


def test_the_fuzz_run_finds_nothing() -> None:
    assert "0 findings" in run_tool("fuzz", "--inputs", "240", "--seed", "1")
