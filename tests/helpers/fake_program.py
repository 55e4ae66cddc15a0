"""Plays gcloud, kubectl, Slurm's programs, and Python on the machines.

Started under the name of the program it plays, with the directory of its world
in LAUNCH_WORLD. It records each call, and answers from the files there:

  calls.jsonl     [program, argument, ...] per line
  faults.json     [[pattern, number of calls to pass, exit code, message], ...]
  node, queue     state of the TPU VM; states of the request, one per query
  later.json      [[pattern, number of calls to pass, state of the node], ...]
  mains.json      {host: [exit code, ...]}; null: runs until a signal, then 75
  hosts           number of machines
  host-N          home directories of the machines
  closed          the test is over: all running programs must end
"""

import fcntl
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

WORLD = pathlib.Path(os.environ["LAUNCH_WORLD"])


def read(name, default=""):
  path = WORLD / name
  return path.read_text() if path.exists() else default


def record(call):
  with (WORLD / "calls.jsonl").open("a") as file:
    file.write(json.dumps(call) + "\n")


def next_match(name, text):
  """Returns the first matching entry that is due, and counts its calls."""
  with (WORLD / "lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    entries = json.loads(read(name, "[]"))
    found = None
    for entry in entries:
      if entry[1] >= 0 and re.search(entry[0], text, re.DOTALL):
        entry[1] -= 1
        if entry[1] < 0 and found is None:
          found = entry
    (WORLD / name).write_text(json.dumps(entries))
  return found


def fail(code, text):
  print(text, file=sys.stderr)
  sys.exit(code)


def flag(name, words):
  values = [x.split("=", 1)[1] for x in words if x.startswith(f"{name}=")]
  return values[-1] if values else None


def homes(worker):
  count = int(read("hosts", "1"))
  numbers = range(count) if worker == "all" else [int(worker)]
  return [WORLD / f"host-{each}" for each in numbers]


def on_hosts(words):
  code = 0
  for home in homes(flag("--worker", words)):
    fault = next_match(
      "faults.json", f"{home.name} <- {flag('--command', words)}"
    )
    if fault:
      print(fault[3], file=sys.stderr)
      code = fault[2]
      continue
    env = {**os.environ, "HOME": str(home), "LAUNCH_HOST": home.name}
    done = subprocess.run(
      ["bash", "-c", flag("--command", words)], cwd=home, env=env, check=False
    )
    code = code or done.returncode
  sys.exit(code)


def make_node():
  (WORLD / "node").write_text("READY")
  for home in homes("all"):
    home.mkdir()


def remove_node():
  kill_mains()
  (WORLD / "node").unlink(missing_ok=True)
  for home in homes("all"):
    shutil.rmtree(home, ignore_errors=True)


def change(state):
  if state in ("PREEMPTED", "ABSENT"):  # while main was at work there
    wait_for_mains()
    kill_mains()
  if state == "ABSENT":
    remove_node()
  else:
    (WORLD / "node").write_text(state)


def wait_for_mains():
  for home in homes("all"):
    for _ in range(400):
      if (WORLD / f"alive-{home.name}").exists():
        break
      time.sleep(0.025)


def kill_mains():
  for path in WORLD.glob("host-*/mae_jax/run/pid"):
    try:
      group = os.getpgid(int(path.read_text()))
      os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
      pass


def queued(verb, words):
  if verb == "create":
    if (WORLD / "asked").exists():
      fail(1, "ALREADY_EXISTS: the resource exists")
    (WORLD / "asked").touch()
  elif verb == "delete":
    (WORLD / "asked").unlink(missing_ok=True)
    remove_node()
  elif not (WORLD / "asked").exists():
    fail(1, "ERROR: NOT_FOUND: no such request")
  else:
    state, *rest = read("queue", "ACTIVE").split()
    if rest:
      (WORLD / "queue").write_text(" ".join(rest))
    if state == "ACTIVE" and not (WORLD / "node").exists():
      make_node()
    print(state)


def gcloud(words):
  words = words[1:] if words[0] == "alpha" else words
  group, verb = words[2:4]
  if group == "queued-resources":
    queued(verb, words)
  elif verb == "create":
    if (WORLD / "node").exists():
      fail(1, "ALREADY_EXISTS: the node exists")
    make_node()
  elif not (WORLD / "node").exists():
    fail(1, "ERROR: NOT_FOUND: no such node")
  elif verb == "describe":
    print(read("node"))
  elif verb == "delete":
    if (WORLD / "asked").exists():
      fail(1, "FAILED_PRECONDITION: the node belongs to a request")
    remove_node()
  elif verb == "scp":
    for home in homes("all"):
      shutil.copy(words[4], home / words[5].split(":")[1])
  elif verb == "ssh":
    on_hosts(words)


def main_program(words):
  host = os.environ.get("LAUNCH_HOST", "host-0")
  if "SLURM_PROCID" in os.environ:
    host = f"task-{os.environ['SLURM_PROCID']}"
  with (WORLD / "lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    mains = json.loads(read("mains.json", "{}"))
    code, *rest = mains.get(host) or [None]
    mains[host] = rest or [code]
    (WORLD / "mains.json").write_text(json.dumps(mains))
    record(["main", host, *words])
  print("training")
  if code is not None:
    sys.exit(code)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  (WORLD / f"alive-{host}").touch()
  for _ in range(2000):  # longer than any test runs
    time.sleep(0.05)
    if not WORLD.exists() or (WORLD / "closed").exists():
      sys.exit(75)


def python(words):
  if words[0] == "-c":
    sys.exit(read("old_python") != "")
  if words[:2] == ["-m", "venv"] or words[:3] == ["-m", "uv", "venv"]:
    bin_directory = pathlib.Path(words[-1], "bin")
    bin_directory.mkdir(parents=True)
    (bin_directory / "python").symlink_to(pathlib.Path(sys.argv[0]))
  if words[:2] == ["-m", "mae_jax.main"]:
    main_program(words[2:])


def srun(words):
  cut = next(i for i, x in enumerate(words) if not x.startswith("-"))
  tasks = []
  # As in Slurm, a signal to the step goes to all processes of all tasks.
  signal.signal(
    signal.SIGTERM, lambda *_: [os.killpg(x.pid, signal.SIGTERM) for x in tasks]
  )
  for each in range(int(read("tasks", "2"))):
    env = {**os.environ, "SLURM_PROCID": str(each), "SLURM_LOCALID": str(each)}
    tasks.append(subprocess.Popen(words[cut:], env=env, start_new_session=True))
  (WORLD / "srun.pid").write_text(str(os.getpid()))
  sys.exit(max(task.wait() for task in tasks))


def main():
  program = pathlib.Path(sys.argv[0]).name
  words = sys.argv[1:]
  # Records only Python calls that install; main records itself.
  if not program.startswith("python") or words[:2] == ["-m", "pip"]:
    record([program, *words])
  text = shlex.join([program, *words])
  later = next_match("later.json", text)
  if later:
    change(later[2])
  fault = next_match("faults.json", text)
  if fault:
    fail(fault[2], fault[3])
  if program == "gcloud":
    gcloud(words)
  elif program.startswith("python"):
    python(words)
  elif program == "srun":
    srun(words)
  elif program == "sbatch":
    print("4242")
  elif program == "kubectl" and words[-2:] == ["-f", "-"]:
    (WORLD / "applied.yaml").write_text(sys.stdin.read())


main()
