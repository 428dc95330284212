"""evaluation: scoring captions, against the same tokenizer and scorers of pycocoevalcap called directly."""

from __future__ import annotations

from argparse import Namespace

from excitor_mm.metrics.captions import score_captions
from excitor_mm.references import read_references
from suites.measure import Comparison


def evaluation(options: Namespace) -> list[Comparison]:
    """People's own first captions stand in for a model's."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    whole = {i: texts for i, texts in read_references(options.references).items() if len(texts) > 1}
    chosen = dict(list(whole.items())[: options.count])
    truth = {i: texts[1:] for i, texts in chosen.items()}
    guesses = {i: texts[0] for i, texts in chosen.items()}

    def ours() -> None:
        score_captions(guesses, truth, ["BLEU", "ROUGE-L", "CIDEr"])

    def theirs() -> None:
        tokenizer = PTBTokenizer()
        gold = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in truth.items()})
        found = tokenizer.tokenize({i: [{"caption": text}] for i, text in guesses.items()})
        for scorer in (Bleu(4), Rouge(), Cider()):
            scorer.compute_score(gold, found)

    sides = {"ours, with intervals": ours, "pycocoevalcap, called directly": theirs}
    return [Comparison("evaluation", sides, facts={"images": len(chosen)})]
