"""Tests of the server with real sockets: answers, limits, hostile input."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import functools
import http.client
import io
import json
import socket
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image
from prometheus_client import parser

import mae_jax
from mae_jax.evals import load_model
from mae_jax.tools.serve import app, batching, command, endpoints, server
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tiny
from tests.helpers.commands import fork_server

LIMITS = app.Limits(100_000, 10_000, 250, 60.0)
CLASSES = 12


@contextlib.contextmanager
def serving(application):
  """Runs a server in a thread; yields its port."""
  started = threading.Event()
  opened = server.Server(application, started.set)
  with server.bound("127.0.0.1", 0) as listener:
    port = listener.getsockname()[1]
    thread = threading.Thread(target=opened.run, args=([listener],))
    thread.start()
    assert started.wait(60)
    try:
      yield port
    finally:
      opened.stop()
      thread.join()


def ask(port: int, method: str, path: str, body=None, **headers):
  """Sends a request; returns the status and the content."""
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
  with contextlib.closing(connection):
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    content = response.read()
  if response.headers["Content-Type"] == "application/json":
    return response.status, json.loads(content)
  return response.status, content


def png(pixels: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "png")
  return buffer.getvalue()


def pixels(seed: int, size: int = 16) -> np.ndarray:
  random = np.random.default_rng(seed)
  return random.integers(0, 256, (size, size, 3), np.uint8)


def exchange(port: int, data: bytes) -> bytes:
  """Sends bytes, and returns all that comes until the server closes."""
  with socket.create_connection(("127.0.0.1", port), timeout=120) as opened:
    found = b""
    with contextlib.suppress(ConnectionError):
      opened.sendall(data)
      while part := opened.recv(4096):
        found += part
    return found


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
  """A classifier's API, and the port of its server."""
  path = tmp_path_factory.mktemp("network") / "classifier"
  mae_jax.create_model(
    "vit_ti8", image_size=16, width=32, depth=1, heads=2, num_classes=CLASSES
  ).save_pretrained(path, format="jax")
  found = load_model.load(path, runs.devices_mesh(1), decoder=None)
  with (
    command.open_application(
      found, "test", LIMITS, pools=("mean", "cls", "grid"), batch_size=8
    ) as application,
    serving(application) as port,
  ):
    yield mae_jax.from_pretrained(path), port


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
  """An autoencoder's API, and the port of its server."""
  path = runs.pretrained(tmp_path_factory.mktemp("run"))
  found = load_model.load(path, runs.devices_mesh(1), decoder=None)
  with (
    command.open_application(
      found, "test", LIMITS, ratios=(0.75, 0.5), batch_size=2
    ) as application,
    serving(application) as port,
  ):
    yield mae_jax.from_pretrained(path), port


class Held(endpoints.Endpoint):
  """An endpoint whose batches wait until `go` is set."""

  name = "held"
  info: dict = {}  # noqa: RUF012
  parameters: dict = {}  # noqa: RUF012

  def __init__(self):
    self.go = threading.Event()
    self.go.set()  # to compile
    self.batches: list[np.ndarray] = []
    self.fails = False

    def apply(values):
      self.batches.append(values)
      assert self.go.wait(120)
      if self.fails:
        raise RuntimeError("secret")
      return values

    program = batching.Program(apply, (np.zeros(()),))
    self.programs = {"held": program}

  def prepare(self, shown, options):
    return "held", (np.asarray(shown.astype(float).sum()),)

  def answer(self, row, arrays, options, accept):
    return endpoints.to_json({"sum": float(row)})


@contextlib.contextmanager
def holding(**changes):
  """Serves `Held`; yields it, the application and the port."""
  held = Held()
  data = tiny.config().data
  limits = LIMITS._replace(**changes)
  with (
    app.Application(
      [held], data, {}, limits, batch_size=4, max_wait=0
    ) as application,
    serving(application) as port,
  ):
    held.batches.clear()
    held.go.clear()
    try:
      yield held, application, port
    finally:
      held.go.set()


def until(condition, *args) -> None:
  """Waits for a state that another thread reaches."""
  end = threading.Event()
  for _ in range(12_000):
    if condition(*args):
      return
    end.wait(0.01)
  raise TimeoutError


