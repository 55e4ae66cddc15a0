"""Damaged or unsuitable weights raise a one-line error or add a note.

Files are damaged on purpose: nothing is dropped, executed or guessed.
"""

from __future__ import annotations

import argparse
import contextlib
import fractions
import io
import json
import os
import pathlib
import pickle
import shutil
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mae_jax
from mae_jax import checkpoints
from mae_jax.config import ObjectiveConfig
from mae_jax.conversion import tensor_files
from mae_jax.models import factory
from mae_jax.tools import convert
from mae_jax.utils import atomic_write, errors
from mae_jax.utils.errors import ConfigError
from tests.conversion import test_outputs
from tests.helpers import (
  disks,
  facebook_model,
  model_outputs,
  sample_checkpoints,
)
from tests.helpers.commands import python

SUFFIX = {"facebook": ".pth", "timm": ".safetensors"}
HEADS = {"heads": 4, "decoder_heads": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """One file of each kind and format."""
  root = tmp_path_factory.mktemp("files")
  for kind in sample_checkpoints.KINDS:
    start = sample_checkpoints.save(root / kind, kind)
    convert.convert(str(start), str(root / f"{kind}.pth"), to="facebook")
  for kind in ("mae", "cls", "encoder"):
    out = str(root / f"{kind}_hf")
    convert.convert(str(root / kind), out, to="transformers")
  convert.convert(str(root / "mean"), str(root / "mean.safetensors"), to="timm")
  return root


def refused(source: Any, tmp_path: pathlib.Path, text: str, **flags: Any):
  """Checks that conversion fails with one line and leaves nothing behind."""
  flags = {"to": "jax"} | flags
  before = sorted(tmp_path.rglob("*"))
  out = tmp_path / f"out{SUFFIX.get(flags['to'], '')}"
  with pytest.raises(ConfigError, match=text) as caught:
    convert.convert(str(source), str(out), **flags)
  assert "\n" not in str(caught.value)
  assert sorted(tmp_path.rglob("*")) == before
  return str(caught.value)


def state(kind: str, **changes: Any) -> dict[str, torch.Tensor]:
  """Returns a published file's tensors with changes; None removes a tensor."""
  model = facebook_model.randomize(facebook_model.MODELS[kind]())
  if kind in ("encoder", "mae", "raw"):
    test_outputs.set_tables(model)
  found = model.state_dict() | changes
  return {name: value for name, value in found.items() if value is not None}


def write(path: pathlib.Path, **content: Any) -> pathlib.Path:
  torch.save(content, path)
  return path


def test_missing_and_extra_tensors_and_shapes(tmp_path: pathlib.Path):
  changes = {
    "blocks.1.mlp.fc2.bias": None,
    "blocks.0.extra": torch.ones(48),
    "norm.weight": torch.ones(47),
  }
  file = write(tmp_path / "x.pth", model=state("encoder", **changes))
  text = refused(
    file, tmp_path, r"does not match the format facebook \(encoder", heads=4
  )
  assert "blocks.0.extra is unexpected" in text
  assert "blocks.1.mlp.fc2.bias is missing" in text
  assert "norm.weight is (47,), not (48,)" in text


def test_half_a_decoder(tmp_path: pathlib.Path):
  file = write(
    tmp_path / "x.pth", model=state("mae", **{"decoder_pred.bias": None})
  )
  refused(file, tmp_path, "decoder_pred.bias is missing", target="raw", **HEADS)


def test_tensors_that_are_no_plain_arrays(tmp_path: pathlib.Path):
  name = "blocks.0.attn.qkv.weight"
  weight = state("encoder")[name]
  for value, text in (
    (weight.to_sparse(), "of type sparse_coo; supported are"),
    (torch.empty(weight.shape, device="meta"), "of type meta; supported are"),
    (weight[:0], rf"{name} has shape \(0, 48\) and thus no values"),
  ):
    file = write(tmp_path / "x.pth", model=state("encoder", **{name: value}))
    refused(file, tmp_path, text, heads=4)


@pytest.mark.parametrize("to", ["facebook", "timm"])
def test_values_that_a_type_does_not_hold(to: str, tmp_path: pathlib.Path):
  large = {"norm.weight": torch.full((48,), 1e6)}
  file = write(tmp_path / "x.pth", model=state("encoder", **large))
  text = r"norm.weight has values up to 1e\+06, which float16 cannot hold"
  refused(file, tmp_path, text, heads=4, to=to, dtype="float16")
  large = {"norm.weight": torch.full((48,), 1e300, dtype=torch.float64)}
  file = write(tmp_path / "x.pth", model=state("encoder", **large))
  refused(file, tmp_path, "48 values of 48 that are NaN or", heads=4, to=to)


def test_other_networks_in_the_file_are_told(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
  """Averages beside the weights are reported; wrappers' prefixes removed."""
  found = {f"module._orig_mod.{k}": x for k, x in state("encoder").items()}
  file = write(
    tmp_path / "x.pth", model=found, model_ema=found, optimizer={"state": {}}
  )
  convert.convert(str(file), str(tmp_path / "a"), to="jax", heads=4)
  told = capsys.readouterr().out
  assert "- left out: 'model_ema', other values of 30 of these tensors" in told
  assert "optimizer" not in told


def test_another_kind_of_network(tmp_path: pathlib.Path):
  resnet = {"conv1.weight": torch.ones(3), "layer1.0.conv": torch.ones(3)}
  file = write(tmp_path / "x.pth", model=resnet)
  refused(file, tmp_path, r"has no tensor cls_token, .* \(it has conv1.weight,")
  file = write(tmp_path / "y.pth", model={"cls_token": torch.ones(2, 3)})
  refused(file, tmp_path, r"cls_token has shape \(2, 3\) instead of 3")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_finite(value: float, dtype, tmp_path: pathlib.Path):
  broken = state("encoder")
  broken["blocks.1.attn.qkv.weight"][3, 5] = value
  broken = {name: x.to(dtype) for name, x in broken.items()}
  file = write(tmp_path / "x.pth", model=broken)
  refused(
    file,
    tmp_path,
    "blocks.1.attn.qkv.weight has 1 values of 6912 that are NaN or infinite",
    heads=4,
  )


@pytest.mark.parametrize("name", ["mae.pth", "mean.safetensors", "mae_hf"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_truncated(
  root: pathlib.Path, name: str, kept: float, tmp_path: pathlib.Path
):
  source = tmp_path / name
  if name == "mae_hf":
    shutil.copytree(root / name, source)
    file = source / "model.safetensors"
  else:
    shutil.copy(root / name, source)
    file = source
  os.truncate(file, int(kept * file.stat().st_size))
  refused(
    source, tmp_path, r"is not a complete .*truncated; download or write it"
  )


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.npz"])
def test_what_git_and_browsers_fetch(name: str, tmp_path: pathlib.Path):
  file = tmp_path / name
  file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")
  refused(
    file, tmp_path, "a Git LFS pointer, .*: download the file with git lfs"
  )
  file.write_text("<!DOCTYPE html><html>")
  text = "is not a complete .*truncated.*; download or write it"
  assert "unsafe" not in refused(file, tmp_path, text)


def test_flipped_bits_of_a_pickle(tmp_path: pathlib.Path):
  """Each error is one line, whatever PyTorch raises."""
  file = tmp_path / "x.pth"
  torch.save({"model": state("encoder")}, file)
  data, draws = file.read_bytes(), np.random.default_rng(0)
  lines = []
  for _ in range(40):
    damaged = bytearray(data)
    for place in draws.integers(0, 3000, 3):
      damaged[place] = draws.integers(256)
    file.write_bytes(damaged)
    try:
      convert.convert(str(file), inspect=True, heads=4)
    except ConfigError as error:
      lines.append(str(error))
  assert lines
  assert "\n" not in "".join(lines)


def test_flipped_bits_of_a_header(root: pathlib.Path, tmp_path: pathlib.Path):
  data = bytearray((root / "mean.safetensors").read_bytes())
  data[20] ^= 0xFF
  (tmp_path / "x.safetensors").write_bytes(data)
  refused(
    tmp_path / "x.safetensors", tmp_path, "is not a complete .safetensors"
  )


class _Program:
  """An object whose unpickling runs a program."""

  def __init__(self, path: pathlib.Path):
    self._path = path

  def __reduce__(self):
    return os.system, (f"touch {self._path}",)


@pytest.mark.parametrize("where", ["model", "args", "alone", "plain"])
def test_a_pickle_with_code_does_not_run(where: str, tmp_path: pathlib.Path):
  trap = tmp_path / "ran"
  file = tmp_path / "x.pth"
  if where == "plain":  # not an archive, as before PyTorch 1.6
    file.write_bytes(pickle.dumps({"model": _Program(trap)}))
  else:
    content: Any = {"model": state("encoder"), "args": argparse.Namespace()}
    if where == "model":
      content["model"]["x"] = _Program(trap)
    elif where == "args":
      content["args"].model = _Program(trap)
    else:
      content = _Program(trap)
    torch.save(content, file)
  text = refused(file, tmp_path, "neither a tensor nor a plain value", heads=4)
  assert "system" in text or where == "plain"
  assert not trap.exists()
  # The program does run without weights_only.
  if where != "plain":
    torch.load(file, weights_only=False)
    assert trap.exists()


def test_the_arguments_of_the_reference_are_read(tmp_path: pathlib.Path):
  """Only argparse.Namespace is allowed."""
  args = argparse.Namespace(norm_pix_loss=False, mask_ratio=0.5, output="x")
  file = write(tmp_path / "x.pth", model=state("mae"), args=args, epoch=3)
  convert.convert(str(file), str(tmp_path / "a"), to="jax", **HEADS)
  objective = checkpoints.read_metadata(tmp_path / "a").config.objective
  assert objective == ObjectiveConfig(mask_ratio=0.5, target="raw")
  args.output = fractions.Fraction(1, 3)
  other = write(tmp_path / "y.pth", model=state("mae"), args=args)
  refused(other, tmp_path, "contains fractions.Fraction, which is neither")


def test_pipes_and_devices_are_no_weights(tmp_path: pathlib.Path):
  os.mkfifo(tmp_path / "x.pth")
  text = "is a pipe or a device, not a file of weights"
  for source in (tmp_path / "x.pth", "/dev/zero"):
    refused(source, tmp_path, text)


def test_names_of_tensors_do_not_reach_the_terminal_raw(tmp_path):
  hostile = {"\x1b]0;title\x07\x9b2J": torch.ones(48)}
  file = write(tmp_path / "x.pth", model=state("encoder", **hostile))
  with pytest.raises(ConfigError) as caught:
    convert.convert(str(file), str(tmp_path / "a"), to="jax", heads=4)
  line = errors.explain(caught.value)
  assert r"\x1b]0;title\x07\x9b2J is unexpected" in line
  assert line.isprintable()


def test_what_is_no_weights(tmp_path: pathlib.Path):
  file = write(tmp_path / "x.pth", model={"cls_token": 3})
  refused(file, tmp_path, "has 'cls_token' of type int among its weights")
  torch.save([1, 2], file)
  refused(file, tmp_path, "contains a list, not named tensors")
  quantized = {"cls_token": torch.zeros(1, 1, 48, dtype=torch.int8)}
  file = write(tmp_path / "y.pth", model=state("encoder", **quantized))
  refused(file, tmp_path, "has tensors of type I8; supported are F64", heads=4)


def test_a_fixed_table_that_is_not_stored(tmp_path: pathlib.Path):
  """Buffers of PyTorch that are not persistent are not stored."""
  missing = {"decoder_pos_embed": None}
  file = write(tmp_path / "x.pth", model=state("raw", **missing))
  flags = HEADS | {"target": "raw"}
  text = "decoder_pos_embed is missing: convert with --positions=sincos if"
  refused(file, tmp_path, text, **flags)
  out = tmp_path / "a"
  convert.convert(str(file), str(out), to="jax", positions="sincos", **flags)
  assert "model/decoder/pos_embed" not in checkpoints.ArrayReader(out).shapes


def test_what_only_a_person_knows(tmp_path: pathlib.Path):
  file = write(tmp_path / "x.pth", model=state("mae"))
  flags: dict[str, Any] = {}
  for text, more in (
    (
      "number of attention heads, .* width 48 and 2 .* --heads",
      {"heads": 4},
    ),
    (
      "the decoder's attention heads, .* --decoder_heads",
      {"decoder_heads": 2},
    ),
    (
      "the target of its decoder: convert .* --target=norm_pix",
      {"target": "raw"},
    ),
  ):
    refused(file, tmp_path, text, **flags)
    flags |= more
  convert.convert(str(file), str(tmp_path / "a"), to="jax", **flags)
  # Pixel normalization is assumed for the reference's files, not for timm's.
  timm = tmp_path / "x.safetensors"
  save_file(state("encoder"), timm)
  refused(
    timm,
    tmp_path,
    "the normalization of pixels: convert .* --mean",
    heads=4,
  )


def test_sizes_that_are_not_square(tmp_path: pathlib.Path):
  positions = torch.randn(1, 1 + 3 * 4, 48)
  file = write(tmp_path / "x.pth", model=state("encoder", pos_embed=positions))
  refused(file, tmp_path, "height and width of its images, .* not", heads=4)
  size = {"image_size": (18, 30)}
  refused(file, tmp_path, r"pos_embed is \(1, 13, 48\), but", heads=4, **size)
  convert.convert(
    str(file), str(tmp_path / "a"), to="jax", heads=4, image_size=(18, 24)
  )


def test_weights_that_are_in_pieces(tmp_path: pathlib.Path):
  """Refuses those of FSDP, DeepSpeed's stage 3 and LoRA."""
  text = "gather the weights first"
  flat = {"module._flat_param": torch.ones(99)}
  file = write(tmp_path / "x.pth", model=flat)
  refused(file, tmp_path, rf"_flat_param .*{text}")
  empty = {name: torch.empty(0) for name in state("encoder")}
  refused(write(tmp_path / "x.pth", module=empty), tmp_path, text)
  lora = {"blocks.0.attn.qkv.lora_A.default.weight": torch.ones(4, 48)}
  file = write(tmp_path / "x.pth", model=state("encoder", **lora))
  refused(file, tmp_path, "has LoRA adapters that merge_and_unload")


def test_folders_of_other_programs(root: pathlib.Path, tmp_path: pathlib.Path):
  """A way out is a file, or the file that is missing."""
  file = write(tmp_path / "epoch=1.ckpt", state_dict=state("encoder"))
  folder = tmp_path / "run"
  for place in (folder, folder / "checkpoints"):  # the latter of Lightning
    place.mkdir(parents=True)
    shutil.copy(file, place)
    refused(folder, tmp_path, f"name a file, such as {place / file.name}")
    (place / file.name).unlink()
  (folder / "__0_0.distcp").touch()  # of torch.distributed.checkpoint
  text = "there is no checkpoint in"
  refused(folder, tmp_path, text)
  with pytest.raises(ConfigError, match=text):
    mae_jax.from_pretrained(folder, heads=4)
  shutil.copy(root / "mae_hf" / "config.json", folder)
  (folder / "model.fp16.safetensors").touch()
  refused(folder, tmp_path, r"\(it has .*config.json, model.fp16.safetensors\)")


def test_archives_and_programs_are_no_weights(tmp_path: pathlib.Path):
  file = write(tmp_path / "x.pth", model=state("encoder"))
  text = "is an archive of other files: unpack it"
  for kind in ("zip", "tar"):
    out = shutil.make_archive(str(tmp_path / "a"), kind, tmp_path, file.name)
    refused(os.rename(out, file) or file, tmp_path, text)
    write(file, model=state("encoder"))
  with zipfile.ZipFile(file, "w") as archive:  # as torch.jit.save
    archive.writestr("x/data.pkl", b"")
    archive.writestr("x/constants.pkl", b"")
  refused(file, tmp_path, "is a TorchScript program, not a file of weights")
  arrays = {k: x.numpy() for k, x in state("encoder").items()}
  write(file, model=arrays)
  refused(file, tmp_path, "has 'cls_token' of type numpy.ndarray among")


def test_heads_that_do_not_divide(tmp_path: pathlib.Path):
  file = write(tmp_path / "x.pth", model=state("encoder"))
  refused(file, tmp_path, "model.heads=5 does not divide", heads=5)


def test_zero_positions_of_transformers(tmp_path: pathlib.Path, capsys):
  """A new model of transformers 5 has position tables of zeros."""
  model = test_outputs.transformers_autoencoder()
  model.save_pretrained(tmp_path / "a")
  path = tmp_path / "a" / "model.safetensors"
  zeros = {
    name: torch.zeros_like(x) if "pos" in name and "embed" in name else x
    for name, x in load_file(path).items()
  }
  zeros["decoder.decoder_pos_embed"] = torch.zeros(1, 17, 32)
  zeros["vit.embeddings.position_embeddings"] = torch.zeros(1, 17, 48)
  save_file(zeros, path, {"format": "pt"})
  pixels = {"mean": (0.5,), "std": (0.25,)}
  refused(tmp_path / "a", tmp_path, "is all zeros, .*ons=keep", **pixels)
  convert.convert(str(tmp_path / "a"), inspect=True, **pixels)
  told = capsys.readouterr().out
  assert told.count("asked for") == 2, told
  assert "decoder_pos_embed is all zeros" in told
  for choice in ("keep", "sincos"):
    out = tmp_path / choice
    convert.convert(
      str(tmp_path / "a"), str(out), to="jax", positions=choice, **pixels
    )
  x, _ = model_outputs.images()
  wanted = test_outputs.transformers_outputs(model, "mae")
  draw = model_outputs.noise()
  np.testing.assert_allclose(
    model_outputs.predictions(tmp_path / "sincos", x, draw)[0], wanted, 0, 1e-5
  )
  zeroed = type(model).from_pretrained(
    tmp_path / "a", attn_implementation="eager"
  )
  wanted = test_outputs.transformers_outputs(zeroed.eval(), "mae")
  back = tmp_path / "back"
  convert.convert(str(tmp_path / "keep"), str(back), to="transformers")
  found = load_file(back / "model.safetensors")
  assert not found["decoder.decoder_pos_embed"].any()
  assert not found["vit.embeddings.position_embeddings"].any()
  assert np.isfinite(wanted).all()


def test_zero_positions_of_a_classifier(tmp_path: pathlib.Path):
  zeros = {"pos_embed": torch.zeros(1, 17, 48)}
  file = write(tmp_path / "x.pth", model=state("mean", **zeros))
  text = refused(file, tmp_path, "is all zeros, .*--positions=keep", heads=4)
  assert "sincos" not in text


def test_the_eps_of_transformers_is_kept_or_corrected(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
  model = test_outputs.transformers_classifier()
  assert model.config.layer_norm_eps == 1e-12
  model.save_pretrained(tmp_path / "a")
  pixels = {"mean": (0.5,), "std": (0.25,)}
  for flags, eps in (({}, 1e-12), ({"norm_eps": 1e-6}, 1e-6)):
    out = tmp_path / str(eps)
    convert.convert(str(tmp_path / "a"), str(out), to="jax", **pixels, **flags)
    assert checkpoints.read_metadata(out).config.model.norm_eps == eps
  capsys.readouterr()
  convert.convert(
    str(tmp_path / "1e-12"), str(tmp_path / "x.safetensors"), to="timm"
  )
  told = capsys.readouterr().out
  assert "LayerNorm's eps is 1e-12, which timm does not read" in told
  assert "norm_layer=partial(torch.nn.LayerNorm, eps=1e-12)" in told


def test_what_is_left_out_is_told(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
  model = test_outputs.transformers_classifier(qkv_bias=False).vit
  model.save_pretrained(tmp_path / "a")
  pixels = {"mean": (0.5,), "std": (0.25,)}
  convert.convert(str(tmp_path / "a"), str(tmp_path / "b"), to="jax", **pixels)
  told = capsys.readouterr().out
  if any("pooler" in name for name in model.state_dict()):
    assert "- not needed: the pooler, which a MAE does not have (2 tens" in told
  assert "6 missing biases of queries, keys and values" in told
  x, _ = model_outputs.images()
  wanted = test_outputs.transformers_outputs(model, "encoder")
  np.testing.assert_allclose(
    model_outputs.tokens(tmp_path / "b", x), wanted, 0, 1e-5
  )


@pytest.mark.parametrize(
  ("change", "text"),
  [
    (
      {"model_type": "deit"},
      "has model_type='deit'; supported are vit_mae, vit, beit",
    ),
    ({"hidden_act": "mish"}, "has hidden_act='mish'; supported are gelu"),
    ({"num_attention_heads": 7}, "model.heads=7 does not divide model.width"),
    ({"layer_norm_eps": None}, "has layer_norm_eps=None, which is not a num"),
    ({"image_size": [24]}, r"has image_size=\[24\], which is not one number"),
    (
      {"model_type": "beit", "use_mean_pooling": True},
      "has use_absolute_position_embeddings=None; of BEiT only",
    ),
    ({"image_size": 30}, r"position_embeddings is \(1, 17, 48\), but images"),
  ],
)
def test_a_config_that_does_not_fit(
  root: pathlib.Path, change: dict, text: str, tmp_path: pathlib.Path
):
  shutil.copytree(root / "mae_hf", tmp_path / "a")
  file = tmp_path / "a" / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  refused(tmp_path / "a", tmp_path, text)


@pytest.mark.parametrize(
  ("change", "pixels"),
  [
    ({"image_mean": 0.5, "image_std": [0.25]}, ((0.5,), (0.25,))),
    ({"do_normalize": False}, ((0.0,), (1.0,))),
    ({"image_mean": None}, "does not state the normalization of pixels"),
    (
      {"rescale_factor": 1 / 127.5},
      "does not state the normalization of pixels",
    ),
    ({"image_std": ["x"]}, "has image_std=.'x'., which is not a number or a"),
  ],
)
def test_how_pixels_are_normalized(
  root: pathlib.Path, change: dict, pixels: Any, tmp_path: pathlib.Path
):
  test_outputs.transformers_autoencoder().save_pretrained(tmp_path / "a")
  told = (root / "mae_hf" / "preprocessor_config.json").read_text()
  file = tmp_path / "a" / "preprocessor_config.json"
  file.write_text(json.dumps(json.loads(told) | change))
  flags = {"positions": "sincos"}
  if isinstance(pixels, str):
    refused(tmp_path / "a", tmp_path, pixels, **flags)
    return
  convert.convert(str(tmp_path / "a"), str(tmp_path / "b"), to="jax", **flags)
  data = checkpoints.read_metadata(tmp_path / "b").config.data
  assert (data.mean, data.std) == pixels


def test_classes_of_which_only_some_have_names(
  root: pathlib.Path, tmp_path: pathlib.Path
):
  shutil.copytree(root / "cls_hf", tmp_path / "a")
  file = tmp_path / "a" / "config.json"
  content = json.loads(file.read_text())
  file.write_text(json.dumps(content | {"id2label": {"1": "dog"}}))
  convert.convert(str(tmp_path / "a"), str(tmp_path / "b"), to="jax")
  names = checkpoints.read_metadata(tmp_path / "b").class_names
  assert names == ("LABEL_0", "dog", "LABEL_2", "LABEL_3", "LABEL_4")
  file.write_text(json.dumps(content | {"id2label": ["dog"]}))
  refused(tmp_path / "a", tmp_path, r"id2label=\['dog'\], which is not an obj")


def test_an_index_of_parts(root: pathlib.Path, tmp_path: pathlib.Path):
  shutil.copytree(root / "mae_hf", tmp_path / "a")
  index = tmp_path / "a" / "model.safetensors.index.json"
  for content, text in (
    ("[]", "names no files of weights"),
    ('{"weight_map": ["x"]}', "has weight_map=.'x'., which is not an object"),
    ('{"weight_map": {"x": "b.safetensors"}}', "names b.safetensors, which is"),
    *(
      (json.dumps({"weight_map": {"x": name}}), "which is not a file beside it")
      for name in ("../b", "/b", ".", "..", "", "a\0b", "b/")
    ),
  ):
    index.write_text(content)
    refused(tmp_path / "a", tmp_path, text)


def test_a_config_of_timm_that_does_not_fit(
  root: pathlib.Path, tmp_path: pathlib.Path
):
  content = torch.load(root / "mean.pth", weights_only=False)["model"]
  save_file(content, tmp_path / "model.safetensors")
  for told, text in (
    ("{", "config.json is not JSON"),
    ('{"architecture": "x", "pretrained_cfg": 3}', "pretrained_cfg=3, which"),
    (
      '{"architecture": "x", "pretrained_cfg": {"std": "y"}}',
      "has std='y', which is not a number",
    ),
    (
      '{"architecture": "x", "label_names": ["y"]}',
      "has 1 label_names, but the head has 5 classes",
    ),
  ):
    (tmp_path / "config.json").write_text(told)
    refused(tmp_path / "model.safetensors", tmp_path, text, heads=4)


def test_a_directory_that_is_not_whole(
  root: pathlib.Path, tmp_path: pathlib.Path
):
  shutil.copytree(root / "mae_hf", tmp_path / "a")
  weights = (tmp_path / "a" / "model.safetensors").rename(tmp_path / "m")
  refused(tmp_path / "a", tmp_path, "a config.json but no model.safetensors")
  weights.rename(tmp_path / "a" / "model.safetensors")
  (tmp_path / "a" / "config.json").write_text("{")
  refused(tmp_path / "a", tmp_path, "config.json is not JSON")
  (tmp_path / "a" / "config.json").write_text("{}")
  refused(
    tmp_path / "a", tmp_path, "is neither from transformers .* nor from timm"
  )
  refused(
    tmp_path / "a" / "model.safetensors",
    tmp_path,
    "has transformers' tensor names, and needs the config.json of `save_pret",
  )


@pytest.mark.parametrize(
  ("source", "flags", "text"),
  [
    ("mean", {"encoder_only": True}, "fine-tuned with mean pooling has no"),
    ("mean.pth", {"encoder_only": True}, "fine-tuned with mean pooling has no"),
    ("none.pth", {}, "none.pth: there is no such file or folder"),
    ("none", {}, "none: there is no such file or folder"),
    ("mae", {"to": "torch"}, "--to=torch is not known: use jax or facebook or"),
    ("mae", {"from_": "onnx"}, "--from=onnx is not known: use jax"),
    ("mae", {"dtype": "int4"}, "--dtype=int4 is not known: use float32 or"),
    ("mae", {"dtype": "bfloat16"}, "--dtype=bfloat16: checkpoints of this"),
    ("mae", {"target": "pca"}, "--target=pca is not known: use norm_pix or"),
    (
      "cls",
      {"target": "raw"},
      "=raw describes a decoder, but the weights have",
    ),
    (
      "mae.pth",
      {"decoder_heads": 2, "encoder_only": True},
      "--decoder_heads=2 describes .* --encoder_only leaves it out",
    ),
    ("mae", {"positions": "no"}, "--positions=no is not known: use keep or"),
    ("mae", {"inspect": True}, "--inspect writes nothing: leave --to and OUT"),
    ("mae_hf", {"from_": "jax"}, "there is no checkpoint in"),
    ("mae_hf", {"from_": "facebook"}, "has no tensor cls_token"),
  ],
)
def test_wrong_flags(
  root: pathlib.Path, tmp_path: pathlib.Path, source, flags, text
):
  refused(root / source, tmp_path, text, **flags)


def test_probes_that_no_format_holds(tmp_path: pathlib.Path):
  start = sample_checkpoints.save(
    tmp_path / "a", "probe", classify={"pooling": "mean"}
  )
  text = "probe with classify.pooling=mean, which no other format can hold"
  refused(start, tmp_path, text, to="timm")


def test_rectangles_that_transformers_does_not_hold(tmp_path: pathlib.Path):
  data = sample_checkpoints.DATA | {"image_size": (18, 24)}
  start = sample_checkpoints.save(tmp_path / "a", "mae", data=data)
  refused(start, tmp_path, "ViTMAE square images", to="transformers")
  start = sample_checkpoints.save(tmp_path / "b", "mean", data=data)
  text = "averages its tokens .* with --to=timm, or .* --format=onnx"
  refused(start, tmp_path, text, to="transformers")


def test_places_that_cannot_be_written(
  root: pathlib.Path, tmp_path: pathlib.Path
):
  source = str(root / "mae")
  for out, to, text in (
    (tmp_path, "jax", "exists already: use another path, or remove it first"),
    (tmp_path / "x.bin", "facebook", r"does not end in .pth, .*: use .*x.pth"),
    (tmp_path / "x.pth", "timm", "does not end in .safetensors"),
    ("gs://bucket/x", "transformers", "is in a bucket, where only checkpoints"),
    ("/proc/x/y", "transformers", "cannot be made"),
    ("/proc/x.pth", "facebook", "/proc/x.pth cannot be written"),
  ):
    with pytest.raises(ConfigError, match=text):
      convert.convert(source, str(out), to=to)


@pytest.mark.parametrize("to", ["jax", "facebook", "transformers", "timm"])
def test_folders_made_in_vain_go_away(to: str, tmp_path: pathlib.Path):
  broken = {"norm.weight": torch.full((48,), float("nan"))}
  file = write(tmp_path / "x.pth", model=state("encoder", **broken))
  out = tmp_path / "a" / "b" / f"out{SUFFIX.get(to, '')}"
  with pytest.raises(ConfigError, match="NaN or infinite"):
    convert.convert(str(file), str(out), to=to, heads=4)
  assert list(tmp_path.iterdir()) == [file]
  write(file, model=state("encoder"))
  convert.convert(str(file), str(out), to=to, heads=4)
  assert out.exists()


@pytest.mark.parametrize("to", ["jax", "facebook", "transformers", "timm"])
def test_a_disk_that_fills_up(
  root: pathlib.Path, to: str, tmp_path: pathlib.Path
):
  suffix = SUFFIX.get(to, "")
  with disks.full_disk(), pytest.raises(OSError, match="large") as caught:
    convert.convert(str(root / "mae"), str(tmp_path / f"x{suffix}"), to=to)
  line = errors.explain(caught.value)
  assert line is not None
  assert "x" in line.partition(":")[0]
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["jax", "facebook", "transformers", "timm"])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_stopped_midway(
  root: pathlib.Path, to: str, error, tmp_path: pathlib.Path, monkeypatch
):
  """The signal's error is raised, and nothing is left behind."""
  out = tmp_path / f"x{SUFFIX.get(to, '')}"

  class Cut(io.BufferedWriter):
    def write(self, data):
      if self.tell() > 40_000:
        raise error(143)
      return super().write(data)

  @contextlib.contextmanager
  def replacing(path, flag):
    with _replacing(path, flag) as file:
      yield Cut(file.raw)

  def take(self, late):
    if len(self._sums) == 5:
      raise error(143)
    return _take(self, late)

  _replacing, _take = atomic_write.atomic_file, checkpoints.ArrayWriter._take
  monkeypatch.setattr(atomic_write, "atomic_file", replacing)
  monkeypatch.setattr(checkpoints.ArrayWriter, "_take", take)
  with pytest.raises(error):
    convert.convert(str(root / "mae"), str(out), to=to)
  assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint(root: pathlib.Path, tmp_path: pathlib.Path):
  shutil.copytree(root / "mae", tmp_path / "a")
  for file in (tmp_path / "a" / "params").rglob("*"):
    if file.is_file() and file.stat().st_size > 2000:
      data = bytearray(file.read_bytes())
      data[len(data) // 2] ^= 0x10
      file.write_bytes(data)
  refused(tmp_path / "a", tmp_path, "cannot be read", to="timm")
  (tmp_path / "a" / "params" / "_METADATA").unlink()
  refused(tmp_path / "a", tmp_path, "is missing or damaged", to="timm")


@pytest.mark.slow
def test_without_pytorch(root: pathlib.Path, tmp_path: pathlib.Path):
  """Safetensors work without PyTorch; `.pth` files report that they need it."""
  hidden = tmp_path / "hidden"
  hidden.mkdir()
  (hidden / "torch.py").write_text("raise ImportError('hidden')\n")
  environ = {"PYTHONPATH": str(hidden)}
  convert_words = ("-m", "mae_jax", "convert", "--to=jax")
  for source in ("mae_hf", "mean.safetensors"):
    done = python(
      *convert_words, root / source, tmp_path / source, environ=environ
    )
    assert done.returncode == 0, done.stderr
  done = python(
    *convert_words, root / "mae.pth", tmp_path / "x", environ=environ
  )
  assert done.returncode == 1
  last = done.stderr.strip().splitlines()[-1]
  assert "is a PyTorch file, but PyTorch is not installed: pip install" in last


def test_other_metadata(root: pathlib.Path, tmp_path: pathlib.Path):
  content = torch.load(root / "mae.pth", weights_only=False)
  content["mae_jax"] = json.dumps({"config": {"task": "pretrain"}})
  torch.save(content, tmp_path / "x.pth")
  refused(tmp_path / "x.pth", tmp_path, "by another version of mae_jax")


def test_the_table(root: pathlib.Path, capsys: pytest.CaptureFixture):
  wanted = {
    "mae": ("encoder and decoder", "normalized patches", "encoder 0.04"),
    "raw.pth": ("facebook", "raw pixels", "sin-cos table"),
    "cls_hf": ("transformers", "5 classes, named; on the class token"),
    "encoder.pth": ("encoder only", "decoder (for reconstruction or"),
    "mean.safetensors": ("timm", "own table in encoder", "float32"),
    "probe.pth": ("linear probe", "note", "BatchNorm's counter of batches"),
  }
  for name, texts in wanted.items():
    convert.convert(str(root / name), inspect=True)
    told = capsys.readouterr().out
    assert all(text in told for text in texts), told


def test_the_table_of_what_cannot_be_converted(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
  file = write(tmp_path / "x.pth", model=state("mae"))
  convert.convert(str(file), inspect=True)
  told = capsys.readouterr().out
  assert "48 wide, 2 blocks, ? heads" in told
  assert "target         not in the file" in told
  assert told.count("asked for") == 3
  file = write(
    tmp_path / "y.pth", model=state("encoder", **{"norm.bias": None})
  )
  convert.convert(str(file), inspect=True, heads=4)
  assert "norm.bias is missing" in capsys.readouterr().out


def test_every_type_of_safetensors_has_a_name():
  assert {
    tensor_files._dtype_name(torch.zeros((), dtype=dtype))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
  } == set(tensor_files.FLOATS)


@pytest.mark.parametrize(
  ("source", "flags", "text"),
  [
    ("mae_hf", {"heads": 8}, "--heads=8 contradicts the weights, which have 4"),
    ("raw.pth", {"target": "norm_pix"}, "=norm_pix contradicts .* have raw"),
    ("mae", {"decoder_heads": 4}, "--decoder_heads=4 contradicts .* have 2"),
    ("mae_hf", {"image_size": (30, 30)}, r"=\(30, 30\) contradicts the weigh"),
    ("cls.pth", {"positions": "sincos"}, "positions of .* were trained with"),
    ("cls", {"positions": "sincos"}, "positions of .* were trained with its"),
  ],
)
def test_flags_that_contradict_the_weights(
  root: pathlib.Path, tmp_path: pathlib.Path, source, flags, text
):
  refused(root / source, tmp_path, text, **flags)


def test_what_is_only_usual_may_be_said(tmp_path: pathlib.Path):
  """Flags may replace assumed pixel normalization and heads."""
  model = facebook_model.PlainEncoder(width=192, depth=12, hidden=64)
  table = facebook_model.randomize(model)
  test_outputs.set_tables(table)
  file = write(tmp_path / "x.pth", model=table.state_dict())
  for name, flags, heads, mean in (
    ("a", {}, 3, (0.485, 0.456, 0.406)),
    ("b", {"heads": 6, "mean": (0.5,), "std": (0.3,)}, 6, (0.5,)),
  ):
    convert.convert(str(file), str(tmp_path / name), to="jax", **flags)
    config = checkpoints.read_metadata(tmp_path / name).config
    assert factory.encoder(config).config.heads == heads
    assert config.data.mean == mean


def test_a_stored_table_is_replaced(tmp_path: pathlib.Path):
  own = {"pos_embed": torch.randn(1, 17, 48)}
  file = write(tmp_path / "x.pth", model=state("encoder", **own))
  convert.convert(str(file), str(tmp_path / "a"), to="jax", heads=4)
  name = "model/encoder/pos_embed"
  assert name in checkpoints.ArrayReader(tmp_path / "a").shapes
  for source in (file, tmp_path / "a"):
    out = tmp_path / f"{source.name}_b"
    flags = {"heads": 4, "positions": "sincos"}
    convert.convert(str(source), str(out), to="jax", **flags)
    assert name not in checkpoints.ArrayReader(out).shapes
    again = tmp_path / f"{source.name}.pth"
    if again != file:
      convert.convert(str(out), str(again), to="facebook")
      found = torch.load(again, weights_only=False)["model"]["pos_embed"]
      wanted = state("encoder")["pos_embed"]
      np.testing.assert_allclose(found, wanted, 0, 1e-7)


def test_two_spellings_of_one_tensor(
  root: pathlib.Path, tmp_path: pathlib.Path
):
  shutil.copytree(root / "mae_hf", tmp_path / "a")
  path = tmp_path / "a" / "model.safetensors"
  found = load_file(path)
  found["vit.layers.0.mlp.fc1.bias"] = torch.ones(80)
  save_file(found, path, {"format": "pt"})
  refused(tmp_path / "a", tmp_path, "the same tensors under two names")


def test_where_files_were_does_not_go_along(tmp_path: pathlib.Path):
  data = sample_checkpoints.DATA | {
    "path": "/home/someone/photos",
    "data_dir": "/disk7",
  }
  start = sample_checkpoints.save(
    tmp_path / "a", "mae", data=data, init_from="/secret"
  )
  for to in ("facebook", "transformers", "timm"):
    out = tmp_path / f"out{SUFFIX.get(to, to)}"
    convert.convert(str(start), str(out), to=to)
    files = [out] if out.is_file() else list(out.iterdir())
    written = b"".join(file.read_bytes() for file in files)
    for private in (b"someone", b"disk7", b"secret"):
      assert private not in written
    assert b"train" in written  # its recipe did
