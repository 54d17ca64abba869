"""Tokenizers on the Hugging Face hub. huggingface_hub is imported on use: it is not a dependency."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from gsq.errors import UserError

REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
LOG_IN = "log in with: hf auth login (or set HF_TOKEN)"


def is_repository(name: str) -> bool:
    return bool(re.fullmatch(REPOSITORY, name))


def require_repository(name: str) -> None:
    if not is_repository(name):
        raise UserError(f"{name}: not a Hugging Face model id; it has the form owner/name, such as ada/gsq-f8")


def download(name: str) -> Path:
    """Folder of the newest snapshot of a hub model, or of the cached one if the hub cannot be reached."""
    start = f"{name}: no such file or folder here"
    try:
        huggingface_hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(f"{start}; to read it as a Hugging Face model id, first: pip install huggingface_hub") from None
    wanted = ["*.json", "*.yaml", "*.yml", "*.safetensors", "*.pt", "*.pth"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the client raises its own errors, its transport's and the system's
        if _kinds(error) & {"RepositoryNotFoundError", "GatedRepoError"}:
            raise UserError(
                f"{start}, and the Hugging Face hub has no model of this id that you may read; check the id, or "
                f"{LOG_IN}"
            ) from None
        reason = _reason(error)
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted, local_files_only=True))
    except Exception:
        raise UserError(
            f"{start}, not in the local Hugging Face cache, and the hub cannot be reached ({reason}); download it "
            "where there is internet and give the folder's path"
        ) from None


def push(folder: Path, repository: str, *, private: bool, message: str | None, token: str | None) -> str:
    """Commit the files of ``folder`` to a hub model, which is created if it does not exist. Returns the address of the
    commit. Raises UserError."""
    try:
        huggingface_hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(
            f"{repository}: to publish on the Hugging Face hub, first: pip install huggingface_hub"
        ) from None
    token = token or huggingface_hub.get_token()
    if not token:
        raise UserError(f"{repository}: no Hugging Face token on this machine; {LOG_IN}, with a token that may write")
    api = huggingface_hub.HfApi(token=token, library_name="gsq")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message or "Upload a tokenizer with gsq"
        )
    except Exception as error:
        raise UserError(f"{repository}: {_refusal(error, api.endpoint)}") from None
    return str(done.commit_url)


def _refusal(error: Exception, endpoint: str) -> str:
    """Why the hub did not take an upload, and what to do."""
    reason = _reason(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"{endpoint} does not know this token ({reason}); {LOG_IN}, with a token that may write"
    if status in (403, 404):
        return (
            f"{endpoint} refuses it ({reason}); the token must be allowed to write, and the owner must be you or an "
            "organisation that lets you"
        )
    if status is not None:
        return f"{endpoint} refuses it ({reason})"
    if "OfflineModeIsEnabled" in _kinds(error):
        return "HF_HUB_OFFLINE is set, so nothing can be published; unset it"
    return f"{endpoint} cannot be reached ({reason}); save_pretrained writes the same files into a folder"


def _kinds(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _reason(error: Any) -> str:
    """The hub's own words, else the first line of the error."""
    said = getattr(error, "server_message", None) or str(error)
    return next((line.strip() for line in str(said).splitlines() if line.strip()), type(error).__name__)
