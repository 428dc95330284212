"""lmms-eval: `lmms_eval --model excitor_mm --model_args adapter=DIR --tasks coco2014_cap_val` (extra: lmms-eval).

The harness finds this model through the entry point group `lmms_eval.models`. Its COCO scores decode greedily, with
64 tokens, unless told otherwise: they are not those of `excitor-mm benchmark`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from excitor_mm.console import Progress
from excitor_mm.model import ExcitorModel

MANIFEST = ModelManifest("excitor_mm", simple_class_path="excitor_mm.harnesses.lmms_eval.Excitor")


class Excitor(lmms):
    """A captioner as lmms-eval wants it.

    Args:
        adapter: adapter folder.
        batch_size: requests at a time.
        device, dtype: see `ExcitorModel.from_pretrained`.
        prompt: "adapter": the text it was trained with, whatever the task says; "task": the task's text.
    """

    is_simple = True

    def __init__(
        self,
        adapter: str,
        batch_size: int | str = 1,
        device: str = "auto",
        dtype: str = "auto",
        prompt: str = "adapter",
    ) -> None:
        super().__init__()
        self.model = ExcitorModel.from_pretrained(adapter, device=device, dtype=dtype)
        self.batch_size, self.prompt = int(batch_size), prompt

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One answer a request, in order; one image each."""
        answers: list[str] = []
        with Progress("answering", len(requests), "requests") as bar:
            for _, alike in itertools.groupby((r.args for r in requests), key=lambda arguments: repr(arguments[1])):
                rest = list(alike)
                while rest:
                    chunk, rest = rest[: self.batch_size], rest[self.batch_size :]
                    answers += self._answers(chunk, chunk[0][1])
                    bar.advance(len(chunk))
        return answers

    def _answers(self, chunk: Sequence[tuple[Any, ...]], wished: dict[str, Any]) -> list[str]:
        """Requests with the same generation settings, as one batch."""
        contexts, _, to_visual, ids, tasks, splits = zip(*chunk, strict=True)
        images = [
            next(iter(visual(self.task_dict[task][split][i]) or []), None)
            for visual, task, split, i in zip(to_visual, tasks, splits, ids, strict=True)
        ]
        text = None if self.prompt == "adapter" else list(contexts)
        inputs = self.model.processor(images=images, text=text)
        sampled = bool(wished.get("do_sample"))
        options: dict[str, Any] = {"max_new_tokens": wished.get("max_new_tokens", 64), "do_sample": sampled}
        options["num_beams"] = wished.get("num_beams") or 1
        if sampled:
            options |= {"temperature": wished.get("temperature", 1.0), "top_p": wished.get("top_p", 1.0)}
        texts = self.model.processor.batch_decode(self.model.generate(**inputs, **options))
        ends = wished.get("until") or []
        for end in [ends] if isinstance(ends, str) else ends:
            texts = [found.split(end)[0] if end.strip() else found for found in texts]
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused: no caption task asks for it."""
        raise NotImplementedError("excitor_mm gives texts, no log-likelihoods: choose a generate_until task.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused: an adapter answers one prompt."""
        raise NotImplementedError("excitor_mm answers one round: choose a generate_until task.")
