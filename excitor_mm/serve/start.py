"""Adapters to an application: loads the models, and puts the page on top of the API."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI

from excitor_mm.errors import ConfigError
from excitor_mm.model import ExcitorModel
from excitor_mm.serve.api import make_app
from excitor_mm.serve.engine import Engine
from excitor_mm.serve.images import Limits


def start_app(
    adapters: Sequence[str],
    *,
    keys: Sequence[str] = (),
    exposed: bool = False,
    allow_urls: bool = False,
    max_bytes: int = 20 * 2**20,
    batch_size: int = 8,
    waiting: int = 256,
    device: str = "auto",
    page: bool = True,
    examples: Sequence[Path] = (),
) -> FastAPI:
    """Load the adapters and build the application; with keys the page asks for one as its password.

    Raises:
        AdapterError, ConfigError: an adapter that cannot be loaded, or two of the same name.
    """
    names = [Path(adapter).name for adapter in adapters]
    if len(set(names)) < len(names):
        raise ConfigError(f"Two adapters have the same name {names}: rename a folder, clients choose by name.")
    engines = {
        name: Engine(ExcitorModel.from_pretrained(adapter, device=device), name, batch_size=batch_size, limit=waiting)
        for name, adapter in zip(names, adapters, strict=True)
    }
    app = make_app(engines, keys=keys, limits=Limits(max_bytes, allow_urls), exposed=exposed)
    if not page:
        return app
    import gradio as gr

    from excitor_mm.serve.page import ANSWERING, THEME, make_page

    def knows_key(user: str, password: str) -> bool:
        return any(secrets.compare_digest(password.encode(), key.encode()) for key in keys)

    blocks = make_page(engines, examples).queue(default_concurrency_limit=ANSWERING, max_size=waiting)
    blocks.has_launched = True  # a mounted page never is, and Gradio lets clients of such a one name any file here
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=THEME,
        auth=knows_key if keys else None,
        auth_message="Any name, and an API key as the password.",
        max_file_size=max_bytes,
        allowed_paths=[str(path) for path in examples],
        footer_links=[],
    )
