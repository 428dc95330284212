"""Shards behind a bad network: the same samples as from disk, or a sentence; and a cache that keeps its limit."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from excitor_mm.checkpoint import plain
from excitor_mm.data import remote
from excitor_mm.data.shards import expected_samples, list_shards, read_shard
from excitor_mm.data.stream import TrainingStream, training_steps
from excitor_mm.errors import DataError
from tests.conftest import make_shards
from tests.data.test_stream import image_id

STALL = 0.5


class BadServer(ThreadingHTTPServer):
    """Serves a folder; `faults` says what happens to the first requests for each file."""

    faults: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.asked: Counter[str] = Counter()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    server: BadServer

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        super().do_HEAD()

    def do_GET(self) -> None:
        number = self.server.asked[self.path]
        self.server.asked[self.path] += 1
        fault = self.server.faults[number] if number < len(self.server.faults) else ""
        path = Path(self.translate_path(self.path))
        content = path.read_bytes() if path.is_file() else b""
        if not fault or not content:
            super().do_GET()
        elif fault == "500":
            self.send_error(500)
        elif fault == "drop":
            self.close_connection = True
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            half = len(content) // 2
            self.wfile.write(content[:half])
            if fault == "stall":
                self.wfile.flush()
                threading.Event().wait(3 * STALL)
            elif fault == "garble" and path.suffix == ".tar":
                self.wfile.write(b"?" * (len(content) - half))
            self.close_connection = True  # "truncate"


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], BadServer]]:
    monkeypatch.setenv("EXCITOR_MM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote, "STALL", STALL)
    servers: list[BadServer] = []

    def start(folder: Path) -> BadServer:
        servers.append(BadServer(folder))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def steps(spec: str, workers: int) -> list[dict]:
    stream = TrainingStream(list_shards(spec), image_id, batch_size=4, seed=0, shuffle_buffer=4)
    with closing(training_steps(stream, workers)) as iterator:
        return [next(iterator).examples for _ in range(9)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_network_gives_the_samples_of_the_disk(serve, tmp_path: Path, workers: int) -> None:
    folder = make_shards(tmp_path / "s", [5, 3, 4])
    server = serve(folder)
    server.faults = ("500", "drop", "truncate", "stall", "garble")
    assert steps(f"{server.url}/", workers) == steps(str(folder), 0)
    assert expected_samples(server.url) == 12
    shards = [path for path in server.asked if path.endswith(".tar")]
    assert [server.asked[path] for path in shards] == [
        6,
        6,
        6,
    ]  # five faults and one success, for all readers together


def test_training_ends_after_a_bad_network(serve, run_config, tmp_path: Path) -> None:
    """What fsspec raises refers to its own frames, and through them to the readers of whoever called."""
    server = serve(Path(run_config.data.train))
    server.faults = ("500", "") * 9
    config = dataclasses.replace(run_config, data=dataclasses.replace(run_config.data, train=server.url, workers=1))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(plain(config)))
    command = [sys.executable, "-m", "excitor_mm", "train", "--config", str(path), "--train.steps", "1"]
    assert subprocess.run(command, timeout=60, capture_output=True).returncode == 0
    assert server.asked["/index.json"] > 1


@pytest.mark.parametrize(
    ("name", "sentence"), [("none.tar", "cannot be opened"), ("tiny-000000.tar", "6 times .*500")]
)
def test_what_is_never_served_is_a_sentence(serve, tmp_path: Path, name: str, sentence: str) -> None:
    server = serve(make_shards(tmp_path / "s", [2]))
    server.faults = ("500",) * 99
    with pytest.raises(DataError, match=sentence):
        list(read_shard(f"{server.url}/{name}", lambda _: None))


def test_a_shard_that_is_not_what_the_index_says_is_refused(serve, tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "s", [2])
    server = serve(folder)
    (url,) = list_shards(server.url)
    shard = folder / "tiny-000000.tar"
    shard.write_bytes(shard.read_bytes() + bytes(512))
    with pytest.raises(DataError, match="sha256 is .*, the index says"):
        list(read_shard(url, lambda _: None))


def test_the_cache_keeps_its_limit_and_what_was_used_last(serve, tmp_path: Path, monkeypatch) -> None:
    folder = make_shards(tmp_path / "s", [2, 2, 2])
    size = (folder / "tiny-000000.tar").stat().st_size
    monkeypatch.setenv("EXCITOR_MM_SHARDS_GB", str(2.5 * size / 1e9))
    server = serve(folder)
    first, second, third = list_shards(server.url)
    for url in (first, second, first, third, first):
        assert len(list(read_shard(url, lambda _: None))) == 2
    kept = {path.name.partition("-")[2] for path in (tmp_path / "cache" / "shards").glob("*.tar")}
    assert kept == {"tiny-000000.tar", "tiny-000002.tar"}
    assert server.asked["/tiny-000000.tar"] == 1
