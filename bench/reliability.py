"""Tries every fault that a run must survive, and writes a table of results.

    python -m bench.reliability

The table is `bench/results/reliability.md`. It lists each fault, the expected
result, the number of tries, and how often the expected result came. The test
suite checks the same faults with fewer tries.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from bench.lib import faults, flags, machine

OUT = flags.RESULTS / "reliability.md"


def write(rows: list[faults.Row], seconds: float) -> None:
  """Writes the table of results."""
  kept = sum(row.kept for row in rows)
  tried = sum(row.tried for row in rows)
  about = machine.about(("jax", "orbax-checkpoint", "tensorflow", "pillow"))
  lines = [
    "# Faults that runs must survive",
    "",
    f"{kept} of {tried} tries gave the expected result. Written by "
    f"`python -m bench.reliability` on {datetime.date.today()} in "
    f"{seconds / 60:.0f} minutes, on {about}.",
    "",
    "| fault | expected result | tries | as expected | observed |",
    "|---|---|---|---|---|",
    *(
      f"| {row.fault} | {row.promise} | {row.tried} | {row.kept} | {row.seen} |"
      for row in rows
    ),
    "",
  ]
  OUT.write_text("\n".join(lines))


def main() -> int:
  """Tries all faults; returns 1 if a result was not as expected."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--kills", type=flags.whole(), default=100)
  parser.add_argument(
    "--stops", type=flags.whole(), default=10, help="tries of each signal"
  )
  parser.add_argument(
    "--flips", type=flags.whole(4), default=40, help="flipped bits per image"
  )
  parser.add_argument(
    "--disks", type=flags.whole(), default=5, help="tries of each fault"
  )
  args = parser.parse_args()
  # Runs inherit an ignored SIGINT, for instance from nohup.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  sections: dict[str, Callable[[pathlib.Path], Iterator[faults.Row]]] = {
    "mistakes": faults.make_mistakes,
    "images": lambda directory: faults.damage_images(args.flips, directory),
    "checkpoints": lambda directory: faults.damage_checkpoints(
      args.flips // 4, directory
    ),
    "disks": lambda directory: faults.break_disks(args.disks, directory),
    "stops": lambda directory: faults.stop_at_random(args.stops, directory),
    "kills": lambda directory: faults.kill_at_random(args.kills, directory),
  }
  begin = time.monotonic()
  rows: list[faults.Row] = []
  for name, section in sections.items():
    with tempfile.TemporaryDirectory() as directory:
      print(f"{name} ...", flush=True)
      for row in section(pathlib.Path(directory)):
        print(f"  {row.fault}: {row.kept} of {row.tried}", flush=True)
        rows.append(row)
  write(rows, time.monotonic() - begin)
  broken = sum(row.tried - row.kept for row in rows)
  print(f"wrote {OUT}: {broken} tries did not give the expected result")
  return int(broken > 0)


if __name__ == "__main__":
  sys.exit(main())
