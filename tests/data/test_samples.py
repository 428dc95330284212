"""Samples survive the way through a shard; broken ones are told apart by reason."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from excitor_mm.data.samples import BadSample, Question, Sample, parse_sample, sample_to_fields
from tests.conftest import jpeg

texts = st.text(min_size=1, max_size=30).map(lambda text: " ".join(text.split())).filter(bool)


@given(st.integers(0, 10**9), st.lists(texts, max_size=5), st.lists(st.tuples(texts, st.lists(st.text()))))
def test_round_trip(image_id: int, captions: list[str], asked: list[tuple[str, list[str]]]) -> None:
    questions = tuple(Question(n, text, tuple(answers), "what", "other") for n, (text, answers) in enumerate(asked))
    sample = Sample("k", image_id, jpeg(), tuple(captions), questions, "s.tar")
    assert parse_sample("k", sample_to_fields(sample), "s.tar") == sample


def test_line_separators_do_not_survive() -> None:
    fields = {"jpg": b"x", "json": json.dumps({"captions": ["a\u2028b\r\nc", " "]}).encode()}
    assert parse_sample("7", fields).captions == ("a b c",)


def test_img2dataset_sample() -> None:
    fields = {"jpg": b"x", "txt": b"a dog", "json": b'{"url": "u", "key": "000000012"}'}
    sample = parse_sample("000000012", fields)
    assert (sample.image_id, sample.captions) == (12, ("a dog",))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"json": b"{}"}, "no image"),
        ({"jpg": b"", "json": b"{"}, "json invalid"),
        ({"jpg": b"", "json": b"[]"}, "json invalid"),
        ({"jpg": b"", "json": b'{"captions": "a dog"}'}, "json invalid"),
        ({"jpg": b"", "json": b'{"captions": [1]}'}, "json invalid"),
        ({"jpg": b"", "json": b'{"image_id": [1]}'}, "json invalid"),
        ({"jpg": b"", "json": b'{"questions": [{"question": 1}]}'}, "json invalid"),
        ({"jpg": b"", "json": b"[" * 100_000}, "json invalid"),
        ({"jpg": b"", "txt": b"\xff\xfe"}, "json invalid"),
    ],
)
def test_bad_samples(fields: dict[str, bytes], reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        parse_sample("k", fields, "s.tar")
    assert caught.value.reason == reason
    copy = pickle.loads(pickle.dumps(caught.value))  # it comes out of worker processes
    assert (copy.reason, str(copy)) == (reason, str(caught.value))
