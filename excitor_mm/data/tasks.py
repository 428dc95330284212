"""What a sample teaches and asks: one small function a task, from a `Sample` to conversations.

caption       one conversation: describe the image; any of the captions is right
vqa           one for each question; the people's answers are all right, as often as they were given
scienceqa     one: the problem in one of the formats of `data/scienceqa.py`, with its choices
instructions  one: the dialogue of the sample, whose earlier answers are learnt, too
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from excitor_mm.data.samples import BadSample, Sample
from excitor_mm.data.scienceqa import answer_sentence, problem_turn
from excitor_mm.palette import content_words
from excitor_mm.templates import CAPTION_INSTRUCTION, Turn


@dataclass(frozen=True)
class Conversation:
    """Turns up to a question, and what may be answered to it."""

    id: int | str
    """Of the image, question, problem or dialogue; predictions carry it."""
    turns: tuple[Turn, ...]
    """The last one is open."""
    answers: tuple[str, ...] = ()
    """Right answers to the last turn."""
    choices: tuple[str, ...] = ()
    """Where one of several must be taken: each as it would be answered."""
    right: int | None = None
    """Place of the right choice of a ScienceQA problem."""
    system: str = ""
    """Replaces the prompt format's own."""
    captions: tuple[str, ...] = ()
    """Of the image; training asks with one of them, where the template holds `{caption}`."""


def conversations(sample: Sample, task: str, scienceqa: str) -> list[Conversation]:
    """All that a sample holds of a task.

    Args:
        sample: from a shard.
        task: a name in `TASKS`.
        scienceqa: the format of problems, such as QCM-A.

    Raises:
        BadSample: nothing of this task in it, or no image where one is needed.
    """
    found = TASKS[task](sample, scienceqa)
    if not found:
        raise BadSample(f"no {task}", f"{sample.shard}: sample {sample.key} holds nothing for the task {task}.")
    if sample.image is None and task in IMAGE_TASKS:
        raise BadSample("no image", f"{sample.shard}: sample {sample.key} has no image.")
    return found


def _caption(sample: Sample, scienceqa: str) -> list[Conversation]:
    return [Conversation(sample.image_id, (Turn(CAPTION_INSTRUCTION),), sample.captions)]


def _vqa(sample: Sample, scienceqa: str) -> list[Conversation]:
    return [
        Conversation(asked.question_id, (Turn(asked.question),), asked.answers, captions=sample.captions)
        for asked in sample.questions
    ]


def _scienceqa(sample: Sample, scienceqa: str) -> list[Conversation]:
    if sample.problem is None:
        return []
    turn = problem_turn(sample.problem, scienceqa, " ".join(sample.captions))
    choices = tuple(map(answer_sentence, range(len(sample.problem.choices))))
    begins_with_answer = scienceqa.partition("-")[2].startswith("A")
    return [
        Conversation(
            sample.problem.problem_id,
            (turn._replace(answer=None),),
            (turn.answer or "",),
            choices if begins_with_answer else (),
            sample.problem.answer,
        )
    ]


def _instructions(sample: Sample, scienceqa: str) -> list[Conversation]:
    if sample.dialogue is None:
        return []
    *earlier, last = sample.dialogue.turns
    turns = (*earlier, last._replace(answer=None))
    return [Conversation(sample.image_id, turns, (last.answer or "",), system=sample.dialogue.system)]


TASKS: dict[str, Callable[[Sample, str], list[Conversation]]] = {
    "caption": _caption,
    "vqa": _vqa,
    "scienceqa": _scienceqa,
    "instructions": _instructions,
}
IMAGE_TASKS = ("caption", "vqa")
"""Tasks about nothing but an image."""
ASKING_TASKS = ("instructions", "vqa")
"""Tasks that take any question, the one that takes conversations first."""
SHORT_TASKS = ("caption", "vqa")
"""Tasks whose answers are one line."""


def palette_words(sample: Sample, task: str) -> list[str]:
    """Words of what is written about a sample that a palette may be made of: whole answers to questions, else content
    words.
    """
    if task == "caption":
        return [word for caption in sample.captions for word in content_words(caption)]
    if task == "vqa":
        return [answer.lower() for question in sample.questions for answer in question.answers]
    if task == "instructions" and sample.dialogue is not None:
        return [word for turn in sample.dialogue.turns for word in content_words(turn.answer or "")]
    return []
