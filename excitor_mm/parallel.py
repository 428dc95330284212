"""Several processes as one: decisions taken together, gradients summed, the frozen model divided.

The trainable parameters (a few million) lie whole on every process, and their gradients are summed by one
all-reduce at the end of a step. So replicated and divided frozen weights train in the same way, a step may
accumulate as it likes, and no process is ever inside a collective operation while another one reads data.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from excitor_mm.console import log
from excitor_mm.errors import DataError, ExcitorError
from excitor_mm.model import ExcitorModel

T = TypeVar("T")


class StopSignals:
    """While this context lasts, SIGINT and SIGTERM are noted instead of obeyed; a second SIGINT is obeyed."""

    received = 0
    """Number of the signal; 0: none yet."""

    def __enter__(self) -> StopSignals:
        self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        log(f"{signal.Signals(number).name}: saving after this step")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def agree(accelerator: Accelerator, tokens: int, error: ExcitorError | None, signal_number: int) -> tuple[int, int]:
    """What all processes say before a step.

    Args:
        tokens: what this process brings to the step: answer tokens, or drawn captions.
        error: what it died of, if it did.
        signal_number: the signal it got, or 0.

    Returns:
        The sum of the tokens, and the highest signal number.

    Raises:
        ExcitorError: on all processes, when one has an error or nobody has a token; so none waits for ever.
    """
    said = torch.zeros(accelerator.num_processes, 3, dtype=torch.int64, device=accelerator.device)
    said[accelerator.process_index] = torch.tensor([tokens, error is not None, signal_number])
    said = accelerator.reduce(said, reduction="sum")
    if said[:, 1].any():
        errors = gather_object([error])
        raise next(e for e in errors if e is not None)
    total = int(said[:, 0].sum())
    if not total:
        raise DataError("No sample of a step can be used on any process: run `excitor-mm shards check`.")
    return total, int(said[:, 2].max())


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T | None:
    """Let the main process do something that may fail while the others wait.

    Returns:
        What `work` returned; None on the other processes.

    Raises:
        ExcitorError: on all processes, when `work` raised it.
    """
    result = None
    errors: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            result = work()
        except ExcitorError as error:
            errors = [error]
    broadcast_object_list(errors)
    if errors[0] is not None:
        raise errors[0]
    return result


def share_parameters(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the values of the first one."""
    if torch.distributed.is_initialized():
        for parameter in parameters:
            torch.distributed.broadcast(parameter.data, 0)


def sum_gradients(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Replace every gradient by its sum over the processes, in one operation; one that is missing counts as zero."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="sum")
    for parameter, total in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = total.view_as(parameter)


def shard_frozen(model: ExcitorModel) -> None:
    """Divide the frozen tensors of the language model's layers among the processes (FSDP2).

    Embeddings, the last norm and the head stay whole: a tied embedding belongs to two modules.
    """
    from torch.distributed.fsdp import fully_shard

    if not torch.distributed.is_initialized():
        raise DataError("train.shard_frozen needs several processes: start with torchrun or accelerate launch.")
    decoder, trainables = model.language.model, set(model.trainables().values())
    for layer in decoder.layers:
        fully_shard(layer, ignored_params=trainables)
    outside = set(decoder.parameters()) - {p for layer in decoder.layers for p in layer.parameters()}
    fully_shard(decoder, ignored_params=trainables | outside)


@contextlib.contextmanager
def whole(model: ExcitorModel) -> Iterator[None]:
    """Every process holds the whole language model for a while, and may run it as often as it has samples."""
    layers: list[Any] = [layer for layer in model.language.model.layers if hasattr(layer, "unshard")]
    for layer in layers:
        layer.set_reshard_after_forward(False)
        layer.unshard()
    yield
    for layer in layers:
        layer.set_reshard_after_forward(True)
        layer.reshard()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # a DTensor, without its slow import
