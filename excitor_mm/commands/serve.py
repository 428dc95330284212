"""serve: the web page and the HTTP API."""

from __future__ import annotations

import os
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from excitor_mm.commands.models import shipped
from excitor_mm.console import log
from excitor_mm.errors import ConfigError, DependencyError
from excitor_mm.options import Command
from excitor_mm.ranges import PositiveInt

KEYS = "EXCITOR_MM_API_KEYS"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--adapter", type=str, nargs="+", default=None, help="folders or Hub ids, the first is the default"
    )
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on; this machine alone")
    parser.add_argument("--port", type=PositiveInt, default=7860, help="port to listen on")
    parser.add_argument(
        "--api-key", type=str, nargs="+", default=[], help=f"who may call; ${KEYS} (commas between) keeps it off ps"
    )
    parser.add_argument("--allow-urls", action="store_true", help="fetch images from addresses that clients send")
    parser.add_argument("--max-megabytes", type=PositiveInt, default=20, help="largest request")
    parser.add_argument("--batch-size", type=PositiveInt, default=8, help="requests at a time")
    parser.add_argument(
        "--waiting", type=PositiveInt, default=256, help="requests that may wait; more are told to come back"
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU where there is one"
    )
    parser.add_argument("--no-page", action="store_true", help="the HTTP API alone")


def _serve(options: Namespace) -> int:
    keys = [*options.api_key, *filter(None, os.environ.get(KEYS, "").split(","))]
    exposed = options.host not in LOOPBACK
    if exposed and not keys:
        raise ConfigError(
            f"--host {options.host} lets other machines in, and no API key is given: set ${KEYS} or --api-key."
        )
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import uvicorn

        from excitor_mm.serve.start import start_app
    except ImportError as error:
        raise DependencyError(f"{error.name} is not installed: pip install 'excitor-mm[serve]'.") from error
    adapters = options.adapter or [str(shipped("adapters/coco-small", "--adapter FOLDER"))]
    app = start_app(
        adapters,
        keys=keys,
        exposed=exposed,
        allow_urls=options.allow_urls,
        max_bytes=options.max_megabytes * 2**20,
        batch_size=options.batch_size,
        waiting=options.waiting,
        device=options.device,
        page=not options.no_page,
        examples=sorted((Path(__file__).resolve().parents[2] / "data" / "photos").glob("*.jpg")),
    )
    log(f"excitor-mm serves {', '.join(adapters)} at http://{options.host}:{options.port} (Ctrl-C ends it)")
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")
    return 0


COMMANDS = (Command("serve", "A web page and an HTTP API for adapters.", _options, _serve),)
