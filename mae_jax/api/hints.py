"""Names that users of timm and transformers try, and ours for each."""

FEATURES = "use model.features(images), or model.apply(params, images) in JAX"
DEVICES = "from_pretrained(..., mesh=MESH) chooses the devices"
PARAMS = "use model.params, a tree of JAX arrays, which may be set"
NO_MODES = "leave it out: a model has no modes, and never drops or masks here"
LAYERS = 'use model.features(images, pool="grid", layers=[3, 6])'
SETTINGS = "use model.config, for instance model.config.data.mean"

# Attributes of a model.
MODEL = {
  "forward": FEATURES,
  "forward_features": FEATURES,
  "encode": FEATURES,
  "get_image_features": FEATURES,
  "forward_head": "use model.predict(images), or model.apply(params, images)",
  "forward_intermediates": LAYERS,
  "get_intermediate_layers": LAYERS,
  "eval": NO_MODES,
  "train": f"{NO_MODES}. To train, use mae_jax.train(config, workdir)",
  "requires_grad_": NO_MODES,
  "to": DEVICES,
  "cuda": DEVICES,
  "cpu": DEVICES,
  "device": DEVICES,
  "state_dict": PARAMS,
  "load_state_dict": PARAMS,
  "parameters": PARAMS,
  "named_parameters": PARAMS,
  "save": 'use model.save_pretrained("FOLDER")',
  "num_classes": "use len(model.class_names)",
  "num_channels": "use model.channels",
  "in_chans": "use model.channels",
  "img_size": "use model.image_size",
  "patch_size": "use model.module.patch_size",
  "embed_dim": "use model.config.model, or the shape of model.features(images)",
  "num_features": "use the shape of model.features(images)",
  "default_cfg": SETTINGS,
  "pretrained_cfg": SETTINGS,
}

_RATES = "training sets it: mae_jax.recipe(NAME).replace({...})"
_REVISION = 'write it into the source, as "hf://ORG/NAME@REVISION/FOLDER"'
_DTYPE = 'save_pretrained(..., dtype="bfloat16") chooses that of a file'

# Arguments of `create_model`.
CREATE = {
  "pretrained": "these weights are random; for others use "
  'from_pretrained("hf://ORG/NAME")',
  "checkpoint_path": "use from_pretrained(PATH)",
  "img_size": "use image_size",
  "in_chans": "use channels",
  "in_channels": "use channels",
  "num_channels": "use channels",
  "patch_size": 'name it, as create_model("vit_b8")',
  "embed_dim": "use width",
  "hidden_size": "use width",
  "num_hidden_layers": "use depth",
  "num_heads": "use heads",
  "num_attention_heads": "use heads",
  "num_labels": "use num_classes",
  "global_pool": 'use pooling="mean" or "cls"',
  "drop_rate": _RATES,
  "drop_path_rate": _RATES,
}

# Arguments of `from_pretrained`.
LOAD = {
  "revision": _REVISION,
  "subfolder": _REVISION,
  "img_size": "use image_size",
  "num_classes": "use the head that the weights have, or train a new one with "
  "the task finetune",
  "num_labels": "use the head that the weights have, or train a new one with "
  "the task finetune",
  "device": "use mesh",
  "device_map": "use mesh",
  "dtype": _DTYPE,
  "torch_dtype": _DTYPE,
}

# Arguments of `save_pretrained`.
SAVE = {
  "safe_serialization": "leave it out: format says which file is written",
  "push_to_hub": "use model.push_to_hub(REPO_ID)",
}

# Arguments of `list_models`.
NAMES = {
  "filter": "use pattern",
  "pretrained": "leave it out: create_model makes random weights",
}
