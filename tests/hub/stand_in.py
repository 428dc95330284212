"""A stand-in for the Hub on this machine: what huggingface_hub needs to make a repository, upload to it and fetch it.

    with hub(folder) as address: ...   # set HF_ENDPOINT=address for a new process

Repositories lie in `folder` as plain folders.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40


class Handler(BaseHTTPRequestHandler):
    root: Path

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length) if length else self._chunks()
        if self.path.startswith("/api/repos/create"):
            facts = json.loads(body)
            name = "/".join(filter(None, (facts.get("organization"), facts["name"])))
            (self.root / name).mkdir(parents=True, exist_ok=True)
            self._json({"url": f"{self.server.address}/{name}", "id": name, "name": name})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self._json({"files": answer})
        elif "/commit/" in self.path:
            name = self.path.split("/api/models/")[1].split("/commit/")[0]
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    target = self.root / name / row["value"]["path"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(base64.b64decode(row["value"]["content"]))
            self._json(
                {"success": True, "commitUrl": f"{self.server.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
            )
        else:
            self._json({}, 200)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/"):
            name = path.removeprefix("/api/models/").split("/revision/")[0].split("/tree/")[0]
            folder = self.root / name
            if not folder.is_dir():
                self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
                return
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            if "/tree/" in path:
                rows = [{"type": "file", "path": str(p.relative_to(folder)), "size": p.stat().st_size} for p in files]
                self._json([{**row, "oid": COMMIT} for row in rows])
            else:
                siblings = [{"rfilename": str(p.relative_to(folder))} for p in files]
                self._json({"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
            return
        name, _, rest = path.lstrip("/").partition("/resolve/")
        file = self.root / name / rest.partition("/")[2]
        if not file.is_file():
            code = "EntryNotFound" if (self.root / name).is_dir() else "RepoNotFound"
            self._json({"error": code}, 404, {"X-Error-Code": code, "X-Repo-Commit": COMMIT}, body)
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _json(
        self, value: object, status: int = 200, headers: dict[str, str] | None = None, body: bool = True
    ) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """Serve `folder` on loopback; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"root": folder}))
    server.address = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.address  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
