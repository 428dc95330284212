"""Published scores: what the authors of each row claim, never ours. Sources: the tables of the LLaMA-Excitor paper
(arXiv 2404.00913) and of the ScienceQA literature that it quotes."""

from __future__ import annotations

from dataclasses import dataclass

KARPATHY_TEST = "acfe3e0c89c56df5"
"""`ids_hash` of the 5,000 images of Karpathy's test split."""
SCIENCEQA_TEST = "f5f0bc4147f76ab0"
"""`ids_hash` of the 4,241 problems of ScienceQA's test split."""


@dataclass(frozen=True)
class Claim:
    """A row of somebody's table."""

    name: str
    scores: dict[str, float]
    """Metric -> x100, named as in our reports."""
    regime: str
    source: str


def _captions(
    name: str, bleu: float | None, cider: float, pairs: str, source: str = "Excitor paper's table"
) -> Claim:
    scores = {"CIDEr": cider} | ({"BLEU-4": bleu} if bleu is not None else {})
    return Claim(name, scores, f"pretrained on {pairs} pairs", source)


UNREPRODUCED = "Excitor paper; nothing public reproduces it"
CLAIMS: dict[tuple[str, str], tuple[Claim, ...]] = {
    ("captions", KARPATHY_TEST): (
        _captions("ClipCap", 33.5, 113.1, "0"),
        _captions("VL-PET", None, 121.7, "0"),
        _captions("LLaMA-AdapterV2", 36.2, 122.2, "0"),
        _captions("Qwen-VL-chat", None, 131.9, "1.4B"),
        _captions("BLIP", 40.4, 136.7, "14M"),
        _captions("mPLUG-Owl2", None, 137.3, "348M"),
        _captions("Flamingo", None, 138.1, "1.8B"),
        _captions("BLIP-2", 43.7, 145.3, "129M"),
        _captions("LLaMA-Excitor", 49.7, 157.5, "0", UNREPRODUCED),
    ),
    ("scienceqa", SCIENCEQA_TEST): (
        Claim("human", {"accuracy": 88.40}, "-", "ScienceQA paper"),
        Claim("GPT-4 CoT", {"accuracy": 83.99}, "prompted", "Excitor paper's table"),
        Claim("LLaMA-Adapter", {"accuracy": 85.19}, "fine-tuned", "Excitor paper's table"),
        Claim("LLaVA", {"accuracy": 90.92}, "pretrained, fine-tuned", "Excitor paper's table"),
        Claim("LLaMA-Excitor", {"accuracy": 85.41}, "fine-tuned", UNREPRODUCED),
        Claim("LLaMA-Excitor, 336 px, LoRA", {"accuracy": 88.39}, "fine-tuned", UNREPRODUCED),
    ),
}
"""(task, `ids_hash` of the scored set) -> claims about that set."""
