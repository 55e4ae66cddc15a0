"""Tests of the demo server: its answers and its errors."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import struct
import threading
import time

import numpy as np
import pytest
from PIL import Image

import mae_jax
from mae_jax.tools import cli, reconstructor, web
from mae_jax.tools.demo import command, server, services
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs

# None leaves a key out of the request.
DRAWN = {"masked": None, "strategy": "random", "mask_ratio": 0.5, "seed": 0}
NAN = float("nan")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return runs.pretrained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def network(workdir):
  return reconstructor.load(workdir, runs.devices_mesh(1))


@pytest.fixture(scope="module")
def opened(network):
  """A running server."""
  service = services.Reconstruction(network, "run, step 3")
  found = server.Server(service, "127.0.0.1", 0)
  thread = threading.Thread(target=found.serve_forever, daemon=True)
  thread.start()
  yield found
  found.shutdown()
  found.server_close()
  thread.join()


def ask(opened, method: str, path: str, body: bytes | None = None, **headers):
  """Sends a request; returns the status and the answer."""
  connection = http.client.HTTPConnection(
    "127.0.0.1", opened.server_port, timeout=60
  )
  connection.request(method, path, body, headers)
  response = connection.getresponse()
  content = response.read()
  connection.close()
  if response.headers["Content-Type"] == "application/json":
    return response.status, json.loads(content)
  return response.status, content


def png(array: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, "png")
  return buffer.getvalue()


def picture(uri: str) -> np.ndarray:
  data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
  return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.slow
def test_an_image_is_reconstructed_like_by_the_network(opened, network):
  image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
  status, given = ask(opened, "POST", "/image", png(image))
  assert status == 200
  np.testing.assert_array_equal(picture(given["shown"]), image)
  for number in (0, 3, 15):
    hidden = [int(place < number) for place in range(16)]
    asked = {
      "image": given["image"], "masked": hidden, "statistics": "visible",
    }  # fmt: skip
    body = json.dumps(asked).encode()
    status, answer = ask(opened, "POST", "/paint", body)
    assert status == 200, answer
    assert answer["masked"] == hidden
    assert not answer["uses_truth"]
    wanted = network.paint(image[None, ..., None], np.array([hidden], bool))
    pasted = wanted.pasted(image[None, ..., None])[0, ..., 0]
    pictures = answer["pictures"]
    np.testing.assert_array_equal(picture(pictures["pasted"]), pasted)
    assert (answer["score"] is None) == (number == 0)


def test_random_masks_and_the_use_of_true_statistics_are_reported(
  opened, network
):
  _, given = ask(opened, "POST", "/example")
  asked = {
    "image": given["image"],
    "strategy": "grid",
    "mask_ratio": 0.75,
    "seed": 1,
    "statistics": "true",
  }
  status, answer = ask(opened, "POST", "/paint", json.dumps(asked).encode())
  assert status == 200, answer
  assert sum(answer["masked"]) == 12
  assert answer["uses_truth"] == network.normalized
  status, about = ask(opened, "GET", "/model")
  assert (about["rows"], about["columns"]) == (4, 4)


def test_a_classifier_predicts_classes(tmp_path):
  model = mae_jax.create_model(
    "vit_ti8", image_size=16, width=32, depth=1, heads=2, num_classes=12
  )
  model.save_pretrained(tmp_path / "classifier", format="jax")
  service = services.open_service(str(tmp_path / "classifier"))
  assert service.model() == {
    "title": "classifier (ViT-Ti/8, 16 x 16)",
    "kind": "classification", "height": 16, "width": 16, "num_classes": 12,
  }  # fmt: skip
  pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  given = service.add(png(pixels))
  found = service.answer({"image": given["image"]})["classes"]
  wanted = model.predict(pixels[None], top=10)
  assert [each["name"] for each in found] == wanted.classes[0]
  np.testing.assert_allclose(
    [each["probability"] for each in found],
    wanted.probabilities[0],
    rtol=1e-5,
  )
  with pytest.raises(web.HttpError, match="no longer in memory"):
    service.answer({"image": "x"})
  with pytest.raises(ConfigError, match="--target=raw is for networks that"):
    services.open_service(str(tmp_path / "classifier"), target="raw")


def test_the_page(opened):
  status, content = ask(opened, "GET", "/")
  assert status == 200
  assert b"<title>mae_jax" in content
  assert ask(opened, "GET", "/?x=1") == (200, content)
  connection = http.client.HTTPConnection("127.0.0.1", opened.server_port)
  connection.request("HEAD", "/")
  response = connection.getresponse()
  assert response.status == 200
  assert response.headers["Content-Length"] == str(len(content))
  response.read()
  # The answer is only the head, and the connection stays open.
  connection.request("GET", "/")
  assert connection.getresponse().read() == content
  connection.close()


@pytest.mark.parametrize(
  ("body", "status", "message"),
  [
    (b"no image", 415, "this is not an image"),
    (b"", 415, "this is not an image"),
    (b"\x89PNG\r\n\x1a\n half", 415, "this is not an image"),
  ],
)
def test_files_that_are_no_images_are_refused(
  opened, body, status: int, message: str
):
  found, answer = ask(opened, "POST", "/image", body)
  assert found == status
  assert message in answer["error"]


def test_large_requests_are_refused_before_reading(opened):
  connection = socket.create_connection(("127.0.0.1", opened.server_port))
  with connection:
    connection.sendall(
      b"POST /image HTTP/1.1\r\nHost: 127.0.0.1\r\n"
      b"Content-Length: 99999999999\r\n\r\n"
    )
    assert b" 413 " in connection.recv(4096).splitlines()[0]


def test_too_many_pixels_are_refused_before_they_are_decoded(
  opened, monkeypatch
):
  monkeypatch.setattr(services, "MAX_PIXELS", 100)
  image = png(np.zeros((11, 10), np.uint8))
  status, answer = ask(opened, "POST", "/image", image)
  assert status == 413
  assert "11 x 10 pixels" in answer["error"]


def test_connections_that_are_reset_print_nothing(opened, capfd):
  half = b"POST /image HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
  for request in (b"GET / HT", half):
    connection = socket.create_connection(("127.0.0.1", opened.server_port))
    connection.sendall(request)
    # Closing without lingering sends a reset.
    linger = struct.pack("ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()
  before = threading.active_count()
  assert ask(opened, "GET", "/model")[0] == 200
  while threading.active_count() > before:  # until the handlers end
    time.sleep(0.01)
  found = capfd.readouterr()
  assert found.out + found.err == ""


def test_reading_adds_no_image(opened):
  assert ask(opened, "GET", "/example")[0] == 404


def test_requests_without_a_length_are_refused(opened):
  connection = socket.create_connection(("127.0.0.1", opened.server_port))
  with connection:
    connection.sendall(b"POST /image HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b" 411 " in connection.recv(4096).splitlines()[0]


@pytest.mark.parametrize(
  ("change", "status", "message"),
  [
    ({"image": "none"}, 404, "no longer in memory"),
    ({"image": None}, 400, "image is missing: write the name that"),
    ({"image": []}, 400, "image=[] is not the name that /image"),
    ({"masked": [1, 0]}, 400, "masked has 2 entries for 4 x 4 patches"),
    ({"masked": [1] * 16}, 400, "leave at least one visible"),
    ({"masked": "x"}, 400, "masked='x' is not a list of 16 numbers"),
    ({"masked": [0] * 15 + [2]}, 400, "masked has 2 at 15, not 0 or 1"),
    ({"masked": [[0]] * 16}, 400, "masked has [0] at 0, not 0 or 1"),
    ({"masked": None}, 400, "strategy is missing: write random or block or"),
    (DRAWN | {"strategy": "stripes"}, 400, "strategy='stripes' is not known"),
    (DRAWN | {"mask_ratio": None}, 400, "mask_ratio is missing: write a numb"),
    (DRAWN | {"mask_ratio": 7}, 400, "mask_ratio=7 is not a number above 0"),
    (DRAWN | {"mask_ratio": 10**999}, 400, "is not a number above 0 and belo"),
    (DRAWN | {"mask_ratio": NAN}, 400, "mask_ratio=nan is not a number abov"),
    (DRAWN | {"mask_ratio": True}, 400, "mask_ratio=True is not a number abo"),
    (DRAWN | {"mask_ratio": "much"}, 400, "mask_ratio='much' is not a number"),
    (DRAWN | {"mask_ratio": 0.99}, 400, "mask_ratio=0.99 keeps 0 of 16"),
    (DRAWN | {"seed": None}, 400, "seed is missing: write a whole number"),
    (DRAWN | {"seed": -1}, 400, "seed=-1 is not a whole number from 0"),
    (DRAWN | {"seed": 1.5}, 400, "seed=1.5 is not a whole number from 0"),
    ({"statistics": None}, 400, "statistics is missing: write visible or true"),
    ({"statistics": "mean"}, 400, "statistics='mean' is not known: write vis"),
  ],
)
def test_wrong_parameters_are_refused(
  opened, change, status: int, message: str
):
  _, given = ask(opened, "POST", "/example")
  asked = {"image": given["image"], "statistics": "visible"}
  asked |= {"masked": [1, 0] * 8} | change
  body = {key: value for key, value in asked.items() if value is not None}
  found, answer = ask(opened, "POST", "/paint", json.dumps(body).encode())
  assert found == status
  assert message in answer["error"]
  assert "--" not in answer["error"]


@pytest.mark.parametrize(
  ("body", "message"),
  [
    (b"{", "this is not JSON"),
    (b"\xff\xfe\xff", "this is not JSON"),
    (b"[]", "[] is not an object with an image"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"image":' * 100_000, "nested too deeply"),
    (b'{"image": %s}' % (b"[" * 900 + b"]" * 900), "image"),
  ],
)
def test_requests_that_are_no_json_object_are_refused(
  opened, body: bytes, message: str
):
  status, answer = ask(opened, "POST", "/paint", body)
  assert status == 400
  assert message in answer["error"]


def test_other_sites_and_names_are_refused(opened):
  assert ask(opened, "GET", "/", Host="evil.example")[0] == 403
  assert ask(opened, "POST", "/example", Origin="http://evil.example")[0] == 403
  here = f"127.0.0.1:{opened.server_port}"
  assert ask(opened, "GET", "/model", Origin=f"http://{here}")[0] == 200
  for path in ("/../etc/passwd", "/page.html", "/nothing"):
    assert ask(opened, "GET", path)[0] == 404
  assert ask(opened, "POST", "/model", b"")[0] == 404


@pytest.mark.slow
def test_old_images_are_dropped(opened):
  names = [ask(opened, "POST", "/example")[1]["image"] for _ in range(20)]
  assert len(set(names)) == 20
  hidden = {"masked": [1, 0] * 8, "statistics": "raw"}
  for name, status in ((names[0], 404), (names[-1], 200)):
    body = json.dumps(hidden | {"image": name}).encode()
    assert ask(opened, "POST", "/paint", body)[0] == status


def test_the_server_listens_only_on_this_machine(opened):
  assert opened.server_address[0] == "127.0.0.1"
  assert (
    cli.parser(command.run, "demo").parse_args(["--checkpoint=x"]).host
    == "127.0.0.1"
  )


def test_a_port_in_use_is_reported(opened, workdir):
  text = f"cannot listen on --port={opened.server_port}.* choose another port"
  with pytest.raises(ConfigError, match=text) as caught:
    command.run(str(workdir), port=opened.server_port)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("host", "port", "message"),
  [
    (
      "127.0.0.1",
      99999,
      "--port=99999 is not in 0..65535: choose another port",
    ),
    ("127.0.0.1", -1, "--port=-1 is not in 0..65535: choose another port"),
    # An address for documentation (RFC 5737) that no machine has.
    ("192.0.2.1", 0, "cannot listen on --host=192.0.2.1"),
    ("no.such.invalid", 0, "cannot listen on --host=no.such.invalid"),
    ("a..b", 0, "cannot listen on --host=a..b"),
  ],
)
def test_an_address_of_no_local_interface_is_reported(
  network, host, port: int, message: str
):
  with pytest.raises(ConfigError) as error:
    server.Server(services.Reconstruction(network, ""), host, port)
  assert str(error.value).startswith(message)
  remedy = "choose another host" if "host" in message else "0 for any free one"
  assert remedy in str(error.value)


def test_an_invalid_port_is_refused_before_loading_the_network():
  with pytest.raises(ConfigError, match="--port=99999"):
    command.run("/no/such/network", port=99999)
