"""memory: peak memory of a process that generates, and of one that captions more and more pictures."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from io import StringIO
from itertools import cycle, islice
from pathlib import Path

import torch

from excitor_mm.adapter import load_config
from excitor_mm.generate import caption_pictures
from excitor_mm.model import ExcitorModel
from excitor_mm.pictures import find_pictures
from suites.generation import seconds
from suites.measure import Comparison, Side
from suites.models import chosen, load_other, load_ours, random_tokens, text


def memory(options: Namespace) -> list[Comparison]:
    """Each call runs in a fresh process. "above the weights" is counted from what is resident when all is loaded."""
    names = ("excitor", *chosen(options, "bare", "llama-adapter", "clipcap", "blip2", "llava"))
    whole: dict[str, Side] = {name: partial(_in_a_process, _generate, options, name) for name in names}
    above: dict[str, Side] = {name: partial(_in_a_process, _generate_above, options, name) for name in names}
    facts = {"batch": options.batch_size, "image tokens": options.image_tokens, "new tokens": options.new_tokens}
    peaks = Comparison("peak memory", whole, 1, "process", "MiB", facts, warm_up=False)
    rest = Comparison("peak memory above the weights", above, 1, "process", "MiB", facts, warm_up=False)
    many: dict[str, Side] = {
        f"{times} x {options.count} pictures": partial(_in_a_process, _caption, options, times) for times in (4, 2, 1)
    }
    flat = Comparison("peak memory of captioning", many, 1, "process", "MiB", warm_up=False)
    return [peaks, rest, flat]


def _in_a_process(task: Callable[..., float], options: Namespace, what: str | int) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(task, (options, what))


def peak() -> float:
    """Bytes: the most this process has held so far, of the GPU's memory where it uses one, else resident."""
    if torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated())
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def restart_peak() -> float:
    """Bytes held now; `peak` counts anew from here. Where Linux does not allow that, the peak so far."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # see proc(5): VmHWM is set to what is resident
    return peak()


def load_side(options: Namespace, name: str) -> ExcitorModel:
    """A model by the name of its side."""
    if name == "excitor":
        return load_ours(options.adapter, options.dtype)
    return load_other(name, load_config(options.adapter), options.dtype)


def _generate(options: Namespace, name: str) -> float:
    model = load_side(options, name)
    tokens = random_tokens(model, options.batch_size, options.image_tokens)
    seconds(model, text(model, options.batch_size), tokens, options.new_tokens)
    return peak()


def _generate_above(options: Namespace, name: str) -> float:
    model = load_side(options, name)
    held = restart_peak()
    tokens = random_tokens(model, options.batch_size, options.image_tokens)
    seconds(model, text(model, options.batch_size), tokens, options.new_tokens)
    return peak() - held


def _caption(options: Namespace, times: int) -> float:
    """The same pictures again and again: what grows is what is kept."""
    model = load_ours(options.adapter, options.dtype)
    pictures = list(find_pictures([options.images], StringIO()).pictures(lambda *_: None))[: options.count]
    stream = islice(cycle(pictures), times * len(pictures))
    for _ in caption_pictures(model, stream, batch_size=options.batch_size):
        pass
    return peak()
