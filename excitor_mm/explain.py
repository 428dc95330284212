"""What the Excitor did to one answer: how far it moved attention, word by word, and which image patches it read.

In: a model, a photo, and the answer it gives (or one given to it). Out: an `Explanation`; `heatmap.py` draws it.

Token t of the answer is chosen by the query at position t - 1. For each excited layer, from the same hidden states:

    inner   the inner attention of position t - 1, softmax of (3): what its extra key is mixed from (learnable
            prompts, tokens of the whole picture, patches)
    shift   total variation 1/2 sum_j |a_j - b_j| between the query's attention to all positions j with extra keys
            (a) and without (b): the share of attention that the Excitor moved

A map tells where a step looked, not why the word was chosen: the keys of earlier positions, the prompt's above all,
have read the picture too, and what moved attention means to later layers is not followed.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from excitor_mm.answer import Asked, describe
from excitor_mm.config import DecodingConfig
from excitor_mm.data.images import load_image
from excitor_mm.data.tasks import Conversation
from excitor_mm.errors import ConfigError, DataError
from excitor_mm.files import write_bytes, write_json
from excitor_mm.heatmap import draw, photo_maps
from excitor_mm.llama import ExcitorAttention
from excitor_mm.model import ExcitorModel
from excitor_mm.processor import ImageLike
from excitor_mm.prompts import answer_ids, prompt_ids
from excitor_mm.switches import switched_off
from excitor_mm.templates import CAPTION_INSTRUCTION, Turn


@dataclass(frozen=True)
class Explanation:
    """One answer, explained. W words, L excited layers, H key heads, Q query heads, R = K + N rows."""

    photo: Image.Image
    """Upright, RGB; the maps are in its coordinates."""
    words: tuple[str, ...]
    """The answer at its white space; a word of several tokens has their mean in every array."""
    layers: tuple[int, ...]
    """Indices of the excited layers."""
    gates: NDArray[np.float32]
    """float[L, H]."""
    shifts: NDArray[np.float32]
    """float[W, L, Q], the share of attention moved, 0 to 1."""
    inner: NDArray[np.float32]
    """float[W, L, H, R], the inner attention of the token that the word was chosen from; sums to 1 over R."""
    attention: NDArray[np.float32]
    """float[W, R], the mean of `inner` over layers and heads, each with the size of its gate as weight; sums to 1
    over R, or to 0 where every gate is closed."""
    rows: tuple[str, ...]
    """What the R rows are: "prompts", "NAME whole picture" or "NAME patches"."""
    maps: NDArray[np.float32]
    """float[W, h, w], the patches' part of `attention` laid over the whole photo; its sum is the patches' share."""
    seen: NDArray[np.bool_]
    """bool[h, w], False where resize and centre crop hid the photo from every encoder."""

    def shares(self) -> dict[str, list[float]]:
        """Kind of row -> its part of the attention of each word."""
        names = np.array(self.rows)
        return {name: self.attention[:, names == name].sum(axis=1).tolist() for name in dict.fromkeys(self.rows)}


@torch.no_grad()
def explain(
    model: ExcitorModel,
    image: ImageLike,
    *,
    question: str | None = None,
    prompt: str | None = None,
    answer: str | None = None,
    decoding: DecodingConfig | None = None,
) -> Explanation:
    """Explain the model's answer to one image.

    Args:
        model: with an Excitor and at least one encoder.
        image: PIL image, encoded bytes or path.
        question: for an adapter that answers questions; None: it captions.
        prompt: the whole text before the answer, in place of the adapter's own.
        answer: explain this text instead of the model's own answer.
        decoding: how the answer is generated; replaces the adapter's own.

    Raises:
        BadImage: an image that cannot be read.
        ConfigError: a model without Excitor blocks or encoders.
        AdapterError: an adapter that does not caption, or does not answer questions.
        DataError: an answer without words.
    """
    excitors = model.language.excitors()
    if not excitors or not model.tower.encoders:
        raise ConfigError("The adapter has no Excitor blocks or no encoder: only both together can be explained.")
    photo = image.convert("RGB") if isinstance(image, Image.Image) else load_image(image)
    pixels = [part[None].to(model.device) for part in model.processor.pixels(photo)]
    tokens = [part[0] for part in model.tower.tokens(pixels)]
    tokenizer, before, ids = model.processor.tokenizer, *_texts(model, tokens, question, prompt, answer, decoding)
    inputs = model.processor.collate([before], [tokens])
    if answer is None:
        ids = model.generate(**inputs, decoding=decoding)[0].tolist()
    ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
    words = tokenizer.decode(ids, skip_special_tokens=True).split()
    if not words:
        raise DataError("The answer has no words to explain: give one with --answer, or another prompt.")
    ends = [len(tokenizer.decode(ids[: place + 1], skip_special_tokens=True).split()) for place in range(len(ids))]
    owners = np.array([max(0, end - 1) for end in ends])  # token -> word

    visual, _ = model.visual_prompts(inputs["pixel_values"])
    whole = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1).to(model.device)
    with _recorded(model, slice(-len(ids) - 1, -1)) as layers:
        model.language(input_ids=whole, visual_prompts=visual, use_cache=False)
    gates = torch.stack([block.gate for block in excitors.values()]).float().cpu().numpy()
    inner = _by_word(torch.stack([inner for inner, _ in layers], dim=1), owners)
    weights = np.abs(gates) / max(np.abs(gates).sum(), 1e-30)
    attention = np.einsum("wlhr,lh->wr", inner, weights)
    prompts = len(next(iter(excitors.values())).prompts)
    maps, seen = photo_maps(attention[:, prompts:], model.tower, photo.size)
    return Explanation(
        photo=photo,
        words=tuple(words),
        layers=tuple(excitors),
        gates=gates,
        shifts=_by_word(torch.stack([shift for _, shift in layers], dim=1), owners),
        inner=inner,
        attention=attention,
        rows=("prompts",) * prompts + _row_names(model),
        maps=maps,
        seen=seen,
    )


def _texts(
    model: ExcitorModel,
    tokens: list[Tensor],
    question: str | None,
    prompt: str | None,
    answer: str | None,
    decoding: DecodingConfig | None,
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of the given answer (none if it is None)."""
    tokenizer = model.processor.tokenizer
    if prompt is not None:
        return prompt_ids(tokenizer, prompt), [] if answer is None else answer_ids(tokenizer, prompt, answer)
    tasks = [task for task in model.config.prompts.templates if task != "caption"]
    task = "caption" if question is None else next(iter(tasks), "vqa")  # "vqa" is then refused with a sentence
    form, turn = model.task_format(task), Turn(question or CAPTION_INSTRUCTION)
    if form.form.describes:
        (described,) = describe(model, [Asked(Conversation(0, (turn,)), tokens)], decoding or model.config.decoding)
        (turn,) = described.conversation.turns
    before = form.render(tokenizer, (turn,)).ids
    if answer is None:
        return before, []
    whole = form.render(tokenizer, (turn._replace(answer=answer),))
    return before, whole.ids[slice(*whole.answers[-1])]


