"""A stand-in for Google Cloud Storage on this machine.

TensorFlow's client, which etils.epath uses for `gs://`, knows only the real
host names and TLS. It accepts a proxy, and this server is one: it answers
requests to any host itself, with a certificate that it creates. TensorStore's
client, which Orbax uses, takes a plain address.

Implements only the requests of these two clients: objects with generations,
conditions on them, ranges, pages, uploads in one or more requests, and copies
on the server. https://cloud.google.com/storage/docs/json_api
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import itertools
import json
import pathlib
import re
import ssl
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import trustme

_API = "/storage/v1/b/(?P<bucket>[^/]+)/o"
_LAYOUT = "/storage/v1/b/(?P<bucket>[^/]+)/storageLayout"
_ROUTES = [
  ("GET", re.compile("/storage/v1/b/(?P<bucket>[^/]+)"), "describe_bucket"),
  ("GET", re.compile(_LAYOUT), "layout"),
  ("GET", re.compile(_API), "listing"),
  ("GET", re.compile(_API + "/(?P<name>[^/]+)"), "describe_or_read"),
  ("DELETE", re.compile(_API + "/(?P<name>[^/]+)"), "delete"),
  (
    "POST",
    re.compile(_API + "/(?P<name>[^/]+)/rewriteTo/b/[^/]+/o/(?P<to>[^/]+)"),
    "rewrite",
  ),
  ("POST", re.compile("/upload" + _API), "upload"),
  ("PUT", re.compile("/upload" + _API), "go_on_uploading"),
  ("GET", re.compile("/(?P<bucket>[^/]+)/(?P<name>.+)"), "read"),
]
PAGE = 7  # The real one lists a thousand at a time.


@dataclasses.dataclass
class Bucket:
  """The objects of a bucket.

  Attributes:
    name: name after gs://.
    environ: environment variables with which a process finds it.
    objects: bytes and generation by name.
    failing: status of every response, if not None.
    last: start of the name whose upload triggers failures.
    then: status of responses after that upload.
  """

  name: str
  environ: dict[str, str]
  objects: dict[str, tuple[bytes, int]] = dataclasses.field(
    default_factory=dict
  )
  failing: int | None = None
  last: str | None = None
  then: int | None = None

  def __post_init__(self) -> None:
    self.lock = threading.Lock()
    self.generations = itertools.count(1_700_000_000_000_000)
    self.uploads: dict[str, tuple[str, bytes]] = {}
    self.errors: list[str] = []

  def put(self, name: str, content: bytes) -> None:
    """Stores an object as a new generation."""
    self.objects[name] = content, next(self.generations)
    if self.last and name.startswith(self.last):
      self.failing, self.last = self.then, None

  def copy_to(self, directory: pathlib.Path) -> None:
    """Writes all objects to a directory."""
    for name, (content, _) in self.objects.items():
      if not name.endswith("/"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


class _Refused(Exception):
  """A refused request, with the status to answer with."""


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  timeout = 60
  disable_nagle_algorithm = True
  bucket: Bucket
  tls: ssl.SSLContext

  def do_CONNECT(self) -> None:
    self.send_response(200)
    self.end_headers()
    self.connection = self.tls.wrap_socket(self.connection, server_side=True)
    self.rfile = self.connection.makefile("rb")
    self.wfile = self.connection.makefile("wb", buffering=0)
    self.close_connection = False

  def _answer(self) -> None:
    url = urllib.parse.urlsplit(self.path)
    self._body = self._read_body()
    self._query = dict(urllib.parse.parse_qsl(url.query))
    headers: dict[str, str] = {}
    try:
      with self.bucket.lock:
        status, content, headers = self._route(url.path)
    except _Refused as refused:
      status = refused.args[0]
      # "Not modified" has no body; a client would read one as the next answer.
      text = json.dumps({"error": {"code": status}})
      content = b"" if status == 304 else text.encode()
    except Exception as error:
      self.bucket.errors.append(f"{self.command} {self.path}: {error!r}")
      raise
    self.send_response(status)
    for key, value in headers.items():
      self.send_header(key, value)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  do_GET = do_POST = do_PUT = do_DELETE = _answer

  def _read_body(self) -> bytes:
    # TensorFlow's client sends both a length and chunks; use the chunks.
    if self.headers.get("Transfer-Encoding") != "chunked":
      return self.rfile.read(int(self.headers.get("Content-Length") or 0))
    body = b""
    while size := int(self.rfile.readline(), 16):
      body += self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()
    return body

  def _route(self, path: str) -> tuple[int, bytes, dict[str, str]]:
    if self.bucket.failing:
      raise _Refused(self.bucket.failing)
    for method, pattern, name in _ROUTES:
      match = pattern.fullmatch(path)
      if match and method == self.command:
        asked = {
          k: urllib.parse.unquote(v) for k, v in match.groupdict().items()
        }
        if asked.pop("bucket") != self.bucket.name:
          raise _Refused(404)
        answer = getattr(self, f"_{name}")(**asked)
        if isinstance(answer, dict):
          return 200, json.dumps(answer).encode(), {}
        return answer
    raise AssertionError(f"the stand-in does not know {self.command} {path}")

  def _get(self, name: str) -> tuple[bytes, int]:
    if name not in self.bucket.objects:
      raise _Refused(404)
    return self.bucket.objects[name]

  def _check(self, name: str) -> None:
    """Checks conditions on the generation; 0 stands for no object."""
    _, now = self.bucket.objects.get(name, (b"", 0))
    if int(self._query.get("ifGenerationMatch", now)) != now:
      raise _Refused(412)
    if int(self._query.get("ifGenerationNotMatch", -1)) == now:
      raise _Refused(304 if self.command == "GET" else 412)

  def _resource(self, name: str) -> dict[str, Any]:
    content, generation = self._get(name)
    return {
      "name": name,
      "bucket": self.bucket.name,
      "size": str(len(content)),
      "generation": str(generation),
      "updated": "2026-01-01T00:00:00.000Z",
    }

  def _describe_bucket(self) -> dict[str, Any]:
    return {"name": self.bucket.name, "location": "HERE"}

  def _layout(self) -> dict[str, Any]:
    return {"hierarchicalNamespace": {"enabled": False}}

  def _listing(self) -> dict[str, Any]:
    prefix = self._query.get("prefix", "")
    start = self._query.get("startOffset", "")
    end = self._query.get("endOffset")
    delimiter = self._query.get("delimiter")
    entries = set()
    for name in self.bucket.objects:
      if name.startswith(prefix) and start <= name and (not end or name < end):
        rest = name.removeprefix(prefix)
        if delimiter and delimiter in rest:
          name = prefix + rest.split(delimiter)[0] + delimiter
          entries.add((name, True))
        else:
          entries.add((name, False))
    after = self._query.get("pageToken", "")
    page = sorted(each for each in entries if each[0] > after)
    size = min(PAGE, int(self._query.get("maxResults", PAGE)))
    more = {"nextPageToken": page[size - 1][0]} if len(page) > size else {}
    page = page[:size]
    return more | {
      "items": [self._resource(name) for name, folder in page if not folder],
      "prefixes": [name for name, folder in page if folder],
    }

  def _describe_or_read(self, name: str) -> Any:
    if self._query.get("alt") == "media":
      return self._read(name)
    return self._resource(name)

  def _read(self, name: str) -> tuple[int, bytes, dict[str, str]]:
    content, generation = self._get(name)
    self._check(name)
    headers = {"x-goog-generation": str(generation)}
    if asked := re.fullmatch(
      r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")
    ):
      first = int(asked[1])
      last = min(int(asked[2] or len(content)), len(content) - 1)
      if first > last:
        raise _Refused(416)
      headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
      return 206, content[first : last + 1], headers
    return 200, content, headers

  def _delete(self, name: str) -> tuple[int, bytes, dict[str, str]]:
    self._check(name)
    self._get(name)
    del self.bucket.objects[name]
    return 204, b"", {}

  def _rewrite(self, name: str, to: str) -> dict[str, Any]:
    content, _ = self._get(name)
    self.bucket.put(to, content)
    return {"done": True, "resource": self._resource(to)}

  def _upload(self) -> Any:
    name = self._query["name"]
    self._check(name)
    if self._query["uploadType"] == "media":
      self.bucket.put(name, self._body)
      return self._resource(name)
    number = str(next(self.bucket.generations))
    self.bucket.uploads[number] = name, b""
    host = self.headers["Host"]
    place = f"https://{host}{self.path}&upload_id={number}"
    return 200, b"", {"Location": place}

  def _go_on_uploading(self) -> Any:
    number = self._query["upload_id"]
    name, before = self.bucket.uploads[number]
    content = before + self._body
    total = self.headers.get("Content-Range", "all/0").split("/")[1]
    if total == "*" or len(content) < int(total):
      self.bucket.uploads[number] = name, content
      return 308, b"", {"Range": f"bytes=0-{len(content) - 1}"}
    del self.bucket.uploads[number]
    self.bucket.put(name, content)
    return self._resource(name)

  def handle(self) -> None:
    # The client may have been killed.
    with contextlib.suppress(ConnectionError, ssl.SSLError):
      super().handle()

  def finish(self) -> None:
    super().finish()
    self.connection.close()  # the TLS connection, which the server cannot close

  def log_message(self, *args: object) -> None:
    pass


@contextlib.contextmanager
def serve(directory: pathlib.Path, name: str = "bucket") -> Iterator[Bucket]:
  """Serves an empty bucket within the context.

  Args:
    directory: for the certificate.
    name: name of the bucket.
  """
  authority = trustme.CA()
  tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  authority.issue_cert("*.googleapis.com").configure_cert(tls)
  certificate = directory / "certificate.pem"
  authority.cert_pem.write_to_path(str(certificate))
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
  here = f"http://127.0.0.1:{server.server_port}"
  environ = {
    "https_proxy": here,
    "CURL_CA_BUNDLE": str(certificate),
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
    "TENSORSTORE_GCS_HTTP_URL": here,
    "STORAGE_EMULATOR_HOST": here,
  }
  bucket = Bucket(name, environ)
  server.RequestHandlerClass = type(
    "Handler", (_Handler,), {"bucket": bucket, "tls": tls}
  )
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield bucket
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
  assert not bucket.errors, bucket.errors
