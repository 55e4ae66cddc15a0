"""Weights are read from the Hub and pushed to it, by a stand-in on loopback."""

from __future__ import annotations

import os
import pathlib
import sys

import numpy as np
import pytest
import torch

from mae_jax import checkpoints, conversion
from mae_jax.conversion import (
  export_weights,
  formats,
  hub,
  load,
  model_card,
  provenance,
)
from mae_jax.tools import convert
from mae_jax.utils.errors import ConfigError
from tests.conversion import test_round_trips
from tests.helpers import (
  commands,
  fake_hub,
  model_outputs,
  runs,
  sample_checkpoints,
)

REPO = "lab/vit"
CARD = b"---\nlicense: cc-by-nc-4.0\n---\n# Theirs\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A masked autoencoder in transformers' format, with its checkpoint."""
  root = tmp_path_factory.mktemp("hub")
  start = sample_checkpoints.save(root / "start", "mae")
  convert.convert(str(start), str(root / "hf"), to="transformers")
  return root / "hf"


@pytest.fixture
def server(folder: pathlib.Path, tmp_path, monkeypatch):
  """A Hub with this network, and an empty cache."""
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", tmp_path / "c")
  hub._download.cache_clear()
  with fake_hub.serving() as found:
    monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
    found.repos[REPO] = read(folder) | {
      "README.md": CARD,
      "pytorch_model.bin": b"a pickle",
      "old/model.safetensors": b"other weights",
    }
    yield found
  hub._download.cache_clear()


