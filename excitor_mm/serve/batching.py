"""Requests of many threads, answered in batches by one. Knows no model and no web.

In: requests, each with a key; only requests of the same key share a batch. Out: a future for each.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Work = Callable[[Hashable, list[Request]], Sequence[Answer]]


class Busy(Exception):
    """Too many requests wait already."""


class _Waiting(NamedTuple):
    key: Hashable
    request: object
    future: Future


class Batcher(Generic[Request, Answer]):
    """A queue and a thread that works on it.

    The oldest request decides which batch is next, so none waits for ever behind others of another key.

    Args:
        work: (key, requests) -> an answer for each; runs in the thread, one batch at a time. What it raises is
            raised by the futures of that batch, and the next batch goes on.
        size: most requests in a batch.
        wait: seconds that an incomplete batch waits for more.
        limit: most requests that wait.
    """

    def __init__(self, work: Work, *, size: int = 8, wait: float = 0.02, limit: int = 256) -> None:
        self.work, self.size, self.wait, self.limit = work, size, wait, limit
        self.waiting: deque[_Waiting] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self.thread.start()

    def submit(self, key: Hashable, request: Request) -> Future[Answer]:
        """Hand in a request. Cancelling the future takes it out again, unless its batch has started.

        Raises:
            Busy: `limit` requests wait, or the batcher is closed.
        """
        with self.changed:
            if self.closed or len(self.waiting) >= self.limit:
                raise Busy(f"{len(self.waiting)} requests wait already: try again in a moment.")
            future: Future[Answer] = Future()
            self.waiting.append(_Waiting(key, request, future))
            self.changed.notify_all()
            return future

    def close(self) -> None:
        """Finish what waits, take nothing new, end the thread."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            live = [one for one in batch if one.future.set_running_or_notify_cancel()]
            if not live:
                continue
            try:
                answers = self.work(live[0].key, [one.request for one in live])
                for one, answer in zip(live, answers, strict=True):
                    one.future.set_result(answer)
            except Exception as error:  # whatever it is, the clients must hear of it and the thread must go on
                for one in live:
                    if not one.future.done():
                        one.future.set_exception(error)

    def _next_batch(self) -> list[_Waiting]:
        """The oldest request and what fits it; empty when closed and done."""
        with self.changed:
            while not self.waiting and not self.closed:
                self.changed.wait()
            if not self.waiting:
                return []
            key, deadline = self.waiting[0].key, time.monotonic() + self.wait
            while len(fitting := self._fitting(key)) < self.size and not self.closed:
                left = deadline - time.monotonic()
                if left <= 0 or not self.changed.wait(left):
                    break
            chosen = set(map(id, fitting))
            self.waiting = deque(one for one in self.waiting if id(one) not in chosen)
            return fitting

    def _fitting(self, key: Hashable) -> list[_Waiting]:
        return [one for one in self.waiting if one.key == key][: self.size]
