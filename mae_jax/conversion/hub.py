"""Weights on the Hugging Face Hub: `hf://ORG/NAME[@REVISION][/PATH]`.

A repository, a folder or a file in it becomes a path in the Hub's local cache,
where everything works that works with a folder. Only safetensors, JSON and the
model card are fetched: a pickle could run any program.
"""

import contextlib
import functools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from mae_jax.conversion import model_card
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError

SCHEME = "hf://"
_SYNTAX = (
  f"{SCHEME}ORG/NAME, {SCHEME}ORG/NAME@REVISION or {SCHEME}ORG/NAME/PATH"
)
_SAFE = ".safetensors"
_WEIGHTS = ("model.safetensors.index.json", "model.safetensors")
# Files that `push` uploads.
_PUSHED = ("*.safetensors", "*.json", model_card.FILE, "*.png", "*.jpg")
# A repository in the Hub's cache.
_CACHED = re.compile(
  r"(?P<root>.*/models--(?P<owner>.+?)--(?P<name>[^/]+)"
  r"/snapshots/(?P<commit>[0-9a-f]{40}))(/|$)"
)
_OFFLINE = ("LocalEntryNotFoundError", "IncompleteSnapshotError")


def is_hub(path: epath.PathLike) -> bool:
  """Checks whether a path is in a repository of the Hub."""
  return os.fspath(path).startswith(SCHEME)


def resolve(path: epath.PathLike) -> epath.PathLike:
  """Downloads a path of the Hub, once per process; keeps every other path.

  Args:
    path: `hf://ORG/NAME`, with `@REVISION` and a folder or a `.safetensors`
      file in the repository if wanted; or any other path.

  Returns:
    The folder or file in the Hub's cache; `path` if it is not on the Hub.

  Raises:
    ConfigError: if the path is malformed, the repository cannot be read or has
      no safetensors, or huggingface_hub is not installed.
  """
  if not is_hub(path):
    return path
  return epath.Path(_download(os.fspath(path)))


def source(path: epath.PathLike) -> dict[str, str]:
  """Returns the repository that weights come from; {} if it is not known.

  Args:
    path: a path on the Hub, or in its local cache.

  Returns:
    "source", the repository with its commit, and "license", as its card states
    it or `model_card.UNKNOWN`.

  Raises:
    ConfigError: as `resolve`.
  """
  match = _CACHED.match(os.fspath(resolve(path)))
  if not match:
    return {}
  card = pathlib.Path(match["root"]) / model_card.FILE
  text = card.read_text(errors="replace") if card.is_file() else ""
  return {
    "source": f"{SCHEME}{match['owner']}/{match['name']}@{match['commit']}",
    "license": model_card.read_license(text) or model_card.UNKNOWN,
  }


def read_card(path: epath.PathLike) -> str:
  """Returns the model card of a repository; "" if it has none.

  Raises:
    ConfigError: if the Hub cannot be reached, and the card is not in the cache.
  """
  address = _parse(os.fspath(path))
  hub = _import_hub(os.fspath(path))

  def fetch(local_files_only: bool) -> str:
    card: str = hub.hf_hub_download(
      address.id,
      model_card.FILE,
      revision=address.revision,
      endpoint=_endpoint(),
      library_name="mae_jax",
      local_files_only=local_files_only,
    )
    return pathlib.Path(card).read_text(errors="replace")

  # The cache first: without a network, the Hub is tried for half a minute.
  with contextlib.suppress(hub.errors.LocalEntryNotFoundError):
    return fetch(True)
  with _one_line_errors(os.fspath(path)):
    try:
      return fetch(False)
    except hub.errors.LocalEntryNotFoundError:
      raise
    except hub.errors.EntryNotFoundError:
      return ""


def _import_hub(what: str) -> Any:
  try:
    import huggingface_hub
  except ImportError as error:
    raise ConfigError(
      f"{what} is on the Hugging Face Hub, but huggingface_hub is not "
      "installed: pip install 'mae_jax[hf]'"
    ) from error
  return huggingface_hub


def _parse(path: str) -> Any:
  hub = _import_hub(path)
  try:
    address = hub.parse_hf_uri(path)
  except ValueError as error:
    raise ConfigError(
      f"{path} is not a path on the Hub ({console.first_line(error)}): write "
      f"{_SYNTAX}"
    ) from error
  parts = pathlib.PurePosixPath(address.path_in_repo).parts
  if address.type != "model" or ".." in parts:
    raise ConfigError(
      f"{path} is not a path in a model's repository: write {_SYNTAX}"
    )
  if address.path_in_repo.endswith((".bin", ".pth", ".pt", ".ckpt")):
    raise ConfigError(
      f"{path} is a pickle, which could run any program and is not fetched: "
      f"name a {_SAFE} file, or download it yourself and name the local file"
    )
  return address


@functools.cache
def _download(path: str) -> str:
  address = _parse(path)
  inside = address.path_in_repo
  single = inside.endswith(_SAFE)
  folder = os.path.dirname(inside) if single else inside
  prefix = f"{folder}/" if folder else ""
  hub = _import_hub(path)
  with _one_line_errors(path):
    root = hub.snapshot_download(
      address.id,
      revision=address.revision,
      endpoint=_endpoint(),
      library_name="mae_jax",
      allow_patterns=[
        inside if single else f"{prefix}*{_SAFE}",
        f"{prefix}*.json",
        model_card.FILE,
      ],
      ignore_patterns=[f"{prefix}*/*"],
    )
  found = pathlib.Path(root) / inside
  if single and not found.is_file():
    raise ConfigError(
      f"{path}: the repository has no such file at this revision: look at its "
      "list of files"
    )
  return str(found if single else _weights_in(found, path))


