"""The web page by its own client: words as they come, heat maps, questions, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file

from excitor_mm.model import ExcitorModel
from excitor_mm.serve.start import start_app
from tests.conftest import jpeg
from tests.serve.test_api import serving

DECODING = (1, 12, False, 1.0, 1.0)


@pytest.fixture(scope="module")
def page(tiny_adapter: Path) -> Iterator[Client]:
    with serving(start_app([str(tiny_adapter)])) as address:
        yield Client(address, verbose=False)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "photo.jpg").write_bytes(jpeg("green"))
    return tmp_path / "photo.jpg"


def test_captions_come_word_by_word_and_side_by_side(page: Client, photo: Path, tiny_adapter: Path) -> None:
    expected = ExcitorModel.from_pretrained(tiny_adapter).caption(photo)
    job = page.submit(handle_file(photo), "tiny", "tiny", *DECODING, api_name="/caption_both")
    assert tuple(job.result()) == (expected, expected)
    firsts = [first for first, _ in job.outputs()]
    assert len(set(firsts)) > 2
    assert all(expected.startswith(text) for text in firsts)


def test_every_word_has_a_heat_map(page: Client, photo: Path) -> None:
    html = page.predict(handle_file(photo), "tiny", "a green square", api_name="/explain_caption")
    assert html.count('class="word') == html.count('class="map') == 3
    assert ".heat .w2:hover ~ .photo .m2" in html
    assert 'src="http' not in html


def test_questions_keep_their_history(page: Client, photo: Path) -> None:
    talk, box = page.predict("What?", [], handle_file(photo), "tiny", *DECODING, api_name="/answer")
    talk, box = page.predict("And now?", talk, handle_file(photo), "tiny", *DECODING, api_name="/answer")
    assert [message["role"] for message in talk] == ["user", "assistant"] * 2
    assert box == ""


def test_what_is_no_picture_is_refused(page: Client, tmp_path: Path) -> None:
    fake = tmp_path / "fake.jpg"
    fake.write_text("just text")
    for source, sentence in ((handle_file(fake), "not an image"), (None, "There is no picture yet")):
        with pytest.raises(Exception, match=sentence):
            page.predict(source, "tiny", "none", *DECODING, api_name="/caption_both")


def test_files_of_the_server_are_not_read(page: Client, photo: Path) -> None:
    """A client that names a path instead of uploading a file."""
    row = [{"path": str(photo), "meta": {"_type": "gradio.FileData"}}, "tiny", "none", *DECODING]
    call = f"{page.src}gradio_api/call/caption_both"
    event = httpx.post(call, json={"data": row}).json()["event_id"]
    answer = httpx.get(f"{call}/{event}", timeout=60).text
    assert "event: error" in answer
    assert "event: complete" not in answer
