"""Files from strangers: each is read or refused with a sentence, in bounded memory, and nothing in it is executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from excitor_mm.data.annotations import read_records
from excitor_mm.data.coco import Source
from excitor_mm.data.images import BadImage, load_image
from excitor_mm.data.instructions import read_instructions
from excitor_mm.data.samples import BadSample, parse_sample
from excitor_mm.data.shards import BadRecord, list_shards, read_shard
from excitor_mm.errors import DataError
from tests.conftest import jpeg, make_shards
from tests.data.test_stream import members
from tests.trust.hostile import ANSWERS, COCO, KARPATHY, QUESTIONS, ROWS
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
        ("karpathy", replaced(KARPATHY, "images", 0, "sentences", by=["A cat."])),
        ("karpathy", replaced(KARPATHY, "images", 0, "sentences", by=[{}])),
        ("answers", replaced(ANSWERS, "annotations", 0, "answers", by=[-1])),
        ("answers", replaced(ANSWERS, "annotations", 0, "question_id", by=[[]])),
        ("rows", replaced(ROWS, 1, "id", by=[[]])),
    ],
)
def test_annotations_the_fuzz_run_found(tmp_path: Path, name: str, hostile: object) -> None:
    for other, value in (("captions", COCO), ("questions", QUESTIONS), (name, hostile)):
        (tmp_path / f"{other}.json").write_text(json.dumps(value))
    path, captions, questions = (tmp_path / f"{file}.json" for file in (name, "captions", "questions"))
    readers = {
        "rows": lambda: read_instructions(path),
        "karpathy": lambda: read_records(Source(tmp_path, karpathy=path, split="train")),
        "answers": lambda: read_records(Source(tmp_path, captions=captions, questions=questions, answers=path)),
    }
    with pytest.raises(DataError, match=name):
        readers[name]()


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
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_fuzz_run_finds_nothing() -> None:
    assert "0 findings" in run_tool("fuzz", "--inputs", "240", "--seed", "1")