def _weights_in(folder: pathlib.Path, path: str) -> pathlib.Path:
  """Returns the folder, or its only file if the folder says nothing of it."""
  files = sorted(folder.glob(f"*{_SAFE}"))
  if not files:
    raise ConfigError(
      f"{path} has no {_SAFE} file, and pickles are not fetched: name a "
      "revision with such a file, such as the Hub's own conversion "
      f"({SCHEME}ORG/NAME@refs/pr/1), or download the weights yourself"
    )
  described = (folder / "config.json").is_file()
  if described and any((folder / name).is_file() for name in _WEIGHTS):
    return folder
  if len(files) > 1:
    raise ConfigError(
      f"{path} has the files {', '.join(each.name for each in files)}: name "
      f"one, as {path.rstrip('/')}/{files[0].name}"
    )
  return files[0]


def push(
  folder: epath.PathLike,
  repo_id: str,
  *,
  private: bool | None = None,
  token: str | None = None,
  commit_message: str | None = None,
  revision: str | None = None,
  endpoint: str | None = None,
) -> str:
  """Uploads a folder of weights with its model card to the Hub.

  Only safetensors, JSON files, the card and its pictures are uploaded.

  Args:
    folder: a folder that `convert --to=timm` or `--to=transformers` wrote, with
      a README.md of `model_card`.
    repo_id: "ORG/NAME"; made if it does not exist.
    private: whether a new repository is private; None for the owner's default.
    token: a token that may write; None for the one of `hf auth login`.
    commit_message: first line of the commit.
    revision: branch to write to, made if it does not exist; None for main.
    endpoint: address of the Hub; None for `HF_ENDPOINT` or huggingface.co.

  Returns:
    The address of the repository.

  Raises:
    ConfigError: if the folder has no weights or card, if the card states no
      license of weights that others trained, or if the Hub refuses.
  """
  hub = _import_hub(repo_id)
  folder = pathlib.Path(folder)
  if not folder.is_dir() or not list(folder.glob(f"*{_SAFE}")):
    raise ConfigError(
      f"{folder} is not a folder with {_SAFE} files: write one with python -m "
      "mae_jax convert --to=transformers or --to=timm"
    )
  card = folder / model_card.FILE
  if not card.is_file():
    raise ConfigError(
      f"{folder} has no {model_card.FILE}: write a model card before pushing"
    )
  if model_card.read_license(card.read_text()) == model_card.UNKNOWN:
    raise ConfigError(
      f"{folder} has weights of an unknown license: find the license of their "
      "source, and state it with license=, such as license='cc-by-nc-4.0'"
    )
  if hub.constants.HF_HUB_OFFLINE:
    raise ConfigError(
      f"{SCHEME}{repo_id} cannot be written, as HF_HUB_OFFLINE is set: unset "
      "it, or save the weights in a folder and push that later"
    )
  api = hub.HfApi(
    endpoint=endpoint or _endpoint(), token=token, library_name="mae_jax"
  )
  with _one_line_errors(f"{SCHEME}{repo_id}"):
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
      api.create_branch(url.repo_id, branch=revision, exist_ok=True)
    api.upload_folder(
      repo_id=url.repo_id,
      folder_path=folder,
      commit_message=commit_message or "Upload weights with mae_jax",
      revision=revision,
      allow_patterns=list(_PUSHED),
    )
  _download.cache_clear()  # the repository has changed
  return str(url)


def _endpoint() -> str | None:
  # huggingface_hub reads it only once, when it is imported.
  return os.environ.get("HF_ENDPOINT")


@contextlib.contextmanager
def _one_line_errors(path: str) -> Iterator[None]:
  """Turns the Hub's errors into one line with a way out."""
  try:
    yield
  except Exception as error:
    text = _explain(path, error)
    if text is None:
      raise
    raise ConfigError(text) from error


def _explain(path: str, error: Exception) -> str | None:
  """Returns the message for an error of the Hub; None for any other."""
  names = {each.__name__ for each in type(error).__mro__}
  login = "log in with hf auth login, or set HF_TOKEN"
  status = getattr(getattr(error, "response", None), "status_code", None)
  if "GatedRepoError" in names:
    return (
      f"{path} is gated: accept its terms on its page, then {login} with an "
      "account that did"
    )
  if "RepositoryNotFoundError" in names:
    return (
      f"{path}: the Hub has no such repository, or it is private: check the "
      f"name, or {login}"
    )
  if "RevisionNotFoundError" in names:
    return (
      f"{path}: the repository has no such revision: name a branch, a tag or a "
      "commit"
    )
  if names & set(_OFFLINE) or "OfflineModeIsEnabled" in names:
    return f"{path} is not completely in the local cache, and {_why(error)}"
  if status in (401, 403) or "LocalTokenNotFoundError" in names:
    return f"{path}: the Hub refuses access ({status}): {login}"
  if "HFValidationError" in names:
    return f"{path} is not a path on the Hub: write {_SYNTAX}"
  module = type(error).__module__.partition(".")[0]
  if module.startswith(("huggingface_hub", "httpx", "hf_xet")):
    return (
      f"{path}: the Hub answers with an error ({console.first_line(error)}): "
      "try again later"
    )
  return None


def _why(error: Exception) -> str:
  """Returns why nothing is downloaded, with a way out."""
  if _import_hub("the path").constants.HF_HUB_OFFLINE:
    return "HF_HUB_OFFLINE is set: unset it, or name a local folder"
  response = getattr(error.__cause__, "response", None)
  if response is not None:
    return (
      f"the Hub answers with status {response.status_code}: try again later"
    )
  return "the Hub cannot be reached: check the network, or name a local folder"
