"""A stand-in for the Hugging Face Hub on loopback.

It answers the few requests that huggingface_hub makes to read a repository and
to push small files.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any


class FakeHub:
  """Repositories, and what was asked of them.

  Attributes:
    endpoint: address of the server.
    repos: files of each repository, by name.
    refused: status and X-Error-Code by repository, for every request.
    requests: method and path of each request.
    commits: header of each commit that was pushed.
  """

  def __init__(self) -> None:
    self.endpoint = ""
    self.repos: dict[str, dict[str, bytes]] = {}
    self.refused: dict[str, tuple[int, str]] = {}
    self.requests: list[str] = []
    self.commits: list[dict[str, Any]] = []
    self.branches: list[str] = []

  def sha(self, repo: str) -> str:
    """Returns the commit of a repository's content."""
    content = sorted(self.repos[repo].items())
    return hashlib.sha1(repr(content).encode()).hexdigest()


@contextlib.contextmanager
def serving() -> Iterator[FakeHub]:
  """Runs a server while the block lasts."""
  hub = FakeHub()

  class Handler(_Handler):
    found = hub

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  hub.endpoint = f"http://127.0.0.1:{server.server_port}"
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield hub
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
  found: FakeHub
  protocol_version = "HTTP/1.1"

  def log_message(self, *args: Any) -> None:
    """Prints nothing."""

  def _send(
    self, content: Any, status: int = 200, **headers: str | int
  ) -> None:
    data = content if isinstance(content, bytes) else json.dumps(content)
    data = data if isinstance(data, bytes) else data.encode()
    self.send_response(status)
    headers = {"Content-Length": len(data)} | headers
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), str(value))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)

  def _fail(self, status: int, code: str = "") -> None:
    self._send({"error": code}, status, **({"X_Error_Code": code}))

  def _repo(self, parts: list[str]) -> str | None:
    """Returns the repository; answers with an error if it is refused."""
    repo = "/".join(parts[:2])
    if repo in self.found.refused:
      self._fail(*self.found.refused[repo])
    elif repo not in self.found.repos:
      self._fail(404, "RepoNotFound")
    else:
      return repo
    return None

  def do_GET(self) -> None:
    """Answers what readers ask."""
    path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
    self.found.requests.append(f"{self.command} {path}")
    parts = path.strip("/").split("/")
    if parts[:2] == ["api", "models"]:
      repo = self._repo(parts[2:4])
      if repo is not None:
        self._describe(repo, parts[4:])
      return
    repo = self._repo(parts)
    if repo is None:
      return
    sha, name = self.found.sha(repo), "/".join(parts[4:])
    data = self.found.repos[repo].get(name)
    if parts[3] not in ("main", sha):
      self._fail(404, "RevisionNotFound")
    elif data is None:
      self._fail(404, "EntryNotFound")
    else:
      etag = hashlib.sha1(data).hexdigest()
      self._send(data, ETag=f'"{etag}"', X_Repo_Commit=sha)

  do_HEAD = do_GET

  def _describe(self, repo: str, rest: list[str]) -> None:
    files, sha = self.found.repos[repo], self.found.sha(repo)
    if rest[1:] and rest[1] not in ("main", sha):
      self._fail(404, "RevisionNotFound")
    elif rest[:1] == ["tree"]:
      self._send(
        [
          {
            "type": "file",
            "path": name,
            "size": len(data),
            "oid": hashlib.sha1(data).hexdigest(),
          }
          for name, data in files.items()
        ]
      )
    else:
      siblings = [{"rfilename": name} for name in files]
      self._send({"id": repo, "sha": sha, "siblings": siblings})

  def do_POST(self) -> None:
    """Answers what writers ask."""
    path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
    self.found.requests.append(f"{self.command} {path}")
    body = self.rfile.read(int(self.headers["Content-Length"] or 0))
    parts = path.strip("/").split("/")
    if parts[1:3] == ["repos", "create"]:
      content = json.loads(body)
      repo = f"{content['organization']}/{content['name']}"
      if repo in self.found.refused:
        self._fail(*self.found.refused[repo])
        return
      self.found.repos.setdefault(repo, {})
      self._send({"url": f"{self.found.endpoint}/{repo}", "id": repo})
      return
    if parts[1] == "validate-yaml":
      self._send({"errors": [], "warnings": []})
      return
    repo = self._repo(parts[2:4])
    if repo is None:
      return
    if parts[4] == "branch":
      self.found.branches.append("/".join(parts[5:]))
      self._send({})
    elif parts[4] == "preupload":
      wanted = json.loads(body)["files"]
      self._send(
        {
          "files": [
            {"path": x["path"], "uploadMode": "regular", "shouldIgnore": False}
            for x in wanted
          ]
        }
      )
    else:
      self._commit(repo, body)

  def _commit(self, repo: str, body: bytes) -> None:
    for line in body.splitlines():
      content = json.loads(line)
      if content["key"] == "header":
        self.found.commits.append(content["value"])
      elif content["key"] == "file":
        value = content["value"]
        data = base64.b64decode(value["content"])
        self.found.repos[repo][value["path"]] = data
    sha = self.found.sha(repo)
    url = f"{self.found.endpoint}/{repo}/commit/{sha}"
    self._send({"success": True, "commitOid": sha, "commitUrl": url})
