"""Measures the server under load: images a second, latencies, lost requests.

    python -m bench.serve

It writes `bench/results/serve.md`. It starts `mae-jax serve` with batches and
with --batch_size=1, for a small and a larger network of random weights. Threads
with open connections send images as fast as answers come. Client and server
share the machine's cores.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np
from PIL import Image

import mae_jax
from bench.lib import flags, machine
from mae_jax.utils import tables

OUT = flags.RESULTS / "serve.md"
_ROOT = pathlib.Path(__file__).parents[1]
CONCURRENCIES = (1, 8, 32, 128)
BATCHES = (32, 1)
PACKAGES = ("jax", "uvicorn", "starlette", "numpy")


HEADINGS = (
  "clients",
  "images/s",
  "with batch 1",
  "ratio",
  "latency, p50 / p95 / p99",
  "with batch 1",
  "errors",
)
TEXT = """# The server under load

Written by `python -m bench.serve` (`make serve`). Each client keeps a
connection open and sends a JPEG to `/v1/predict` as soon as the last answer
came. `mae-jax serve --batch_size=32` is compared with `--batch_size=1`; a ratio
above 1 is faster. The two are measured in turn, in {rounds} rounds; rates are
medians, latencies are those of all rounds in milliseconds at the client, with
the decoding of the JPEG. Clients and servers share the cores, which other
programs used too: absolute numbers of an idle machine are better.
{about}.

{total} requests were answered. {errors} were lost, refused or wrong: each
answer was compared with the class of the same image alone.

{sections}"""


class Network(NamedTuple):
  """A network to serve, its images' sides, and the requests of a round."""

  title: str
  variant: str
  side: int
  requests: int


NETWORKS = (
  Network("ViT-Ti/8, 32 x 32", "vit_ti8", 32, 600),
  Network("ViT-S/16, 224 x 224", "vit_s16", 224, 80),
)


class Load(NamedTuple):
  """The answers to some requests.

  Attributes:
    rate: answered images a second.
    latencies: seconds of each answered request.
    errors: requests without an answer, with another status than 200, or with a
      wrong answer.
  """

  rate: float
  latencies: list[float]
  errors: int


@contextlib.contextmanager
def server(checkpoint: str, batch: int) -> Iterator[int]:
  """Runs the server; yields its port, and checks that it ends with 0."""
  command = ("serve", f"--checkpoint={checkpoint}", "--port=0")
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "mae_jax", *command),
      *(f"--batch_size={batch}", "--max_queue=1000"),
    ],
    cwd=_ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  assert process.stdout is not None
  try:
    for line in process.stdout:
      if " serves " in line:
        break
    port = line.partition("http://127.0.0.1:")[2].partition("/")[0]
    yield int(port)
    process.send_signal(signal.SIGTERM)
    if process.wait():
      raise RuntimeError(f"the server ended with {process.returncode}")
  finally:
    process.kill()
    process.stdout.close()


