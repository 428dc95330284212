"""Several answers behind one prompt in one row: the prompt is read once, and the answers do not see each other.

    token     P1 P2 P3   P4 A1 A2   P4 B1 B2 B3
    branch     0  0  0    1  1  1    2  2  2  2
    position   0  1  2    3  4  5    3  4  5  6

Each branch begins with the last token of the prompt, so that the first word of its answer is predicted from the place
before it, as in a row of its own. What a branch sees, and where it stands, is what it would be there, and so are its
losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from excitor_mm.config import RunConfig
from excitor_mm.errors import ConfigError
from excitor_mm.prompts import Rendered

PADDING = -1
"""Branch of the tokens behind the last answer, which nothing else sees."""


def share_prompt(texts: Sequence[Rendered]) -> Rendered:
    """Texts that differ in their last answer as one.

    Answers of earlier turns are learnt once. Where prompts differ (a context shortened further for a longer answer)
    nothing is shared: each text is a branch from its first token on.
    """
    prompts = [text.ids[: text.answers[-1][0] - 1] for text in texts]
    shared = len(prompts[0]) if all(prompt == prompts[0] for prompt in prompts) else 0
    ids, branches = prompts[0][:shared], [0] * shared
    answers = [span for span in texts[0].answers if span[1] <= shared]
    for number, text in enumerate(texts, start=1):
        before = len(ids) - shared
        answers += [(start + before, end + before) for start, end in text.answers if end > shared]
        ids = ids + text.ids[shared:]
        branches += [number] * (len(text.ids) - shared)
    return Rendered(ids, answers, max(text.cut for text in texts), branches)


def stack_branches(texts: Sequence[Rendered], length: int) -> dict[str, Tensor]:
    """The argument `branches` of the model, int64[B, length]; none where no text has any."""
    if not any(text.branches for text in texts):
        return {}
    stacked = torch.full((len(texts), length), PADDING)
    for row, text in zip(stacked, texts, strict=True):
        row[: len(text.ids)] = torch.tensor(text.branches or 0)
    return {"branches": stacked}


def sight(attention_mask: Tensor, branches: Tensor | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """What each token sees, and where it stands, as the language model takes it.

    Args:
        attention_mask: int64[B, T], 1 where a token is; returned as it is where there are no branches.
        branches: int64[B, T], 0 for a prompt, which all behind it see, or the number of the answer.
        dtype: of the language model.

    Returns:
        `attention_mask`: dtype[B, 1, T, T], 0 where row sees column and the least number elsewhere; `position_ids`:
        int64[B, T].
    """
    if branches is None:
        return {"attention_mask": attention_mask}
    branches = branches.to(attention_mask.device)
    before = torch.ones(branches.shape[-1:] * 2, dtype=torch.bool, device=branches.device).tril()
    column, row = branches[:, None, :], branches[:, :, None]
    seen = before & ((column == 0) | (column == row))
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
    return {"attention_mask": mask[:, None], "position_ids": seen.sum(-1) - 1}


def check_branches(config: RunConfig) -> None:
    """Refuse a kernel that takes no mask of its own.

    Raises:
        ConfigError: several answers behind one prompt with flash attention.
    """
    shares = config.train.stage == "scst" or config.train.answers > 1
    if shares and config.language.attention == "flash_attention_2":
        raise ConfigError(
            "language.attention is flash_attention_2, which cannot keep answers behind one prompt apart: take sdpa, "
            "or train.answers 1 without train.stage scst."
        )
