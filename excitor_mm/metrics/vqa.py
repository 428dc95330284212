"""VQA accuracy: how far an answer agrees with ten people (Antol et al. 2015, as the VQAv2 server computes it).

For each person: min(1, matches among the *others* / 3); the accuracy is the mean over the people, so 0, 1, 2, 3
and more than 3 matches give 0, .3, .6, .9 and 1.

`official`: answers are normalised only where the people disagree, which is what the official file does: a
unanimous "yes" against "Yes" scores 0. `normalized`: both sides always, which is what the code of OpenFlamingo
and lmms-eval does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from excitor_mm.errors import DataError
from excitor_mm.metrics.coverage import check_coverage

Id = int | str
RULES = ("official", "normalized")

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = {"a", "an", "the"}
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()
NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBER_WORDS)}}
PERIODS = 32  # as many are dropped: the official code hands re.UNICODE, which is 32, to sub() as `count`
_MISSPELT = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll "
    "how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't "
    "should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's "
    "there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's "
    "what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've "
    "wouldn't y'all you'd you'll you're you've"
)
_TWICE = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've "
    "something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've"
)


@dataclass(frozen=True)
class Answered:
    """What people answered to one question."""

    answers: tuple[str, ...]
    """One a person, ten in VQAv2."""
    answer_type: str = ""
    """yes/no, number or other."""
    question_type: str = ""
    """The first words of the question."""


@dataclass(frozen=True)
class VqaScores:
    """All x100."""

    overall: float
    per_answer_type: dict[str, float]
    per_question_type: dict[str, float]
    per_question: dict[Id, float]


def score_answers(
    predictions: Mapping[Id, str], references: Mapping[Id, Answered], rule: str = "official"
) -> VqaScores:
    """Score one answer a question.

    Args:
        predictions: question id -> answer; exactly the ids of `references`.
        references: question id -> people's answers.
        rule: of `RULES`.

    Raises:
        DataError: the two do not cover the same questions, or a question nobody answered.
    """
    if rule not in RULES:
        raise DataError(f"The rule is {rule!r}: choose {' or '.join(RULES)}.")
    check_coverage(predictions, references, "questions")
    single = {i: 100 * accuracy(predictions[i], truth.answers, rule) for i, truth in references.items()}
    groups: dict[str, dict[str, list[float]]] = {"answer_type": {}, "question_type": {}}
    for i, truth in references.items():
        for kind, members in groups.items():
            members.setdefault(getattr(truth, kind), []).append(single[i])
    means = {
        kind: {name: sum(values) / len(values) for name, values in sorted(members.items()) if name}
        for kind, members in groups.items()
    }
    return VqaScores(sum(single.values()) / len(single), means["answer_type"], means["question_type"], single)


def accuracy(answer: str, people: Sequence[str], rule: str = "official") -> float:
    """0 to 1 for one answer.

    Raises:
        DataError: nobody answered.
    """
    if not people:
        raise DataError("A question has no answers by people: leave it out of the references.")
    answer, people = _strip(answer), [_strip(text) for text in people]
    if rule == "normalized" or len(set(people)) > 1:
        answer, people = normalize(answer), [normalize(text) for text in people]
    matches = sum(text == answer for text in people)
    # A person who gave this answer finds one match fewer among the others.
    agreeing = matches * min(1.0, (matches - 1) / 3) + (len(people) - matches) * min(1.0, matches / 3)
    return agreeing / len(people)


def normalize(answer: str) -> str:
    """The official normalisation: punctuation, number words, articles, apostrophes, lower case."""
    answer = _strip(answer)
    text = answer
    has_digit_comma = re.search(r"\d,\d", answer) is not None
    for sign in PUNCTUATION:
        touches_space = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if touches_space or has_digit_comma else " ")
    text = re.sub(r"\.(?!\d)", "", text, count=PERIODS)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _strip(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _contractions() -> dict[str, str]:
    """Without apostrophe -> with; of two apostrophes either may be missing. The odd ones are the official table's."""
    table = {word.replace("'", ""): word for word in _MISSPELT.split()}
    for word in _TWICE.split():
        head, middle, tail = word.rsplit("'", 2)
        table |= {f"{head}{middle}'{tail}": word, f"{head}'{middle}{tail}": word}
    odd = {"let's": "let's", "she's": "she's", "somebody'd": "somebodyd", "yall'd've": "y'all'd've"}
    return table | odd | dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")


CONTRACTIONS = _contractions()
