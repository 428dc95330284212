"""Captions for collections: each picture once, however often the work is killed, and new files as they arrive."""

from __future__ import annotations

import _thread
import csv
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from excitor_mm.caption_files import FIELDS, CaptionFile
from excitor_mm.cli import main
from excitor_mm.data.images import load_image
from excitor_mm.model import ExcitorModel
from tests.conftest import COLOURS, jpeg, make_shards


def read(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, strict=True))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def captions(path: Path) -> dict[str, str]:
    rows = read(path)
    assert {name for row in rows for name in row} == set(FIELDS)
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row["caption"] for row in rows}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_killed_anywhere_and_resumed(suffix: str, tiny_adapter: Path, photos: Path, tmp_path: Path) -> None:
    """The file cut off at any byte; these captions hold control characters, quotes and half characters."""
    output = tmp_path / f"captions{suffix}"
    command = ["caption", str(photos), "--adapter", str(tiny_adapter), "--batch-size", "2", "--output", str(output)]
    assert main(command) == 0
    whole, expected = output.read_bytes(), captions(output)
    assert set(expected) == {str(path) for path in photos.rglob("*.jpg")}
    for end in range(0, len(whole), len(whole) // 8):
        output.write_bytes(whole[:end])
        assert main(command) == 0, end
        assert captions(output) == expected
    before = output.read_bytes()
    assert main(command) == 0
    assert output.read_bytes() == before


@pytest.mark.parametrize("caption", ['a "quoted" cat', "two\nlines", 'one "\n', "\r\n,", "\u2028"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_any_caption_survives_any_cut(caption: str, suffix: str, tmp_path: Path) -> None:
    settings = {"adapter": "a", "prompt": None, "decoding": {"beams": 1}}
    rows = [{"path": f"{i}.jpg", "caption": caption, **settings, "time": "now"} for i in range(2)]
    path = tmp_path / f"captions{suffix}"
    output = CaptionFile(path, settings)
    output.write(rows)
    output.close()
    whole = path.read_bytes()
    for end in range(0, len(whole), 3):
        path.write_bytes(whole[:end])
        output = CaptionFile(path, settings)
        output.write([row for row in rows if not output.has(row["path"])])
        output.close()
        assert path.read_bytes() == whole, end


def test_sidecars_are_made_once(tiny_adapter: Path, photos: Path, capsys) -> None:
    command = ["caption", str(photos), "--adapter", str(tiny_adapter), "--sidecar"]
    (photos / "deep" / "0.txt").write_text("mine\n")
    assert main(command) == 0
    model = ExcitorModel.from_pretrained(tiny_adapter)
    for index in range(1, 5):
        text = (photos / "deep" / f"{index}.txt").read_bytes().decode()
        assert text == model.caption(photos / "deep" / f"{index}.jpg") + "\n"
    assert (photos / "deep" / "0.txt").read_text() == "mine\n"
    assert main([*command, "--overwrite"]) == 0
    assert (photos / "deep" / "0.txt").read_text() != "mine\n"
    (photos / "deep" / "0.png").write_bytes(jpeg())
    assert main(command) == 2
    assert "would share" in capsys.readouterr().err


def test_shards_and_what_they_hold_besides_pictures(tiny_adapter: Path, tmp_path: Path, capsys) -> None:
    folder, output = make_shards(tmp_path / "shards", [3, 2]), tmp_path / "c.jsonl"
    command = ["caption", "--adapter", str(tiny_adapter), "--output", str(output)]
    assert main([*command, str(folder / "tiny-*.tar")]) == 0
    expected = captions(output)
    assert list(expected) == [f"{folder}/tiny-{i >= 3:06d}.tar/{i:012d}" for i in range(5)]
    assert main([*command, str(folder)]) == 0  # the same shards by another name
    assert "0 captioned" in capsys.readouterr().err
    assert captions(output) == expected
    shard = folder / "tiny-000001.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    assert main([*command, str(shard)]) == 2
    assert "truncated or corrupt tar" in capsys.readouterr().err


def test_unreadable_pictures_are_listed_and_the_status_is_chosen(tiny_adapter: Path, photos: Path, tmp_path, capsys):
    (photos / "deep" / "1.jpg").write_bytes(jpeg()[:200])
    command = ["caption", str(photos), "--adapter", str(tiny_adapter), "--output", str(tmp_path / "c.csv")]
    assert main(command) == 2
    assert len(captions(tmp_path / "c.csv")) == 4
    assert "1.jpg is damaged or cut off" in capsys.readouterr().err.splitlines()[-1]
    assert main([*command, "--allow-unreadable"]) == 0
    (photos / "deep" / "1.jpg").write_bytes(jpeg())
    assert main(command) == 0  # tried again
    assert len(captions(tmp_path / "c.csv")) == 5


def test_records_of_other_settings_and_other_writers_are_refused(tiny_adapter: Path, photos: Path, tmp_path, capsys):
    output = tmp_path / "c.csv"
    command = ["caption", str(photos), "--adapter", str(tiny_adapter), "--output", str(output)]
    assert main(command) == 0
    before = output.read_bytes()
    for more, sentence in (
        (["--beams", "2"], "another adapter, prompt or decoding"),
        (["--prompt", "A dog:"], "another adapter, prompt or decoding"),
        (["--sidecar"], "--output and --sidecar"),
        (["--watch", "0"], "--watch"),
    ):
        assert main([*command, *more]) == 2
        assert sentence in capsys.readouterr().err
    with FileLock(output.with_name(".c.csv.lock")):
        assert main(command) == 2
    assert "Another process" in capsys.readouterr().err
    for foreign in ("a,table\n1,2\n", "notes without a line break"):
        output.write_text(foreign)
        assert main(command) == 2
        assert "holds no captions" in capsys.readouterr().err
        assert output.read_text() == foreign
    output.write_bytes(before)
    assert main([*command, "--beams", "2", "--overwrite"]) == 0
    assert {json.loads(row["decoding"])["beams"] for row in read(output)} == {2}


def test_file_names_need_not_be_utf_8(tiny_adapter: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in (b"caf\xe9.jpg", b"two\nlines, and a comma.jpg"):
        (folder / os.fsdecode(name)).write_bytes(jpeg())
    for suffix in (".csv", ".jsonl"):
        command = ["caption", str(folder), "--adapter", str(tiny_adapter), "--output", str(tmp_path / f"c{suffix}")]
        assert main(command) == 0
        assert main(command) == 0
        assert "2 were captioned already" in capsys.readouterr().err


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGINT interrupts, which it does not in a job in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_watching_catches_files_while_they_are_written(tiny_adapter: Path, tmp_path: Path, heard: None) -> None:
    """Twenty files dropped by a writer that pauses in the middle of each; one that stays broken until later."""
    inbox, output = tmp_path / "inbox", tmp_path / "captions.jsonl"
    inbox.mkdir()

    def drop() -> None:
        late = inbox / "late.jpg"
        late.write_bytes(jpeg()[:100])
        for index in range(20):
            picture = jpeg(COLOURS[index % 8])
            with (inbox / f"{index}.jpg").open("wb") as file:
                file.write(picture[:150])
                file.flush()
                time.sleep(0.05)
                file.write(picture[150:])
        limit = time.monotonic() + 60
        for count, then in ((20, lambda: late.write_bytes(jpeg())), (21, _thread.interrupt_main)):
            while time.monotonic() < limit and (not output.exists() or len(output.read_text().splitlines()) < count):
                time.sleep(0.1)
            then()

    writer = threading.Thread(target=drop)
    writer.start()
    command = ["caption", str(inbox), "--adapter", str(tiny_adapter), "--output", str(output), "--watch", "0.2"]
    assert main(command) == 0  # Ctrl-C is how watching ends
    writer.join()
    counts = Counter(row["path"] for row in read(output))
    assert counts == {str(path): 1 for path in inbox.iterdir()}


def test_pictures_are_upright(tiny_adapter: Path, tmp_path: Path) -> None:
    """The same picture stored upright, and turned with an EXIF note that says so, gets the same pixels."""
    picture = Image.new("RGB", (64, 48), "red")
    picture.paste("blue", (0, 0, 20, 48))
    picture.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert load_image(tmp_path / "turned.png").tobytes() == picture.tobytes()
    assert (
        main(["caption", str(tmp_path), "--adapter", str(tiny_adapter), "--output", str(tmp_path / "c.jsonl")]) == 0
    )
    assert len(set(captions(tmp_path / "c.jsonl").values())) == 1
