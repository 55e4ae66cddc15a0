"""A fake environment for the launch scripts: stand-in programs and machines."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
FAKE_PROGRAM = pathlib.Path(__file__).with_name("fake_program.py")
PROGRAMS = ["gcloud", "kubectl", "sbatch", "srun", "scontrol", "scancel"]
PROGRAMS += ["squeue", "python3", "python3.11", "python3.12", "python3.13"]


def make_checkout(path: pathlib.Path) -> None:
  """Copies the files that the scripts need to a git checkout."""
  for each in ("launch", "configs"):
    shutil.copytree(ROOT / each, path / each)
  for each in ("setup.py", "constraints.txt", ".gitignore"):
    shutil.copy(ROOT / each, path / each)
  (path / "mae_jax").mkdir()
  shutil.copy(ROOT / "mae_jax/main.py", path / "mae_jax/main.py")
  (path / ".venv").mkdir()
  (path / ".venv/large").touch()
  subprocess.run(["git", "init", "--quiet", path], check=True)


class World:
  """A directory with stand-in programs, machines and recorded calls."""

  def __init__(self, path: pathlib.Path, hosts: int = 1):
    self.path = path
    self.hosts(hosts)
    self.checkout = path / "checkout"
    make_checkout(self.checkout)
    programs = path / "bin"
    programs.mkdir()
    text = f"#!{sys.executable} -S\n" + FAKE_PROGRAM.read_text()
    for name in PROGRAMS:
      file = programs / name
      file.write_text(text)
      file.chmod(file.stat().st_mode | stat.S_IXUSR)
    self.env = {
      "PATH": f"{programs}:{os.environ['PATH']}",
      "HOME": str(path),
      "TMPDIR": str(path),
      "LAUNCH_WORLD": str(path),
      "LAUNCH_SLEEP": "0.02",
    }

  def hosts(self, count: int) -> None:
    (self.path / "hosts").write_text(str(count))

  def queue(self, *states: str) -> None:
    (self.path / "queue").write_text(" ".join(states))

  def mains(self, **codes: list[int | None]) -> None:
    """Sets the exit codes of main on each host: host_0=[75, 0]."""
    named = {name.replace("_", "-"): each for name, each in codes.items()}
    with self._locked():
      (self.path / "mains.json").write_text(json.dumps(named))

  def fault(self, pattern: str, after: int = 0, code: int = 1, text="no luck"):
    self._add("faults.json", [pattern, after, code, text])

  def later(self, pattern: str, state: str, after: int = 0) -> None:
    """Changes the state of the TPU VM at a call."""
    self._add("later.json", [pattern, after, state])

  def _add(self, name: str, entry: list) -> None:
    path = self.path / name
    with self._locked():
      entries = json.loads(path.read_text()) if path.exists() else []
      path.write_text(json.dumps([*entries, entry]))

  @contextlib.contextmanager
  def _locked(self) -> Iterator[None]:
    # Programs on the machines read these files at the same time.
    with (self.path / "lock").open("w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      yield

  def start(self, *words: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
      words,
      env={**self.env, **options.pop("env", {})},
      cwd=self.checkout,
      text=True,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      **options,
    )

  def run(self, *words: str, **options) -> subprocess.CompletedProcess:
    with self.start(*words, **options) as process:
      out, err = process.communicate(timeout=40)
    return subprocess.CompletedProcess(words, process.returncode, out, err)

  def shell(self, text: str) -> subprocess.CompletedProcess:
    """Runs a command that a message suggests."""
    return self.run("bash", "-c", text)

  def calls(self, program: str | None = None) -> list[list[str]]:
    path = self.path / "calls.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    calls = [json.loads(line) for line in lines]
    return [x for x in calls if program in (None, x[0])]

  def forget(self) -> None:
    (self.path / "calls.jsonl").unlink(missing_ok=True)

  def wait_for(self, pattern: str) -> None:
    for _ in range(1200):
      if list(self.path.glob(pattern)):
        return
      time.sleep(0.025)
    raise TimeoutError(pattern)

  def close(self) -> None:
    """Stops everything that runs on the machines."""
    (self.path / "closed").touch()


def words(line: str) -> list[str]:
  """Formats a call as a shell command."""
  return shlex.split(line)


def verbs(calls: list[list[str]]) -> list[str]:
  """Lists the calls of gcloud in short form; for ssh, their purpose."""
  short = []
  for call in calls:
    words = [x for x in call if x != "alpha"]
    verb = f"{words[3]} {words[4]}".replace("queued-resources", "queue")
    verb = verb.replace("tpu-vm ", "")
    command = next((x for x in words if x.startswith("--command=")), "")
    for each in ("install", "run", "stop", "status"):
      if f"worker.sh {each}" in command:
        verb = each
        break
    short.append(verb)
  return short


def message(done: subprocess.CompletedProcess, label: str) -> str:
  """Returns the text of a failure after `label:`."""
  found = [x for x in done.stderr.splitlines() if x.startswith(f"{label}: ")]
  assert found, done.stderr
  return found[-1].removeprefix(f"{label}: ")
