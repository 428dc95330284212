"""The HTTP API over a real socket, with real models: each client gets the answer to its own picture."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn

from excitor_mm.cli import main
from excitor_mm.errors import ConfigError
from excitor_mm.model import ExcitorModel
from excitor_mm.serve.start import start_app
from excitor_mm.templates import Turn
from tests.conftest import COLOURS, jpeg


@contextmanager
def serving(app) -> Iterator[str]:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        port.listen(128)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [port]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{port.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def address(tiny_adapter: Path) -> Iterator[str]:
    with serving(start_app([str(tiny_adapter)], page=False, max_bytes=100_000)) as url:
        yield url


@pytest.fixture(scope="module")
def captions(tiny_adapter: Path) -> dict[str, str]:
    model = ExcitorModel.from_pretrained(tiny_adapter)
    found = {colour: model.caption(jpeg(colour)) for colour in COLOURS}
    assert len(set(found.values())) == len(COLOURS)
    return found


def data_url(colour: str) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(colour)).decode()


def message(url: str, text: str = "") -> list[dict]:
    return [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
        }
    ]


def error(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["message"]


def test_fifty_clients_get_their_own_captions_in_three_ways(address: str, captions: dict[str, str]) -> None:
    def client(number: int) -> bool:
        colour = COLOURS[number % 8]
        with httpx.Client(base_url=address, timeout=60) as http:
            if number % 3 == 0:
                answer = http.post("/v1/caption/file", content=jpeg(colour)).json()["caption"]
            elif number % 3 == 1:
                answer = http.post("/v1/caption", json={"image": data_url(colour)}).json()["caption"]
            else:
                body = {"messages": message(data_url(colour)), "stream": False}
                answer = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        return answer == captions[colour]

    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(client, range(150)))
    health = httpx.get(f"{address}/health").json()
    assert health == {"status": "ok", "adapters": ["tiny"], "waiting": {"tiny": 0}}


def test_the_openai_client(address: str, captions: dict[str, str]) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="any")
    assert [model.id for model in client.models.list()] == ["tiny"]
    answer = client.chat.completions.create(model="tiny", messages=message(data_url("green")), max_tokens=12)
    assert answer.choices[0].message.content == captions["green"]
    assert answer.usage.completion_tokens > 0
    pieces = list(client.chat.completions.create(model="tiny", messages=message(data_url("red")), stream=True))
    texts = [piece.choices[0].delta.content for piece in pieces if piece.choices[0].delta.content]
    assert "".join(texts) == captions["red"]
    assert len(texts) > 1
    assert pieces[-1].choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="an Excitor sees one"):
        client.chat.completions.create(model="tiny", messages=message(data_url("red")) + message(data_url("blue")))
    with pytest.raises(openai.NotFoundError, match="no adapter 'gpt'"):
        client.chat.completions.create(model="gpt", messages=message(data_url("red")))


def test_questions_with_history_are_asked_as_in_training(address: str, tiny_adapter: Path) -> None:
    model = ExcitorModel.from_pretrained(tiny_adapter)
    turns = (Turn("What is it?", answer="a square"), Turn("Which colour?"))
    ids = model.task_format("vqa").render(model.processor.tokenizer, turns).ids
    inputs = model.processor.collate([ids], [model.processor.pixels(jpeg("blue"))])
    (expected,) = model.processor.batch_decode(model.generate(**inputs))
    body = {"image": data_url("blue"), "question": "Which colour?", "history": [["What is it?", "a square"]]}
    assert httpx.post(f"{address}/v1/ask", json=body).json()["answer"] == expected
    talk = [
        *message(data_url("blue"), "What is it?"),
        {"role": "assistant", "content": "a square"},
        {"role": "user", "content": "Which colour?"},
    ]
    chat = httpx.post(f"{address}/v1/chat/completions", json={"messages": talk}).json()
    assert chat["choices"][0]["message"]["content"] == expected


def test_bad_input_is_a_sentence(address: str) -> None:
    def post(path: str, **body) -> httpx.Response:
        return httpx.post(f"{address}{path}", timeout=30, **body)

    text = "data:image/png;base64," + base64.b64encode(b"just text").decode()
    assert "not an image" in error(post("/v1/caption", json={"image": text}), 400)
    assert "not valid base64" in error(post("/v1/caption", json={"image": "data:image/png;base64,???"}), 400)
    assert "fetches no addresses" in error(post("/v1/caption", json={"image": "http://127.0.0.1/x.jpg"}), 400)
    assert "data URL" in error(post("/v1/caption", json={"image": "file:///etc/passwd"}), 400)
    assert "not an image" in error(post("/v1/caption/file", content=b"%PDF"), 400)
    assert "damaged or cut off" in error(post("/v1/caption/file", content=jpeg()[:200]), 400)
    assert "larger than" in error(post("/v1/caption/file", content=b"x" * 100_001), 413)
    chunks = (b"x" * 50_000 for _ in range(3))  # no length is announced
    assert "larger than" in error(post("/v1/caption/file", content=chunks), 413)
    assert "decoding.beams" in error(post("/v1/caption", json={"image": text, "decoding": {"beams": 99}}), 422)
    assert "not the user's" in error(
        post("/v1/chat/completions", json={"messages": [{"role": "assistant", "content": "hi"}]}), 400
    )
    assert httpx.post(f"{address}/v1/caption", json={}, headers={"Host": "evil.example"}).status_code == 400


def test_addresses_are_fetched_only_where_that_is_allowed(tiny_adapter: Path, captions: dict[str, str]) -> None:
    class Photos(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(jpeg("gray") if self.path == "/small.jpg" else b"x" * 200_000)

        def log_message(self, *args: object) -> None:
            pass

    photos = HTTPServer(("127.0.0.1", 0), Photos)
    threading.Thread(target=photos.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{photos.server_address[1]}"
    with serving(start_app([str(tiny_adapter)], page=False, allow_urls=True, max_bytes=100_000)) as url:
        answer = httpx.post(f"{url}/v1/caption", json={"image": f"{place}/small.jpg"}, timeout=30)
        assert answer.json()["caption"] == captions["gray"]
        assert "more than" in error(httpx.post(f"{url}/v1/caption", json={"image": f"{place}/large"}), 400)
    photos.shutdown()


def test_keys(tiny_adapter: Path) -> None:
    with serving(start_app([str(tiny_adapter)], keys=["one", "two"], page=False, exposed=True)) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        assert "API key" in error(httpx.get(f"{url}/v1/models"), 401)
        assert "API key" in error(httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer on"}), 401)
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer two"}).status_code == 200


def test_other_machines_are_let_in_with_a_key_only(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXCITOR_MM_API_KEYS", raising=False)
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "no API key is given" in capsys.readouterr().err


def test_two_adapters_of_one_name_are_refused(tiny_adapter: Path) -> None:
    with pytest.raises(ConfigError, match="same name"):
        start_app([str(tiny_adapter), str(tiny_adapter)], page=False)


def test_a_client_that_leaves_costs_the_others_nothing(address: str, captions: dict[str, str]) -> None:
    body = json.dumps({"messages": message(data_url("red")), "stream": True})
    host, port = address.removeprefix("http://").split(":")
    for _ in range(5):
        with socket.create_connection((host, int(port))) as gone:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            gone.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    answer = httpx.post(f"{address}/v1/caption", json={"image": data_url("white")}, timeout=30)
    assert answer.json()["caption"] == captions["white"]
    limit = time.monotonic() + 10
    while httpx.get(f"{address}/health").json()["waiting"]["tiny"] and time.monotonic() < limit:
        time.sleep(0.1)
    assert httpx.get(f"{address}/health").json()["waiting"]["tiny"] == 0