def test_predictions_equal_those_of_the_api(classifier):
  model, port = classifier
  wanted = model.predict(pixels(0)[None], top=3)
  status, found = ask(port, "POST", "/v1/predict?top=3", png(pixels(0)))
  assert status == 200
  assert [each["name"] for each in found["classes"]] == wanted.classes[0]
  labels = [each["label"] for each in found["classes"]]
  assert labels == wanted.labels[0].tolist()
  shares = [each["probability"] for each in found["classes"]]
  np.testing.assert_allclose(shares, wanted.probabilities[0], rtol=1e-5)
  _, found = ask(port, "POST", "/v1/predict", png(pixels(0)))
  assert len(found["classes"]) == 5


@pytest.mark.parametrize("pool", ["mean", "cls", "grid"])
def test_features_equal_those_of_the_api(classifier, pool):
  model, port = classifier
  wanted = model.features(pixels(1)[None], pool=pool).values[0]
  status, found = ask(port, "POST", f"/v1/features?pool={pool}", png(pixels(1)))
  assert (status, found["pool"]) == (200, pool)
  np.testing.assert_allclose(found["features"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.75, 0.5])
def test_reconstructions_equal_those_of_the_api(autoencoder, ratio):
  model, port = autoencoder
  image = pixels(2, 8)[..., :1]
  body, path = png(image[..., 0]), "/v1/reconstruct?seed=7"
  if ratio != 0.75:  # the first ratio is the default
    path += f"&mask_ratio={ratio}"
  wanted = model.reconstruct(image[None], mask_ratio=ratio, seed=7)
  hidden = wanted.mask[0].repeat(2, axis=0).repeat(2, axis=1)[..., None]
  pasted = np.where(hidden, wanted.reconstruction[0], image)[..., 0]

  def read(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content))).astype(int)

  status, content = ask(port, "POST", path, body)
  assert status == 200
  np.testing.assert_allclose(read(content), pasted, atol=1)  # of rounding
  status, content = ask(port, "POST", f"{path}&picture=original", body)
  np.testing.assert_array_equal(read(content), image[..., 0])
  status, found = ask(port, "POST", path, body, Accept="application/json")
  assert status == 200
  np.testing.assert_array_equal(found["masked"], wanted.mask[0])
  assert found["mask_ratio"] == ratio
  assert list(found["pictures"]) == ["pasted", "masked", "original"]
  picture = read(base64.b64decode(found["pictures"]["pasted"]))
  np.testing.assert_allclose(picture, pasted, atol=1)


def test_200_requests_at_once_are_answered_each_with_its_own(classifier):
  model, port = classifier
  images = np.stack([pixels(seed) for seed in range(200)])
  wanted = model.features(images, pool="cls").values
  before = counts(port)

  def request(image):
    return ask(port, "POST", "/v1/features?pool=cls", png(image))

  with concurrent.futures.ThreadPoolExecutor(64) as pool:
    answers = list(pool.map(request, images))
  assert [status for status, _ in answers] == [200] * 200
  found = np.array([content["features"] for _, content in answers])
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
  after = counts(port)
  key = ("mae_jax_requests_total", "/v1/features", "200")
  assert after[key] - before.get(key, 0) == 200
  images = ("mae_jax_batch_images_sum", "features cls")
  batches = ("mae_jax_batch_images_count", "features cls")
  assert after[images] - before.get(images, 0) == 200
  assert after[batches] - before.get(batches, 0) < 200  # some were together
  assert after["mae_jax_requests_in_progress",] == 0
  assert after["mae_jax_queue_images",] == 0


def counts(port: int) -> dict[tuple, float]:
  """Reads the metrics with Prometheus's own parser."""
  status, content = ask(port, "GET", "/metrics")
  assert status == 200
  return {
    (sample.name, *sample.labels.values()): sample.value
    for family in parser.text_string_to_metric_families(content.decode())
    for sample in family.samples
  }


def test_the_model_is_described(classifier, autoencoder):
  _, about = ask(classifier[1], "GET", "/v1/model")
  assert (about["height"], about["width"], about["channels"]) == (16, 16, 3)
  assert about["batch_sizes"] == [1, 2, 4, 8]
  shapes = about["endpoints"]["features"]["shapes"]
  assert shapes == {"mean": [32], "cls": [32], "grid": [2, 2, 32]}
  assert len(about["endpoints"]["predict"]["class_names"]) == CLASSES
  _, about = ask(autoencoder[1], "GET", "/v1/model")
  assert about["endpoints"]["reconstruct"]["mask_ratios"] == [0.75, 0.5]
  assert ask(classifier[1], "GET", "/healthz") == (200, {"status": "ready"})


