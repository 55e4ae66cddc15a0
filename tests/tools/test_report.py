"""Tests of the page of runs: its content, and that it is self-contained."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil

import pytest
from PIL import Image

from mae_jax.tools.report import command, names, page, run_logs
from mae_jax.train import best, run_info
from mae_jax.utils.errors import ConfigError
from tests.helpers import commands, fake_logs, tiny


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
  root = tmp_path_factory.mktemp("runs")
  fake_logs.write(root / "one", tiny.config(), fake_logs.EVALUATED)
  other = tiny.config(optim={"blr": 2e-2}, data={"mean": (0.9,)})
  fake_logs.write(root / "<two>", other, ())
  return root


@pytest.fixture(scope="module")
def written(workdirs, tmp_path_factory):
  out = tmp_path_factory.mktemp("out") / "report.html"
  both = [str(workdirs / "one"), str(workdirs / "<two>")]
  command.write(both, str(out), recipe="configs/digits.py", look_at=100)
  return out.read_text()


def charts(text: str) -> dict:
  (found,) = re.findall(r"^const charts = (.*);$", text, re.MULTILINE)
  return json.loads(found)


def test_charts_have_every_logged_value(workdirs, written):
  drawn, spreads = {}, {}
  for chart in charts(written).values():
    title = chart["layout"]["title"]["text"]
    for trace in chart["data"]:
      drawn[title, trace["name"]] = trace["x"], trace["y"]
      spreads[title, trace["name"]] = trace["error_y"]["array"]
  lines = (workdirs / "one" / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  for title, name, key in (
    ("loss", "one, training", "loss"),
    ("loss", "one, held out", "eval_loss"),
    ("learning rate", "one", "lr"),
    ("gradient norm", "one", "grad_norm"),
    ("images a second", "one", "images_per_second"),
  ):
    wanted = [(x["step"], x[key]) for x in records if key in x]
    assert wanted
    assert list(zip(*drawn[title, name], strict=True)) == wanted
  assert ("loss", "<two>, training") in drawn
  # Accuracies of probes have their standard deviation.
  titles = {title for title, _ in drawn}
  wanted = [x[std] for x in records if (std := "eval_linear_2_std/MAE") in x]
  assert len(wanted) == 2
  title = "linear probe, 2 labels a class, accuracy"
  assert spreads[title, "one, MAE"] == wanted
  assert not spreads["loss", "one, training"]
  assert {title, "unreadable images"} <= titles
  # A count of zero is one line.
  assert "skipped steps" not in titles
  assert '<p class="note">no skipped steps</p>' in written


def test_pictures_equal_the_logged_ones(workdirs, written):
  (found,) = re.findall(r"^const sliders = (.*);$", written, re.MULTILINE)
  (slider,) = json.loads(found).values()
  assert slider["steps"] == [3, 6]
  board = workdirs / "one" / "tensorboard"
  (events,) = (path.read_bytes() for path in board.iterdir())
  for uri in slider["images"]:
    picture = base64.b64decode(uri.partition(",")[2])
    assert picture in events
    assert Image.open(io.BytesIO(picture)).size == (448, 112)


def of(
  *records: dict, started: dict | None = None, **fields
) -> run_logs.RunLogs:
  found = {"pictures": {}, "config": None, "recipe": None} | fields
  return run_logs.RunLogs("run", list(records), started=started or {}, **found)


def rendered(*found: run_logs.RunLogs) -> str:
  return html.unescape(page.render(found, []))


def test_metric_names_are_shown_as_words():
  counts = dict.fromkeys(names.COUNTS, 1.0)
  record = {
    "eval_linear_1/MAE": 0.5,
    "eval_knn_all/MAE": 0.5,
    "eval_top1": 0.5,
    "eval_top1/from_scratch_5": 0.4,
    "eval_top1/pre-trained_all": 0.4,
    "lr_encoder": 0.1,
    "something_else": 1.0,
  }
  some = [{"step": step} | record | counts for step in (7, 8)]
  drawn = charts(rendered(of(*some)))
  titles = {x["layout"]["title"]["text"]: x["data"] for x in drawn.values()}
  assert list(titles) == [
    "linear probe, 1 label a class, accuracy",
    "kNN, all labels, accuracy",
    "top-1 accuracy",
    "learning rate, encoder",
    "something else",
    *names.COUNTS.values(),
  ]
  lines = [trace["name"] for trace in titles["top-1 accuracy"]]
  assert lines[1:] == [
    "run, from scratch, 5 labels a class", "run, pre-trained, all labels",
  ]  # fmt: skip


def test_an_axis_has_whole_steps_only():
  (one,) = charts(rendered(of({"step": 2500, "loss": 1.0}))).values()
  axis = one["layout"]["xaxis"]
  assert axis["range"] == [2499, 2501]
  assert (axis["dtick"], axis["tickformat"]) == (1, ",d")
  records = [{"step": step, "loss": 1.0} for step in (50, 2500)]
  (more,) = charts(rendered(of(*records))).values()
  assert not {"range", "dtick"} & set(more["layout"]["xaxis"])


def test_counts_of_zero_are_one_line():
  nothing = {"step": 1} | dict.fromkeys(names.COUNTS, 0.0)
  text = rendered(of(nothing))
  assert charts(text) == {}
  assert (
    "no loss spikes, skipped steps, unreadable images or unreadable held-out "
    "images<"
  ) in text
  # The chart is shown if any run has the value.
  text = rendered(of(nothing), of(nothing | {"skipped": 2.0}))
  assert len(charts(text)) == 1


def cells_of(text: str) -> list[list[str]]:
  """Returns the rows of the first table."""
  rows = text.partition("</table>")[0].split("<tr>")[1:]
  found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
  return [[re.sub("<.*?>", "", cell).strip() for cell in row] for row in found]


def test_summary_has_last_results_time_and_parameters():
  config = tiny.config(task="finetune")
  text = rendered(
    of(
      {"step": 2, "seconds": 70.0},
      {"step": 3, "seconds": 5.0},  # started again
      {"step": 4, "eval_top1": 0.9111, "eval_f1_macro": 0.5, "eval_seconds": 9},
      config=config,
      status="ended early",
      best=best.BestEvaluation("eval_top1", steps=[4], value=0.9111),
      started={"num_params": 2_500_000},
    ),
    of({"step": 1234, "eval_loss": 0.25}),
  )
  assert cells_of(text) == [
    ["run", "task", "status", "step", "trained for", "parameters",
     "held-out loss", "top-1 accuracy", "macro F1", "best"],
    ["run", "finetune", "ended early", "4", "0:01:15", "2.5 M", "", "91.1 %",
     "0.5", "top-1 accuracy 91.1 % at step 4"],
    ["run", "", "", "1,234", "", "", "0.25", "", "", ""],
  ]  # fmt: skip
  assert "top-1" not in rendered(of({"step": 4}))


def test_a_single_evaluation_is_a_table():
  scalars = {
    f"eval_{kind}_{shots}{key}/{name}": value
    for kind in ("linear", "knn")
    for shots in ("5", "all")
    for name in ("MAE", "raw pixels")
    for key, value in (("", 0.8), ("_std", 0.02))
    if not (key and shots == "all")
  }
  text = rendered(of({"step": 7} | scalars))
  table = text.partition("<h2>Evaluation</h2>")[2]
  assert cells_of(table)[:2] == [
    ["", "MAE", "raw pixels"],
    ["linear probe, accuracy, 5 labels a class", *["80.0 ± 2.0 %"] * 2],
  ]
  assert len(cells_of(table)) == 5
  # The same over the number of labels, each line in its color.
  drawn = charts(text)
  assert [x["layout"]["title"]["text"] for x in drawn.values()] == [
    "linear probe, accuracy", "kNN, accuracy",
  ]  # fmt: skip
  lines = drawn["chart0"]["data"]
  assert [x["name"] for x in lines] == ["MAE", "raw pixels"]
  assert lines[0]["x"] == ["5", "all"]
  assert lines[0]["error_y"]["array"] == [0.02, None]
  colors = [line["error_y"]["color"] for line in lines]
  assert len(set(colors)) == 2


def test_trials_of_label_efficiency_are_compared():
  scalars = {
    f"eval_top1{std}/{start}_{shots}": 0.5
    for start in ("pre-trained", "from_scratch")
    for shots in (5, 10)
    for std in ("", "_std")
  }
  text = rendered(of({"step": 7} | scalars))
  table = cells_of(text.partition("<h2>Evaluation</h2>")[2])
  assert table[0] == ["", "pre-trained", "from scratch"]
  assert table[1] == [
    "top-1 accuracy, 5 labels a class",
    *["50.0 ± 50.0 %"] * 2,
  ]
  assert len(charts(text)) == 1


def test_losses_of_different_targets_have_their_own_axes():
  def run(**sections) -> run_logs.RunLogs:
    return of({"step": 1, "loss": 1.0}, config=tiny.config(**sections))

  def titles(*some: run_logs.RunLogs) -> list[str]:
    drawn = charts(rendered(*some)).values()
    return [each["layout"]["title"]["text"] for each in drawn]

  same = run(), run(optim={"blr": 1.0})
  assert titles(*same) == ["loss"]
  raw, classifier = run(objective={"target": "raw"}), run(task="finetune")
  assert titles(run(), raw, classifier) == [
    "loss: mse of norm_pix, masked patches",
    "loss: mse of raw, masked patches",
    "loss: finetune",
  ]


def test_the_best_evaluation_is_marked():
  found = best.BestEvaluation("eval_top1", steps=[2], value=0.9)
  records = [{"step": step, "eval_top1": 0.9} for step in (2, 4)]
  (chart,) = charts(rendered(of(*records, best=found))).values()
  (line,) = chart["layout"]["shapes"]
  assert (line["x0"], line["x1"]) == (2, 2)
  assert chart["layout"]["annotations"][0]["text"] == "best"


def test_an_evaluation_is_reported(tmp_path):
  folder = tmp_path / "evaluation"
  folder.mkdir()
  content = {
    "checkpoint": "runs/a/checkpoints/70",
    "files": ["predictions.csv", "confusion.png"],
    "scalars": {"eval_top1": 0.875, "eval_auc_macro": None},
  }
  (folder / "evaluation.json").write_text(json.dumps(content))
  Image.new("RGB", (4, 4)).save(folder / "confusion.png")
  out = tmp_path / "report.html"
  command.write([str(folder)], str(out), look_at=0)
  text = out.read_text()
  assert cells_of(text) == [
    ["run", "task", "status", "step", "top-1 accuracy"],
    ["evaluation", "", "evaluation", "70", "87.5 %"],
  ]
  assert "evaluation, confusion" in text


def test_a_directory_of_runs_is_sorted(tmp_path):
  for name, value in (("a", 0.1), ("b", 0.9), ("deep/c", 0.5)):
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    line = json.dumps({"step": 1, "eval_top1": value})
    (folder / "metrics.jsonl").write_text(f"{line}\n")
  out = tmp_path / "report.html"
  runs = [str(tmp_path / "runs")]
  command.write(runs, str(out), sort="eval_top1", look_at=0)
  assert [row[0] for row in cells_of(out.read_text())] == ["run", "b", "c", "a"]
  with pytest.raises(ConfigError, match="--sort=x: no run has this metric"):
    command.write(runs, str(out), sort="x", look_at=0)


def test_environment_has_no_empty_rows():
  record = {"step": 4}
  text = rendered(of(record, started={"cores": 2}), of(record))
  table = text.partition("<h2>Environment</h2>")[2].partition("</table>")[0]
  assert re.findall(r"<tr><th>(.*?)</th>", table) == ["", "cores"]
  text = rendered(of(record))
  assert "no run has an about.json" in text
  assert "<table>" not in text.partition("<h2>Environment</h2>")[2]


def test_settings_that_differ_are_marked(written):
  (table,) = re.findall(r'<table id="changed">.*?</table>', written, re.DOTALL)
  text = html.unescape(table)
  assert "<code>optim.blr</code>" in text
  assert 'class="changed"' in table
  assert "(recipe: '2500 steps')" in text
  rest = written.partition("all other settings")[2]
  assert "<code>data.channels</code>" in rest
  assert "<code>optim.blr</code>" not in rest


def test_equal_paths_are_recognized(tmp_path, monkeypatch):
  home = tmp_path / "home"
  home.mkdir()
  (tmp_path / "link").symlink_to(home)
  # A recipe may name another relative to itself, as digits_finetune.py.
  (home / "recipe.py").write_text(
    "import dataclasses, pathlib\n"
    "from mae_jax import config as c\n"
    "from tests.helpers import tiny\n"
    "def get_config(arg=None):\n"
    "  here = pathlib.Path(__file__).with_name('first.py')\n"
    "  compare = c.LabelEfficiencyConfig(pretrain=f'{here}:steps=9')\n"
    "  config = dataclasses.replace(tiny.config(), label_efficiency=compare)\n"
    "  return c.config_dict(config)\n"
  )

  def differing(pretrain: str, named: str = "recipe.py") -> list[str]:
    workdir = tmp_path / "run"
    if workdir.exists():
      shutil.rmtree(workdir)
    config = tiny.config(label_efficiency={"pretrain": pretrain})
    monkeypatch.chdir(home)
    monkeypatch.setattr("sys.argv", ["main.py", f"--config={named}"])
    fake_logs.write(workdir, config, ())
    monkeypatch.chdir(tmp_path)
    run = run_logs.read(str(workdir))
    text = html.unescape(page.render([run], [command.summarize(run, "x", 0)]))
    table = re.findall(r'<table id="changed">.*?</table>', text, re.DOTALL)
    assert (": no setting differs" in text) == (not table)
    return re.findall("<code>(.*?)</code>", "".join(table))

  same = ("first.py:steps=9", "./first.py:steps=9", f"{home}/first.py:steps=9")
  for pretrain in (*same, f"{tmp_path}/link/first.py:steps=9"):
    assert differing(pretrain) == []
  assert differing("first.py:steps=9", f"{home}/../home/recipe.py") == [
    "label_efficiency.pretrain"  # relative to an unknown folder
  ]
  for pretrain in ("first.py:steps=8", "other.py:steps=9", "home/first.py", ""):
    assert differing(pretrain) == ["label_efficiency.pretrain"]


def test_data_and_environment(written):
  text = html.unescape(written)
  assert "training images" in text
  assert "2 unreadable training images, replaced" in text
  assert "data.mean=(0.9,), but the images have 0.3" in text
  assert "cpu (cpu)" in text
  assert f"<td>{run_info._version('jax')}</td>" in text


def test_the_page_needs_no_network_and_escapes_names(written):
  body = re.sub(r"<script>.*?</script>", "", written, flags=re.DOTALL)
  assert not re.search(r"(src|href)=\"(?!data:)", body)
  assert "<two>" not in body
  assert "&lt;two&gt;" in body
  data = written[written.index("const charts") :]
  assert "<two>" not in data


def test_a_running_run_may_have_an_incomplete_line(workdirs, tmp_path):
  log = (workdirs / "one" / "metrics.jsonl").read_text()
  (tmp_path / "metrics.jsonl").write_text(log + '{"step": 7, "lo')
  found = run_logs.read(str(tmp_path))
  assert len(found.records) == len(log.splitlines())
  assert found.config is None
  assert found.pictures == {}
  text = page.render([found], [command.summarize(found, "x", 0)])
  assert "settings are missing, or belong to another version" in text
  (tmp_path / "metrics.jsonl").write_text(
    log.rstrip("\n")
  )  # a file of an editor
  assert len(run_logs.read(str(tmp_path)).records) == len(log.splitlines())


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{}", "it has no step"),
    ('{"loss": 1.0}', "it has no step"),
    ('{"step": null}', "its step is None, not a whole number"),
    ('{"step": "abc"}', "its step is 'abc', not a whole number"),
    ('{"step": true}', "its step is True, not a whole number"),
    ('{"step": -1}', "its step is -1, not a whole number"),
    ('{"step": 6, "loss": "high"}', "loss is 'high', not a number"),
    ('{"step": 3, "loss": {"a": 1}}', "loss is {'a': 1}, not a number"),
    ("[1]", r"it is \[1\], not a step"),
    ('{"step": 3, "lo', "Unterminated string"),
    ("[" * 100_000, "recursion"),
  ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line: str, message: str):
  log = tmp_path / "metrics.jsonl"
  record = '{"step": 1, "loss": 1.0}\n'
  error = rf"{log} line 2 is not a record of this project \(.*{message}.*\): "
  # A complete last line is checked like any other.
  for rest in ("", record):
    log.write_text(record + line + "\n" + rest)
    with pytest.raises(ConfigError, match=error) as raised:
      run_logs.read(str(tmp_path))
    assert "remove this line, not the file" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_values_that_are_not_finite_are_gaps(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(
    '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1e400}\n'
    f'{{"step": 3, "loss": 1{"0" * 400}}}\n{{"step": 4, "loss": null}}\n'
    '{"step": 5, "loss": 2}\n'
  )
  found = run_logs.read(str(tmp_path))
  assert found.series("loss") == ([1, 2, 3, 4, 5], [None] * 4 + [2.0])


def test_a_directory_without_a_run_is_described(tmp_path):
  def message() -> str:
    with pytest.raises(ConfigError) as raised:
      run_logs.read(str(tmp_path))
    return str(raised.value).removeprefix(f"--workdir={tmp_path} ")

  assert message().startswith("has no metrics.jsonl")
  (tmp_path / "evaluation.json").write_text("{}")
  assert "evaluation.json is damaged: evaluate again" in message()
  for torn in ("", "\n", '{"step": 1, "lo'):
    (tmp_path / "metrics.jsonl").write_text(torn)
    assert message().startswith("has not logged a step yet")


def test_names_are_short_and_differ():
  assert page.short_names(["a/b"]) == ["b"]
  assert page.short_names(["a/b", "c/b", "c/d"]) == ["a/b", "c/b", "c/d"]
  assert page.short_names(["r/x", "r/y"]) == ["x", "y"]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("--workdir=/nowhere",), "--workdir=/nowhere: there is no such directory"),
    (("--workdir=README.md",), "--workdir=README.md is a file: give the"),
    (("--workdir=a,",), "--workdir=a, has an empty name in its list"),
    (("--workdir=",), "--workdir= has an empty name: name the directory"),
    (("--workdir=a,a/",), "names a run twice"),
    (("--workdir=a", "--recipe=/none.py"), "recipe /none.py is not a file"),
    (("--workdir=a", "--out=x.pdf"), "does not end in .html"),
    (("--workdir=a", "--look_at=-1"), "--look_at=-1 must be at least 0"),
  ],
)
def test_mistakes_are_one_line(flags, message: str, tmp_path):
  found = commands.command("report", f"--out={tmp_path}/r.html", *flags)
  assert found.returncode == 1
  assert message in found.stderr
  assert found.stderr.count("\n") == 1
  assert not (tmp_path / "r.html").exists()