def read(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_use_reads_a_repository(server, folder, tmp_path):
  start = folder.parent / "start"
  path = f"hf://{REPO}"
  assert formats.is_foreign(path)
  found = conversion.locate(path)
  assert sorted(x.name for x in found.iterdir()) == [
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
  ]
  run = conversion.read_metadata(path)
  before = checkpoints.read_metadata(start)
  assert run.config.data == before.config.data
  for each in (path, found):  # the local copy is known too
    params, again = conversion.load_any(each, runs.devices_mesh())
    assert again.origin["source"] == f"hf://{REPO}@{server.sha(REPO)}"
    assert again.origin["license"] == "cc-by-nc-4.0"
  token = params["model"]["encoder"]["cls_token"]
  wanted = test_round_trips.arrays(start)
  np.testing.assert_array_equal(token, wanted["model/encoder/cls_token"])
  out = test_round_trips.run(path, tmp_path / "out", "jax")
  test_round_trips.assert_same(test_round_trips.arrays(out), wanted)
  assert not [x for x in server.requests if ".bin" in x or "/old/" in x]


def test_cards(server):
  assert hub.read_card(f"hf://{REPO}") == CARD.decode()
  server.repos["lab/plain"] = {"model.safetensors": b""}
  assert hub.read_card("hf://lab/plain") == ""
  with pytest.raises(ConfigError, match="no such repository"):
    hub.read_card("hf://lab/none")


def test_it_is_downloaded_once(server):
  conversion.locate(f"hf://{REPO}")
  count = len(server.requests)
  conversion.locate(f"hf://{REPO}")
  assert len(server.requests) == count


@pytest.mark.parametrize("revision", ["", "@main", "@{sha}"])
def test_a_file_and_a_folder(revision: str, server, folder):
  files = server.repos[REPO]
  for name in ("config.json", "model.safetensors"):
    files[f"nested/deep/{name}"] = files[name]
  path = f"hf://{REPO}{revision.format(sha=server.sha(REPO))}"
  for inside in ("nested/deep", "nested/deep/"):
    found = formats.locate(f"{path}/{inside}")
    assert sorted(x.name for x in found.iterdir()) == [
      "config.json",
      "model.safetensors",
    ]
  file = formats.locate(f"{path}/nested/deep/model.safetensors")
  # The cache has a link to a file without an ending.
  assert file.name == "model.safetensors"
  assert file.read_bytes() == (folder / file.name).read_bytes()
  assert formats.is_foreign(file)
  with formats.local_copy(file) as local:
    assert load.formats.open_tensors(local).shapes


def test_a_repository_with_one_file_and_no_config(server, tmp_path):
  start = sample_checkpoints.save(tmp_path / "cls", "cls")
  out = test_round_trips.run(start, tmp_path / "x.safetensors", "timm")
  server.repos["lab/plain"] = {"vit.safetensors": out.read_bytes()}
  end = test_round_trips.run("hf://lab/plain", tmp_path / "end", "jax")
  test_round_trips.assert_same(
    test_round_trips.arrays(end), test_round_trips.arrays(start)
  )
  origin = checkpoints.read_metadata(end).origin
  assert origin["license"] == "unknown"
  server.repos["lab/plain"]["other.safetensors"] = b""
  hub._download.cache_clear()
  with pytest.raises(ConfigError, match=r"has the files other.safetensors, vi"):
    conversion.locate("hf://lab/plain")


def error(path: str) -> str:
  with pytest.raises(ConfigError) as caught:
    conversion.locate(path)
  assert "\n" not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize(
  "path",
  [
    *("hf://", "hf://vit", "hf://lab/vit@", "hf://datasets/lab/vit"),
    *("hf://lab/vit/../../x", "hf://lab/v it", "hf://lab/vit@main/../x"),
  ],
)
def test_malformed_paths(path: str):
  assert "write hf://ORG/NAME, hf://ORG/NAME@REVISION or" in error(path)


def test_what_the_hub_refuses(server):
  assert "hf auth login, or set HF_TOKEN" in error("hf://lab/none")
  server.refused["lab/terms"] = (403, "GatedRepo")
  assert "is gated: accept its terms on its page" in error("hf://lab/terms")
  assert "has no such revision" in error(f"hf://{REPO}@v9")
  assert "no such file" in error(f"hf://{REPO}/none.safetensors")
  assert "is a pickle" in error(f"hf://{REPO}/pytorch_model.bin")
  server.repos["lab/pickles"] = {"config.json": b"{}", "x.bin": b""}
  assert "has no .safetensors file, and pickles" in error("hf://lab/pickles")
  server.refused["lab/down"] = (500, "")
  assert "the Hub answers with status 500: try again" in error("hf://lab/down")


def test_nobody_answers(server, monkeypatch):
  monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
  text = error(f"hf://{REPO}")
  assert text == (
    f"hf://{REPO} is not completely in the local cache, and the Hub cannot be "
    "reached: check the network, or name a local folder"
  )


def test_without_a_network(server, monkeypatch):
  before = conversion.locate(f"hf://{REPO}")
  hub._download.cache_clear()
  server.refused[REPO] = (503, "")
  assert conversion.locate(f"hf://{REPO}") == before  # from the cache
  assert hub.source(f"hf://{REPO}")["license"] == "cc-by-nc-4.0"
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
  text = error("hf://lab/other")
  assert "HF_HUB_OFFLINE is set: unset it, or name a local folder" in text


@pytest.mark.slow
def test_commands_offline(folder: pathlib.Path, tmp_path: pathlib.Path):
  """Reads a prepared cache in another process, without any network."""
  commit = "0123456789" * 4
  root = tmp_path / "models--lab--vit"
  snapshot = root / "snapshots" / commit
  snapshot.mkdir(parents=True)
  (root / "refs").mkdir()
  (root / "refs" / "main").write_text(commit)
  for path in folder.iterdir():
    os.link(path, snapshot / path.name)
  (snapshot / "README.md").write_bytes(CARD)
  environ = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
  done = commands.python(
    *("-m", "mae_jax", "convert", "--inspect", f"hf://{REPO}"), environ=environ
  )
  assert done.returncode == 0, done.stderr
  assert "encoder and decoder" in done.stdout
  assert "cropped to 0.9 of the sides" in done.stdout
  assert f"source         hf://{REPO}@{commit}" in done.stdout
  assert "license        cc-by-nc-4.0" in done.stdout
  done = commands.python(
    *("-m", "mae_jax", "convert", "--to=jax", "hf://lab/none", tmp_path / "x"),
    environ=environ,
  )
  assert done.returncode != 0
  assert "HF_HUB_OFFLINE is set" in done.stderr
  assert "Traceback" not in done.stderr


def test_the_library_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  assert "pip install 'mae_jax[hf]'" in error("hf://lab/vit")


def test_weights_go_out_to_a_folder_first(folder, tmp_path):
  with pytest.raises(ConfigError, match="is on the Hub: write to a local"):
    convert.convert(str(folder), "hf://lab/new", to="transformers")


def test_push(server, folder, tmp_path):
  out = tmp_path / "out"
  test_round_trips.run(folder, out, "transformers")
  (out / "README.md").unlink()
  with pytest.raises(ConfigError, match=r"has no README.md: write a model car"):
    hub.push(out, "lab/new", endpoint=server.endpoint)
  (out / "README.md").write_bytes(CARD)
  (out / "notes.txt").write_text("stays here")
  url = hub.push(
    out, "lab/new", token="hf_x", commit_message="Add", revision="v1"
  )
  assert url == f"{server.endpoint}/lab/new"
  assert server.branches == ["v1"]
  assert server.commits[0]["summary"] == "Add"
  files = read(out)
  del files["notes.txt"]
  assert server.repos["lab/new"] == files
  back = test_round_trips.run("hf://lab/new", tmp_path / "end", "jax")
  test_round_trips.assert_same(
    test_round_trips.arrays(back),
    test_round_trips.arrays(folder.parent / "start"),
  )


def test_what_is_pushed_is_read_by_other_libraries(
  server, tmp_path, monkeypatch
):
  """Loads pushed folders by name with timm and transformers."""
  import timm
  import transformers

  x, pixels = model_outputs.images()
  start = sample_checkpoints.save(tmp_path / "start", "cls")
  models = {}
  for to in ("timm", "transformers"):
    out = test_round_trips.run(start, tmp_path / to, to)
    weights = load.open_weights(start)
    made = export_weights.make_card(weights, to, repo_id=f"lab/{to}")
    (out / "README.md").write_text(model_card.write(made))
    hub.push(out, f"lab/{to}", token="hf_x")
    conversion.locate(f"hf://lab/{to}")  # into the cache
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
  models["timm"] = timm.create_model("hf-hub:lab/timm", pretrained=True)
  models["transformers"] = (
    transformers.ViTForImageClassification.from_pretrained("lab/transformers")
  )
  wanted = model_outputs.logits(start, x)
  for model in models.values():
    with torch.no_grad():
      found = model.eval()(pixels)
    found = getattr(found, "logits", found).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_nothing_is_pushed_offline(folder, monkeypatch):
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
  (folder / "README.md").write_text("---\nlicense: mit\n---\n")
  with pytest.raises(ConfigError, match="be written, as HF_HUB_OFFLINE is set"):
    hub.push(folder, "lab/new", token="hf_x")


def test_what_cannot_be_pushed(server, folder, tmp_path):
  def refused(text: str, repo: str = "lab/new") -> None:
    with pytest.raises(ConfigError, match=text) as caught:
      hub.push(tmp_path, repo, token="hf_x", endpoint=server.endpoint)
    assert "\n" not in str(caught.value)

  refused("is not a folder with .safetensors files")
  for path in folder.iterdir():
    os.link(path, tmp_path / path.name)
  (tmp_path / "README.md").write_text("---\nlicense: unknown\n---\n")
  refused("of an unknown license: find the license")
  (tmp_path / "README.md").write_text("---\ntags: []\n---\n")
  server.refused["lab/new"] = (403, "")
  refused(r"the Hub refuses access \(403\): log in with hf auth login")
  refused("is not a path on the Hub", "lab/a b")


@pytest.mark.slow
def test_the_source_is_kept(server, folder, tmp_path):
  """Conversions and runs keep the license of the first weights."""
  out = test_round_trips.run(f"hf://{REPO}", tmp_path / "a.pth", "facebook")
  back = test_round_trips.run(out, tmp_path / "b", "jax")
  origin = provenance.trace(checkpoints.read_metadata(back))
  assert origin == {
    "source": f"hf://{REPO}@{server.sha(REPO)}",
    "license": "cc-by-nc-4.0",
  }
  for number, (start, wanted) in enumerate(
    (
      ("", {"source": "scratch"}),
      (str(back), origin),
      (f"hf://{REPO}", {"source": f"hf://{REPO}", "license": "cc-by-nc-4.0"}),
      (str(tmp_path / "none"), {"source": "", "license": "unknown"}),
      (
        str(tmp_path / "mae_pretrain_vit_base.pth"),
        {
          "source": "https://github.com/facebookresearch/mae",
          "license": "cc-by-nc-4.0",
        },
      ),
    )
  ):
    run = sample_checkpoints.save(
      tmp_path / f"run{number}", "cls", init_from=start
    )
    assert provenance.trace(checkpoints.read_metadata(run)) == wanted
    # A file without the run's folder still knows it.
    test_round_trips.run(run, tmp_path / f"{number}.safetensors", "timm")
    end = test_round_trips.run(
      tmp_path / f"{number}.safetensors", tmp_path / f"end{number}", "jax"
    )
    assert provenance.trace(checkpoints.read_metadata(end)) == wanted