@pytest.mark.parametrize(
  ("method", "path", "status", "message"),
  [
    ("POST", "/v1/predict?top=0", 400, "top='0' is not a whole number from 1"),
    ("POST", "/v1/predict?top=13", 400, "whole number from 1 to 12"),
    ("POST", "/v1/predict?top=x", 400, "top='x' is not a whole number"),
    ("POST", f"/v1/predict?top={'9' * 5000}", 400, "is not a whole number"),
    ("POST", "/v1/predict?top=1&top=2", 400, "top is given twice"),
    ("POST", "/v1/predict?k=1", 400, "'k' is not a parameter of predict: kno"),
    ("POST", "/v1/features?pool=all", 400, "is not one of mean, cls, grid; th"),
    ("POST", "/v1/features?pool=%ff%00", 400, "is not one of mean, cls, grid"),
    ("POST", "/v1/reconstruct", 404, "known are /healthz, /metrics, /v1/model"),
    ("POST", "/v1/../../etc/passwd", 404, "there is no /v1/../../etc/passwd"),
    ("POST", "/v1/predict/", 404, "there is no /v1/predict/:"),
    ("GET", "/v1/predict", 405, "/v1/predict does not take GET: use POST"),
    ("DELETE", "/v1/predict", 405, "does not take DELETE: use POST"),
    ("POST", "/healthz", 405, "does not take POST: use GET, HEAD"),
  ],
)
def test_wrong_requests_name_what_is_known(
  classifier, method, path, status, message
):
  found, answer = ask(classifier[1], method, path, png(pixels(0)))
  assert found == status
  assert message in answer["error"]
  assert "\n" not in answer["error"]


@pytest.mark.parametrize(
  ("query", "message"),
  [
    ("mask_ratio=0.6", "mask_ratio='0.6' is not one of 0.75, 0.5; the server"),
    ("mask_ratio=nan", "mask_ratio='nan' is not one of 0.75, 0.5"),
    ("seed=-1", "seed='-1' is not a whole number from 0 to 2147483647"),
    ("strategy=stripes", "strategy='stripes' is not one of random, block, gr"),
    ("statistics=mean", "statistics='mean' is not one of visible, true, raw"),
    ("picture=x", "picture='x' is not one of pasted, masked, original"),
  ],
)
def test_wrong_parameters_of_reconstructions(autoencoder, query, message):
  status, answer = ask(autoencoder[1], "POST", f"/v1/reconstruct?{query}", b"")
  assert status == 400
  assert message in answer["error"]


def bomb() -> bytes:
  """Returns a small PNG of 50,000 x 50,000 pixels."""

  def chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check

  head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", head)
    + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
    + chunk(b"IEND", b"")
  )


@pytest.mark.parametrize(
  ("body", "status", "message"),
  [
    (b"", 415, "this is not an image: it is empty"),
    (bytes(range(256)) * 9, 415, "this is not an image"),
    (png(pixels(0))[:-300], 415, "this is not an image"),
    (b"\xff\xd8\xff\xe0" + bytes(999), 415, "this is not an image"),
    (zlib.compress(png(pixels(0))), 415, "this is not an image"),
    (png(pixels(0, 101)), 413, "101 x 101 pixels, more than 10,000"),
    (bomb(), 413, "50000 x 50000 pixels, more than 10,000"),
  ],
)
def test_files_that_are_no_images(classifier, body, status, message):
  found, answer = ask(classifier[1], "POST", "/v1/features", body)
  assert found == status
  assert message in answer["error"]
  assert ask(classifier[1], "POST", "/v1/features", png(pixels(0)))[0] == 200


def post(*headers: bytes, path: bytes = b"/v1/features") -> bytes:
  return b"\r\n".join(
    (b"POST " + path + b" HTTP/1.1", b"Host: x", *headers, b"", b"")
  )


def test_large_bodies_are_refused_before_they_are_read(classifier, monkeypatch):
  monkeypatch.setattr(app, "_LINGER", 0.05)
  found = exchange(classifier[1], post(b"Content-Length: 99999999999"))
  assert b" 413 " in found.splitlines()[0]
  assert b"more than the limit of 100,000 bytes" in found
  assert b"connection: close" in found


