"""The batching core alone: every request gets its own answer, whatever the others do."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from excitor_mm.serve.batching import Batcher, Busy


def test_two_hundred_threads_get_their_own_answers_in_batches_of_one_key() -> None:
    batches: list[tuple[object, list[int]]] = []

    def work(key, requests):
        batches.append((key, list(requests)))
        time.sleep(0.002)
        return [(key, request) for request in requests]

    batcher = Batcher(work, size=8, wait=0.01, limit=500)
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda i: batcher.submit(i % 3, i).result(timeout=30), range(200)))
    batcher.close()
    assert answers == [(i % 3, i) for i in range(200)]
    assert all(len(requests) <= 8 and {i % 3 for i in requests} == {key} for key, requests in batches)
    assert sorted(i for _, requests in batches for i in requests) == list(range(200))
    assert len(batches) < 100  # they were batched


def test_what_one_batch_raises_reaches_its_clients_and_no_others() -> None:
    def work(key, requests):
        if key == "bad":
            raise ValueError("broken")
        return requests

    batcher = Batcher(work, wait=0)
    bad, good = batcher.submit("bad", 1), batcher.submit("good", 2)
    with pytest.raises(ValueError, match="broken"):
        bad.result(timeout=5)
    assert good.result(timeout=5) == 2
    short = Batcher(lambda key, requests: [], wait=0)  # answers are missing
    with pytest.raises(ValueError, match="zip"):
        short.submit("k", 1).result(timeout=5)
    short.close()
    batcher.close()


def test_a_full_queue_refuses_and_a_cancelled_request_is_not_worked_on() -> None:
    started, go, seen = threading.Event(), threading.Event(), []

    def work(key, requests):
        started.set()
        go.wait(5)
        seen.extend(requests)
        return requests

    batcher = Batcher(work, size=1, wait=0, limit=2)
    first = batcher.submit("k", 1)
    assert started.wait(5)
    second, third = batcher.submit("k", 2), batcher.submit("k", 3)
    with pytest.raises(Busy, match="2 requests wait"):
        batcher.submit("k", 4)
    assert second.cancel()
    go.set()
    assert (first.result(5), third.result(5)) == (1, 3)
    batcher.close()
    assert seen == [1, 3]
    with pytest.raises(Busy):
        batcher.submit("k", 5)


def test_an_old_request_does_not_wait_behind_newer_ones_of_another_key() -> None:
    order: list[object] = []
    go = threading.Event()

    def work(key, requests):
        go.wait(5)
        order.append(key)
        return requests

    batcher = Batcher(work, size=2, wait=0)
    first = [batcher.submit("a", 0)]
    time.sleep(0.05)
    rest = [batcher.submit(key, 0) for key in ("b", "a", "a", "a", "a")]
    go.set()
    for future in first + rest:
        future.result(5)
    batcher.close()
    assert order == ["a", "b", "a", "a"]
