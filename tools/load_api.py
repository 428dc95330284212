"""The HTTP API under load: `python tools/load_api.py PHOTOS --clients 50`. Each client checks its own captions."""

from __future__ import annotations

import argparse
import base64
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

DECODING = {"beams": 1, "max_new_tokens": 12}


def body(photo: Path) -> dict[str, object]:
    """A request for a short caption."""
    return {"image": "data:image/jpeg;base64," + base64.b64encode(photo.read_bytes()).decode(), "decoding": DECODING}


def client(address: str, photos: Sequence[Path], truth: dict[Path, str]) -> int:
    """One client, one request after the other; the number of answers that are not its picture's caption."""
    with httpx.Client(base_url=address, timeout=600) as http:
        answers = [http.post("/v1/caption", json=body(photo)) for photo in photos]
    return sum(
        answer.status_code != 200 or answer.json()["caption"] != truth[photo]
        for photo, answer in zip(photos, answers, strict=True)
    )


def memory(process: int, key: str) -> int:
    """VmRSS or VmHWM (the peak) of a process in MiB; Linux only."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) // 1024


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Load the HTTP API on loopback.")
    parser.add_argument("photos", type=Path, help="folder of JPEG files")
    parser.add_argument("--clients", type=int, default=50, help="at once")
    parser.add_argument("--requests", type=int, default=2, help="of each client")
    parser.add_argument("--different", type=int, default=24, help="pictures")
    parser.add_argument("--port", type=int, default=7872, help="of the server that is started")
    options = parser.parse_args()
    photos = sorted(options.photos.glob("*.jpg"))[: options.different]
    address = f"http://127.0.0.1:{options.port}"
    command = [sys.executable, "-m", "excitor_mm", "serve", "--no-page", "--port", str(options.port)]
    with subprocess.Popen(command) as server:
        try:
            while True:
                try:
                    httpx.get(f"{address}/health")
                    break
                except httpx.ConnectError:
                    time.sleep(0.5)
            with httpx.Client(base_url=address, timeout=600) as http:
                http.post("/v1/caption", json=body(photos[0])).raise_for_status()  # warm
                started = time.monotonic()
                truth = {p: http.post("/v1/caption", json=body(p)).json()["caption"] for p in photos}
            print(f"one client: {len(photos) / (time.monotonic() - started):.2f} captions/s", flush=True)
            for _ in range(2):
                shares = [
                    [photos[(7 * number + 13 * turn) % len(photos)] for turn in range(options.requests)]
                    for number in range(options.clients)
                ]
                started = time.monotonic()
                with ThreadPoolExecutor(options.clients) as pool:
                    wrong = sum(pool.map(lambda share: client(address, share, truth), shares))
                rate = options.clients * options.requests / (time.monotonic() - started)
                print(
                    f"{options.clients} clients: {rate:.2f} captions/s, {wrong} wrong or lost, "
                    f"{memory(server.pid, 'VmRSS')} MiB, peak {memory(server.pid, 'VmHWM')} MiB",
                    flush=True,
                )
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