def test_an_endless_body_without_a_length_is_refused(classifier, monkeypatch):
  monkeypatch.setattr(app, "_LINGER", 0.05)
  port = classifier[1]
  with socket.create_connection(("127.0.0.1", port), timeout=120) as opened:
    opened.sendall(post(b"Transfer-Encoding: chunked"))
    chunk = b"2000\r\n" + bytes(0x2000) + b"\r\n"
    with contextlib.suppress(ConnectionError):  # the server closes
      while True:
        opened.sendall(chunk)
  key = ("mae_jax_requests_total", "/v1/features", "413")
  assert counts(port)[key] >= 1


def test_the_answer_reaches_a_client_that_sends_too_much(classifier):
  # More than the buffers of a socket: the client writes until all is sent.
  status, answer = ask(classifier[1], "POST", "/v1/features", bytes(8 << 20))
  assert status == 413
  assert "send a smaller image" in answer["error"]


@pytest.mark.parametrize(
  "data",
  [
    b"\x16\x03\x01\x02\x00\x01\x00" + bytes(500),  # TLS
    b"GET / FTP\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2_000_000 + b"\r\n\r\n",
    post(b"Content-Length: -1"),
    post(b"Content-Length: 1", b"Content-Length: 2"),
    post(b"Content-Length: 1e3"),
    post(b"Transfer-Encoding: chunked") + b"zz\r\n",
  ],
)
def test_junk_is_refused_and_the_server_lives(classifier, data):
  found = exchange(classifier[1], data)
  assert found[:12] in (b"HTTP/1.1 400", b"")
  assert ask(classifier[1], "GET", "/healthz")[0] == 200


def test_pipelined_requests_are_answered_in_order(classifier):
  body = png(pixels(0))
  length = b"Content-Length: %d" % len(body)
  last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
  found = exchange(
    classifier[1],
    post(length, path=b"/v1/predict?top=1") + body + post(length) + body + last,
  )
  places = [found.find(each) for each in (b"classes", b"features", b"ready")]
  assert -1 < places[0] < places[1] < places[2]
  assert found.count(b"HTTP/1.1 200 OK") == 3


def test_slow_bodies_and_heads_are_ended(monkeypatch):
  monkeypatch.setattr(server, "_HEAD_SECONDS", 0.1)
  monkeypatch.setattr(app, "_LINGER", 0.05)
  with holding(read_seconds=0.1, max_queue=1) as (held, _, port):
    found = exchange(port, post(b"Content-Length: 9", path=b"/v1/held") + b"x")
    assert b" 408 " in found.splitlines()[0]
    assert b"did not arrive within 0.1 s" in found
    for head in (b"", b"GET /healthz HT"):
      assert exchange(port, head) == b""
    held.go.set()  # its place in the queue is free again
    assert ask(port, "POST", "/v1/held", png(pixels(0)))[0] == 200


def test_a_client_that_leaves_frees_its_place():
  with holding(max_queue=1) as (held, application, port):
    held.go.set()
    opened = socket.create_connection(("127.0.0.1", port))
    opened.sendall(post(b"Content-Length: 9", path=b"/v1/held"))
    until(lambda: application.in_progress == 1)
    linger = struct.pack("ii", 1, 0)  # closing sends a reset
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    opened.close()
    until(lambda: application.in_progress == 0)
    assert ask(port, "POST", "/v1/held", png(pixels(0)))[0] == 200


def test_requests_beyond_the_queue_are_refused_and_the_others_kept():
  images = [pixels(seed, 8)[..., 0] for seed in range(6)]
  with (
    holding(max_queue=6) as (held, _, port),
    concurrent.futures.ThreadPoolExecutor(6) as pool,
  ):
    first = pool.submit(ask, port, "POST", "/v1/held", png(images[0]))
    until(lambda: held.batches)  # the device is busy with this one
    request = functools.partial(ask, port, "POST", "/v1/held")
    others = [pool.submit(request, png(image)) for image in images[1:]]
    until(lambda: counts(port)["mae_jax_queue_images",] == 5)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
      connection.request("POST", "/v1/held", png(images[0]))
      response = connection.getresponse()
      assert response.status == 503
      assert response.headers["Retry-After"] == "1"
      text = json.loads(response.read())["error"]
    assert text == "6 requests are in progress, the limit: try again"
    assert ask(port, "GET", "/healthz")[0] == 200
    held.go.set()
    answers = [each.result() for each in (first, *others)]
  assert answers == [(200, {"sum": float(x.sum())}) for x in images]
  assert [len(each) for each in held.batches] == [1, 4, 1]


