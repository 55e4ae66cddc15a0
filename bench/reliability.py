"""Tries every fault that a run should survive, and writes what came of it.

    python -m bench.reliability

It writes `bench/results/reliability.md`: the faults, what was promised, how
often each was tried and how often the promise was kept. The tests hold the same
promises; this tries more of each.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from bench.lib import faults, flags, machine

OUT = pathlib.Path(__file__).with_suffix(".md")


def write(rows: list[faults.Row], seconds: float) -> None:
  """Writes the table."""
  kept = sum(row.kept for row in rows)
  tried = sum(row.tried for row in rows)
  about = machine.about(("jax", "orbax-checkpoint", "tensorflow", "pillow"))
  lines = [
    "# Faults tried, and what came of them",
    "",
    f"{kept} of {tried} promises kept. Written by "
    f"`python -m bench.reliability` on {datetime.date.today()} in "
    f"{seconds / 60:.0f} minutes, on {about}.",
    "",
    "| fault | promise | tried | kept | seen |",
    "|---|---|---|---|---|",
    *(
      f"| {row.fault} | {row.promise} | {row.tried} | {row.kept} | {row.seen} |"
      for row in rows
    ),
    "",
  ]
  OUT.write_text("\n".join(lines))


def main() -> int:
  """Tries everything; returns 1 if a promise was broken."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--kills", type=flags.whole(), default=100)
  parser.add_argument(
    "--stops", type=flags.whole(), default=10, help="of each signal"
  )
  parser.add_argument(
    "--flips", type=flags.whole(4), default=40, help="bits an image"
  )
  parser.add_argument(
    "--disks", type=flags.whole(), default=5, help="of each fault"
  )
  args = parser.parse_args()
  sections: dict[str, Callable[[pathlib.Path], Iterator[faults.Row]]] = {
    "mistakes": faults.make_mistakes,
    "images": lambda place: faults.harm_images(args.flips, place),
    "checkpoints": lambda place: faults.harm_checkpoints(
      args.flips // 4, place
    ),
    "disks": lambda place: faults.break_disks(args.disks, place),
    "stops": lambda place: faults.stop_at_random(args.stops, place),
    "kills": lambda place: faults.kill_at_random(args.kills, place),
  }
  begin = time.monotonic()
  rows: list[faults.Row] = []
  for name, section in sections.items():
    with tempfile.TemporaryDirectory() as place:
      print(f"{name} ...", flush=True)
      for row in section(pathlib.Path(place)):
        print(f"  {row.fault}: {row.kept} of {row.tried}", flush=True)
        rows.append(row)
  write(rows, time.monotonic() - begin)
  broken = sum(row.tried - row.kept for row in rows)
  print(f"{OUT}: {broken} promises broken")
  return int(broken > 0)


if __name__ == "__main__":
  sys.exit(main())
