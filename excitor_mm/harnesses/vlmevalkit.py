"""VLMEvalKit (on the Python index as ms-vlmeval): hand it this model, registered under a name of your choice.

from functools import partial
from vlmeval.config import supported_VLM
from excitor_mm.harnesses.vlmevalkit import Excitor

supported_VLM["excitor"] = partial(Excitor, adapter="runs/x/best")
"""

from __future__ import annotations

from typing import Any

from vlmeval.vlm.base import BaseModel

from excitor_mm.model import ExcitorModel


class Excitor(BaseModel):
    """A captioner as VLMEvalKit wants it: the first image and the text of a message.

    Args:
        adapter: adapter folder.
        device, dtype: see `ExcitorModel.from_pretrained`.
        prompt: "adapter": the text it was trained with, whatever the data set says; "task": the data set's text.
    """

    INTERLEAVE = False

    def __init__(self, adapter: str, device: str = "auto", dtype: str = "auto", prompt: str = "adapter") -> None:
        super().__init__()
        self.model = ExcitorModel.from_pretrained(adapter, device=device, dtype=dtype)
        self.prompt = prompt

    def generate_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        """The answer to one message."""
        text, image = self.message_to_promptimg(message, dataset=dataset)
        inputs = self.model.processor(images=[image], text=None if self.prompt == "adapter" else text)
        return self.model.processor.batch_decode(self.model.generate(**inputs))[0]