def jpegs(side: int, count: int = 16) -> list[bytes]:
  """Returns JPEG files of random coarse images."""
  found = []
  for seed in range(count):
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(coarse).resize((side * 5 // 4, side * 5 // 4))
    image.save(buffer, "jpeg", quality=90)
    found.append(buffer.getvalue())
  return found


def ask(connection: http.client.HTTPConnection, body: bytes) -> int:
  """Returns the most likely class."""
  connection.request("POST", "/v1/predict?top=1", body)
  response = connection.getresponse()
  content = response.read()
  if response.status != http.HTTPStatus.OK:
    raise ValueError(content)
  return int(json.loads(content)["classes"][0]["label"])


def load(port: int, bodies: Sequence[bytes], clients: int, total: int) -> Load:
  """Sends `total` requests over `clients` connections."""
  first = http.client.HTTPConnection("127.0.0.1", port)
  wanted = [ask(first, body) for body in bodies]
  first.close()
  numbers = iter(range(total))
  take, ready = threading.Lock(), threading.Barrier(clients + 1)

  def client() -> tuple[list[float], int]:
    latencies: list[float] = []
    errors = 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    ready.wait()
    while True:
      with take:
        number = next(numbers, None)
      if number is None:
        connection.close()
        return latencies, errors
      kind = number % len(bodies)
      began = time.perf_counter()
      try:
        errors += ask(connection, bodies[kind]) != wanted[kind]
      except (OSError, http.client.HTTPException, ValueError):
        errors += 1
        connection.close()
      else:
        latencies.append(time.perf_counter() - began)

  with futures.ThreadPoolExecutor(clients) as pool:
    running = [pool.submit(client) for _ in range(clients)]
    ready.wait()
    began = time.perf_counter()
    results = [each.result() for each in running]
    seconds = time.perf_counter() - began
  latencies = [each for latencies, _ in results for each in latencies]
  errors = sum(errors for _, errors in results)
  return Load(len(latencies) / seconds, latencies, errors)


def measure(network: Network, rounds: int) -> dict[tuple[int, int], Load]:
  """Measures a network; returns loads by batch size and concurrency.

  Both servers run all the time, and are measured in turn, since other programs
  may take the cores for a while. The rate is the median of the rounds.
  """
  found = {}
  with (
    tempfile.TemporaryDirectory() as folder,
    contextlib.ExitStack() as stack,
  ):
    checkpoint = f"{folder}/network"
    mae_jax.create_model(
      network.variant, image_size=network.side, num_classes=1000
    ).save_pretrained(checkpoint, format="jax")
    bodies = jpegs(network.side)
    ports = {
      batch: stack.enter_context(server(checkpoint, batch)) for batch in BATCHES
    }
    for clients in CONCURRENCIES:
      print(f"{network.title}, {clients=} ...", flush=True)
      # Few clients are slow: a part of the requests is enough.
      total = max(network.requests * min(clients, 8) // 8, clients)
      seen: dict[int, list[Load]] = {batch: [] for batch in BATCHES}
      for _ in range(rounds):
        for batch, port in ports.items():
          seen[batch].append(load(port, bodies, clients, total))
      for batch, loads in seen.items():
        found[batch, clients] = Load(
          statistics.median(each.rate for each in loads),
          [each for x in loads for each in x.latencies],
          sum(each.errors for each in loads),
        )
  return found


def rows(found: dict[tuple[int, int], Load]) -> Iterator[list[str]]:
  """Yields the rows of a network's table."""
  for clients in CONCURRENCIES:
    batched, single = (found[batch, clients] for batch in BATCHES)
    yield [
      str(clients),
      f"{batched.rate:.0f}",
      f"{single.rate:.0f}",
      f"{batched.rate / single.rate:.2f}",
      *(
        " / ".join(
          f"{1e3 * q:.0f}" for q in np.quantile(x.latencies, (0.5, 0.95, 0.99))
        )
        for x in (batched, single)
      ),
      str(batched.errors + single.errors),
    ]


def main() -> None:
  """Measures and writes the page."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--out", type=flags.page, default=OUT)
  parser.add_argument("--rounds", type=flags.whole(), default=5)
  given = parser.parse_args()
  found = {network: measure(network, given.rounds) for network in NETWORKS}
  total = sum(len(y.latencies) for x in found.values() for y in x.values())
  errors = sum(y.errors for x in found.values() for y in x.values())
  parts = []
  for network, loads in found.items():
    table = tables.markdown(list(rows(loads)), HEADINGS)
    parts.append(f"## {network.title}\n\n{table}\n")
  text = TEXT.format(
    rounds=given.rounds,
    about=machine.about(PACKAGES),
    total=total,
    errors=errors,
    sections="\n".join(parts),
  )
  given.out.write_text(text)
  print(text)


if __name__ == "__main__":
  main()
