"""CLIPScore and RefCLIPScore (Hessel et al. 2021): does a caption fit its image, judged by CLIP.

CLIPScore = 2.5 max(cos(image, caption), 0); RefCLIPScore is its harmonic mean with the best
max(cos(reference, caption), 0). Texts begin with "A photo depicts". Scores of different CLIP models differ: the
paper's are ViT-B/32 with OpenAI's weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from excitor_mm.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Id = int | str
WEIGHT = 2.5
PREFIX = "A photo depicts "


def clip_scores(
    model: str,
    images: Iterable[tuple[Id, Image]],
    captions: Mapping[Id, str],
    references: Mapping[Id, Sequence[str]],
) -> dict[str, dict[Id, float]]:
    """CLIPScore and RefCLIPScore of each image, x100.

    Args:
        model: open_clip's model name and, after a colon, a pretrained tag or a weights file.
        images: (image id, RGB image); ids without a caption are passed over.
        captions, references: by image id.

    Raises:
        ConfigError: open_clip cannot build the model.
    """
    import torch

    net, prepare, tokenize = _load(model)

    def texts(batch: Sequence[str]) -> Tensor:
        return net.encode_text(tokenize([PREFIX + text for text in batch]), normalize=True)

    found: dict[str, dict[Id, float]] = {"CLIPScore": {}, "RefCLIPScore": {}}
    with torch.inference_mode():
        for image_id, image in images:
            if image_id not in captions:
                continue
            words = texts([captions[image_id], *references[image_id]])
            picture = net.encode_image(prepare(image)[None], normalize=True)[0]
            score = WEIGHT * max(float(picture @ words[0]), 0.0)
            nearest = max(float((words[1:] @ words[0]).max()), 0.0)
            found["CLIPScore"][image_id] = 100 * score
            found["RefCLIPScore"][image_id] = 200 * score * nearest / max(score + nearest, 1e-12)
    return found


def _load(model: str) -> tuple[Any, Any, Any]:
    import open_clip

    name, _, weights = model.partition(":")
    if not weights:
        raise ConfigError(f"The CLIP model is {model!r}, expected MODEL:TAG or MODEL:FILE, such as ViT-B-32:openai.")
    try:
        net, _, prepare = open_clip.create_model_and_transforms(name, pretrained=weights)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip raises whatever its hub client does
        raise ConfigError(f"open_clip cannot load {model!r}: {' '.join(str(error).split())[:200]}") from error
    return net.eval(), prepare, tokenizer
