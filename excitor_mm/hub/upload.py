"""An adapter folder to the Hub, with a card that carries its scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from excitor_mm.adapter import CARD, FILES, card_of, load_config
from excitor_mm.errors import AdapterError


def push_adapter(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    report: Mapping[str, Any] | None = None,
) -> str:
    """Upload an adapter folder, and nothing else that may lie in it.

    Args:
        folder: what `excitor-mm train` or `save_pretrained` wrote.
        repo_id: user/name; made where it does not exist.
        private: of a new repository.
        token: see huggingface_hub; None: the one of `hf auth login`.
        report: report.json of an evaluation, for the card; None: the card stays as it is.

    Returns:
        The address.

    Raises:
        AdapterError: no adapter folder, or the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    config = load_config(folder)
    card = card_of(repo_id, config, report) if report or not (folder / CARD).exists() else None
    api = HfApi(token=token)
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            allow_patterns=list(FILES),
            ignore_patterns=[CARD] if card else None,
            commit_message="Upload an adapter of LLaMA-Excitor",
        )
        if card:
            api.upload_file(repo_id=repo.repo_id, path_or_fileobj=card.encode("utf-8"), path_in_repo=CARD)
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise AdapterError(f"{folder} cannot be uploaded to {repo_id}: {reason}") from error
    return str(repo)
