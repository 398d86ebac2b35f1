"""A stand-in for the Hugging Face Hub on loopback: repositories of models in memory, read and written by huggingface_hub's own client."""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_of_the_stand_in"
"""What uploads must be asked for with."""
Files = dict[str, bytes]


class HubStandIn:
    """Repositories, each a list of commits."""

    def __init__(self) -> None:
        self.commits: dict[str, list[tuple[str, Files, str]]] = {}
        """Repository -> (commit, its files, its message), the oldest first."""
        self.gated: set[str] = set()
        self.asked: list[str] = []
        """Method and path of every request."""
        stand_in = self

        class Handler(_Handler):
            hub = stand_in

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def commit(self, repo: str, changed: Mapping[str, bytes | None], message: str = "a commit") -> str:
        """Add a commit, with a repository where there is none.

        Args:
            changed: file -> its content, or None where it is deleted.
        """
        before = self.files(repo) if self.commits.get(repo) else {}
        files = {name: content for name, content in {**before, **changed}.items() if content is not None}
        listed = json.dumps([repo, len(self.commits.get(repo, [])), {name: _sha(content) for name, content in sorted(files.items())}])
        self.commits.setdefault(repo, []).append((_sha(listed.encode()), files, message))
        return self.commits[repo][-1][0]

    def add(self, repo: str, folder: Path, inside: str = "") -> str:
        """Commit all files of a local folder, below `inside`."""
        prefix = f"{inside}/" if inside else ""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return self.commit(repo, {f"{prefix}{path.relative_to(folder).as_posix()}": path.read_bytes() for path in paths})

    def files(self, repo: str, revision: str = "main") -> Files:
        """Files of a repository.

        Raises:
            KeyError: there is no such revision.
        """
        commits = self.commits[repo]
        return commits[-1][1] if revision == "main" else {commit: files for commit, files, _ in commits}[revision]

    def environment(self, cache: Path) -> dict[str, str]:
        """What makes another process use this hub."""
        home = {"HF_HOME": str(cache), "HF_HUB_CACHE": str(cache / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {**os.environ, **home, "HF_ENDPOINT": self.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}


def _sha(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._read()

    def do_HEAD(self) -> None:
        self._read()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'user'}/{asked['name']}"
            is_new = repo not in self.hub.commits
            if is_new:
                self.hub.commit(repo, {".gitattributes": b""}, "initial commit")
            return self._answer({"url": f"{self.hub.endpoint}/{repo}", "name": repo, "id": repo}, 200 if is_new else 409)
        user, name, verb = path.removeprefix("/api/models/").split("/")[:3]
        repo = f"{user}/{name}"
        if repo not in self.hub.commits:
            return self._refuse(404, "Repository not found", code="RepoNotFound")
        if verb == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self._answer({"files": files})
        lines = [json.loads(line) for line in body.splitlines()]
        changed = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
        deleted = dict.fromkeys(line["value"]["path"] for line in lines if line["key"] == "deletedFile")
        commit = self.hub.commit(repo, {**changed, **deleted}, lines[0]["value"]["summary"])
        return self._answer({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{commit}"})

    def _read(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if path == "/api/whoami-v2":
            return self._answer({"name": "user", "type": "user", "orgs": []})
        is_file = not path.startswith("/api/models/")
        user, name, *rest = path.removeprefix("/api/models/").strip("/").split("/")
        repo = f"{user}/{name}"
        if repo not in self.hub.commits:
            return self._refuse(404, "Repository not found", code="RepoNotFound")
        if repo in self.hub.gated:
            return self._refuse(403, "Access to the repository is restricted", code="GatedRepo")
        revision = rest[1] if len(rest) > 1 else "main"
        commits = {commit: files for commit, files, _ in self.hub.commits[repo]}
        commit = self.hub.commits[repo][-1][0] if revision == "main" else revision
        if commit not in commits:
            return self._refuse(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        files = commits[commit]
        if is_file:
            return self._file(files.get("/".join(rest[2:])), commit)
        if rest[:1] == ["tree"]:
            entries = [{"type": "file", "oid": _sha(content), "size": len(content), "path": path} for path, content in files.items()]
            return self._answer(entries)
        siblings = [{"rfilename": path} for path in files]
        return self._answer({"_id": repo, "id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings})

    def _file(self, content: bytes | None, commit: str) -> None:
        if content is None:
            return self._refuse(404, "Entry not found", code="EntryNotFound", commit=commit)
        headers = {"ETag": f'"{_sha(content)}"', "X-Repo-Commit": commit, "Content-Type": "application/octet-stream"}
        if part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2]), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._send(206, content[first : last + 1], headers)
        return self._send(200, content, headers)

    def _refuse(self, status: int, message: str, *, code: str = "", commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self._send(status, json.dumps({"error": message}).encode(), {name: value for name, value in headers.items() if value})

    def _answer(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Nothing: tests read what was asked in `HubStandIn.asked`."""


@contextmanager
def hub_stand_in(cache: Path) -> Iterator[HubStandIn]:
    """The stand-in at work, and huggingface_hub of this process using it, whatever was imported before; its copies lie in `cache`."""
    from huggingface_hub import constants

    hub = HubStandIn()
    threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        # Read from the environment when huggingface_hub is imported, so too late for a test.
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        patch.setenv("HF_TOKEN", TOKEN)
        try:
            yield hub
        finally:
            hub.server.shutdown()
            hub.server.server_close()