def test_a_failure_is_no_trace_and_the_server_lives(caplog):
  with holding() as (held, _, port):
    held.fails = True
    held.go.set()
    status, answer = ask(port, "POST", "/v1/held", png(pixels(0)))
    assert status == 500
    assert answer == {"error": "the server failed: its log has the reason"}
    held.fails = False
    assert ask(port, "POST", "/v1/held", png(pixels(0)))[0] == 200
  assert "RuntimeError: secret" in caplog.text


def test_stopping_refuses_new_requests_and_answers_the_others():
  with (
    holding() as (held, application, port),
    concurrent.futures.ThreadPoolExecutor() as pool,
  ):
    first = pool.submit(ask, port, "POST", "/v1/held", png(pixels(0)))
    until(lambda: held.batches)
    application.closing = True
    status, answer = ask(port, "POST", "/v1/held", png(pixels(0)))
    assert (status, answer["error"][:22]) == (503, "the server is stopping")
    assert ask(port, "GET", "/healthz") == (503, {"status": "stopping"})
    held.go.set()
    assert first.result()[0] == 200


@pytest.mark.slow
def test_sigterm_answers_what_is_in_progress_and_exits_with_0():
  process = fork_server().start(
    ["serve", "--checkpoint=digits", "--port=0", "--batch_size=1"],
    "mae_jax.__main__",
    split=True,
  )
  until(lambda: " serves " in process.log.read_text() or not process.running)
  line = process.log.read_text()
  assert "serves features, reconstruct of digits (ViT-Ti/2, 8 x 8)" in line
  port = int(line.partition("http://127.0.0.1:")[2].partition("/")[0])
  body = png(pixels(0))
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
  connection.putrequest("POST", "/v1/features")
  connection.putheader("Content-Length", str(len(body)))
  connection.endheaders(body[:9])
  until(lambda: counts(port)["mae_jax_requests_in_progress",] == 1)
  process.signal(15)
  until(lambda: ask(port, "GET", "/healthz")[0] == 503)
  assert ask(port, "POST", "/v1/features", body)[0] == 503
  connection.send(body[9:])
  response = connection.getresponse()
  assert response.status == 200
  assert len(json.loads(response.read())["features"]) == 64
  connection.close()
  assert process.wait() == 0
  assert process.log.read_text().endswith(
    "ended: all accepted requests are answered\n"
  )
  assert "Traceback" not in process.errors.read_text()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"batch_size": 0}, "--batch_size=0 must be at least 1"),
    ({"max_queue": 0}, "--max_queue=0 must be at least 1"),
    ({"max_body_mb": 0.0}, "--max_body_mb=0.0 must be above 0"),
    ({"read_timeout": float("nan")}, "--read_timeout=nan must be above 0"),
    ({"fit": "x"}, "--fit='x' is not known"),
    ({"port": 99999}, "--port=99999 is not in 0..65535"),
    ({"host": "192.0.2.1"}, "cannot listen on --host=192.0.2.1"),
    ({"pool": ("mean", "max")}, "--pool='max' is not known"),
    ({"mask_ratio": (0.99,)}, "--mask_ratio=0.99 keeps 0 of 16"),
  ],
)
def test_wrong_flags_are_refused(changes, message):
  with pytest.raises(ConfigError) as caught:
    command.run("digits", **({"port": 0} | changes))
  assert message in str(caught.value)


def test_a_port_in_use_is_reported(classifier):
  with pytest.raises(ConfigError, match="choose another port"):
    command.run("/no/such/network", port=classifier[1])


def test_mask_ratios_need_a_decoder(tmp_path):
  model = mae_jax.create_model(
    "vit_ti8", image_size=16, width=32, depth=1, heads=2, num_classes=2
  )
  model.save_pretrained(tmp_path / "x", format="jax")
  with pytest.raises(ConfigError, match=r"--mask_ratio=0.5 is for networks"):
    command.run(str(tmp_path / "x"), port=0, mask_ratio=(0.5,))


def test_small_answers_are_sent_without_delay(monkeypatch):
  found = []
  made = server._Protocol.connection_made

  def connection_made(self, transport):
    accepted = transport.get_extra_info("socket")
    found.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    made(self, transport)

  monkeypatch.setattr(server._Protocol, "connection_made", connection_made)
  with holding() as (_, _, port):
    assert ask(port, "GET", "/healthz")[0] == 200
  assert found == [1]


def test_batch_sizes_are_few():
  assert batching.batch_sizes(1) == (1,)
  assert batching.batch_sizes(8) == (1, 2, 4, 8)
  assert batching.batch_sizes(12) == (1, 2, 4, 8, 12)