@contextmanager
def _recorded(model: ExcitorModel, queries: slice) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inside the block each excited layer's forward adds what it did for `queries`, the lowest layer first.

    Yields:
        float[n, H, R] inner attention and float[n, Q] shift of each layer.
    """
    layers: list[tuple[Tensor, Tensor]] = []

    def record(attention: ExcitorAttention, _: Any, given: dict[str, Any]) -> None:
        words, positions, visual = given["hidden_states"], given["position_embeddings"], given["visual_prompts"]
        after = attention.weights(words, positions, visual_prompts=visual)
        with switched_off("excitor"):
            before = attention.weights(words, positions)
        shift = (after - before)[0, :, queries].float().abs().sum(dim=-1) / 2
        block = model.language.excitors()[attention.layer_idx]
        inner = block.inner_attention(words, attention.own_part(visual))[0, :, queries].float()
        layers.append((inner.transpose(0, 1), shift.T))

    hooks = [
        model.language.model.layers[index].self_attn.register_forward_pre_hook(record, with_kwargs=True)
        for index in model.language.excitors()
    ]
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


def _by_word(values: Tensor, owners: NDArray[np.int64]) -> NDArray[np.float32]:
    """float[n, ...] by token -> float[W, ...], the mean over each word's tokens."""
    array = values.cpu().numpy()
    return np.stack([array[owners == word].mean(axis=0) for word in range(owners.max() + 1)])


def _row_names(model: ExcitorModel) -> tuple[str, ...]:
    names: list[str] = []
    for config, encoder in zip(model.config.vision, model.tower.encoders, strict=True):
        for block in encoder.layout():
            names += [f"{config.model} {'patches' if block.grid else 'whole picture'}"] * block.tokens
    return tuple(names)


def write_explanation(explanation: Explanation, folder: Path) -> None:
    """Write explanation.png (a map for each word), .json (shifts and shares) and .npz (every array)."""
    panels = [
        f"{word}  {shift:.0%} moved, {patches:.0%} patches"
        for word, shift, patches in zip(
            explanation.words, explanation.shifts.mean(axis=(1, 2)), explanation.maps.sum(axis=(1, 2)), strict=True
        )
    ]
    picture, packed = io.BytesIO(), io.BytesIO()
    draw(explanation.photo, explanation.maps, explanation.seen, panels).save(picture, "PNG")
    names = [item.name for item in dataclasses.fields(explanation) if item.name != "photo"]
    arrays: dict[str, Any] = {name: np.array(getattr(explanation, name)) for name in names}
    np.savez_compressed(packed, **arrays)
    write_bytes(folder / "explanation.png", picture.getvalue())
    write_bytes(folder / "explanation.npz", packed.getvalue())
    write_json(folder / "explanation.json", summary(explanation))


def summary(explanation: Explanation) -> dict[str, Any]:
    """The answer, and for each word how far attention was moved and what the extra keys were mixed from."""
    shares = explanation.shares()
    return {
        "answer": " ".join(explanation.words),
        "layers": list(explanation.layers),
        "gates": explanation.gates.tolist(),
        "words": [
            {
                "word": word,
                "shift": float(explanation.shifts[index].mean()),
                "shift_by_layer": explanation.shifts[index].mean(axis=1).tolist(),
                "shares": {name: values[index] for name, values in shares.items()},
            }
            for index, word in enumerate(explanation.words)
        ],
    }
