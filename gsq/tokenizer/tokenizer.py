"""A trained tokenizer: images to indices and back.

Shapes: B images of H x W pixels, f downsampling, h = H / f, w = W / f, K indices of a latent position.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from gsq.config.overrides import load_config, to_dict
from gsq.config.run import RunConfig
from gsq.errors import UserError, choose
from gsq.files import read_json, sha256_of, temporary
from gsq.metrics.reconstruction import from_uint8
from gsq.models.autoencoder import Autoencoder
from gsq.pretrained.state import load_exactly, read_tensors
from gsq.records.folder import RunFolder, runs_root
from gsq.runs.reevaluate import read_finished
from gsq.tokenizer.card import CARD_FILE, origin_of_run, require_license, write_card
from gsq.tokenizer.flex_gen import find_checkpoint, read_checkpoint
from gsq.tokenizer.hub import download, is_repository, push, require_repository
from gsq.training.checkpoint import save_tensors

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
FORMAT = 1
# Tolerance beyond [-1, 1], for resizing and rounding.
HAIR = 1e-3


class Tokenizer:
    """Encoder, quantizer and decoder of a trained model, in evaluation mode and float32.

    tokenizer = Tokenizer.from_pretrained("results/runs/ab/abcdef123456")
    indices = tokenizer.encode(images)
    images = tokenizer.decode(indices)
    """

    def __init__(
        self,
        config: RunConfig,
        model: Autoencoder,
        device: str = "auto",
        source: str = "",
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        """``source``: where it was read, for messages and records. ``origin``: the run that trained it, as in
        config.json (gsq.tokenizer.card.origin_of_run), for its model card."""
        self.config, self.source, self.origin = config, source, dict(origin or {})
        self.device = _device(device)
        self.model = model.float().eval().requires_grad_(False).to(self.device)
        self.downsample = config.model.downsample
        self.index_sizes = config.index_sizes

    def __repr__(self) -> str:
        model, sizes = self.config.model, self.index_sizes
        text = f"{sizes[0]}^{len(sizes)}" if len(set(sizes)) == 1 else " x ".join(map(str, sizes))
        return (
            f"Tokenizer({self.config.quantizer.kind}, f={model.downsample}, D={model.latent_dim}, "
            f"{text} codes a position, {self.config.bits_per_token:g} bits, on {self.device})"
        )

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "auto") -> Tokenizer:
        """Read a tokenizer.

        path: a folder of ``save_pretrained``; a finished run's folder, or its signature below ``$GSQ_RUNS``; a
        checkpoint of the authors' public code, or a folder with one; else a Hugging Face model id (owner/name).
        device: auto (cuda if available), cpu, cuda or cuda:N. Raises UserError.
        """
        _device(device)
        place = _locate(str(path))
        config, state, origin = _read_file(place) if place.is_file() else _read_folder(place)
        # Initialising a model must not disturb the caller's random numbers.
        with torch.random.fork_rng(devices=[]):
            model = Autoencoder(config)
        load_exactly(model, state, str(path))
        return cls(config, model, device, str(path), origin)

    def save_pretrained(self, path: str | Path, *, license: str | None = None, license_link: str | None = None) -> Path:
        """Write config.json, model.safetensors and the model card README.md into the folder ``path``, all or none.

        license: the weights' licence, an identifier of the Hugging Face hub (apache-2.0, cc-by-nc-4.0, other, ...);
        None: "unknown". license_link: the address of its text. Replaces an earlier tokenizer there; raises UserError
        for any other content, an edited card included.
        """
        return self._save(Path(path), "", license, license_link)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        license: str | None = None,
        license_link: str | None = None,
        message: str | None = None,
        token: str | None = None,
    ) -> str:
        """Publish the files of ``save_pretrained`` as the Hugging Face model ``repository`` (owner/name), by
        huggingface_hub; ``from_pretrained`` reads them by that id. Returns the address of the commit.

        Creates the repository (for you alone if ``private``) if it does not exist; other files there stay. token:
        default the one of ``hf auth login`` or HF_TOKEN. The hub is that of HF_ENDPOINT. Raises UserError without
        huggingface_hub, without a token, or if the hub refuses or cannot be reached.
        """
        require_repository(repository)
        with tempfile.TemporaryDirectory() as folder:
            saved = self._save(Path(folder) / "tokenizer", repository, license, license_link)
            return push(saved, repository, private=private, message=message, token=token)

    def _save(self, path: Path, repository: str, license: str | None, license_link: str | None) -> Path:
        """``repository``: the model id under which the card says to load it; "" for the folder."""
        import gsq

        require_license(license, license_link)
        folder = path.absolute()
        _require_ours(path, folder)
        partial = temporary(folder)
        earlier = partial.with_suffix(".earlier")
        plain = to_dict(self.config)
        try:
            partial.mkdir(parents=True)
            save_tensors(self._state(), partial / WEIGHTS_FILE)
            value = {
                "format": FORMAT,
                "gsq_version": gsq.__version__,
                "config": {name: plain[name] for name in ("model", "quantizer")},
                "sha256": sha256_of(partial / WEIGHTS_FILE),
                "source": Path(self.source).name,
                **({"run": self.origin} if self.origin else {}),
            }
            parameters = sum(one.numel() for one in self.model.parameters())
            write_card(partial, self.config, parameters, self.origin, repository or folder.name, license, license_link)
            value["card_sha256"] = sha256_of(partial / CARD_FILE)
            (partial / CONFIG_FILE).write_text(json.dumps(value, indent=1) + "\n")
            if folder.exists():
                # rename replaces an empty folder only.
                folder.rename(earlier)
            partial.rename(folder)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if folder.exists():
                shutil.rmtree(earlier, ignore_errors=True)
        return folder

    def _state(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}

    def fingerprint(self) -> str:
        """12 hex digits over architecture and weights, equal for tokenizers that compute the same."""
        plain = to_dict(self.config)
        text = json.dumps([plain["model"], plain["quantizer"]], sort_keys=True)
        digest = hashlib.sha256(text.encode())
        for name, value in sorted(self._state().items()):
            digest.update(name.encode())
            digest.update(value.numpy().tobytes())
        return digest.hexdigest()[:12]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), float in [-1, 1] or uint8, f dividing H and W -> indices (B, K, h, w), int64.

        Raises UserError for anything else, NaN included.
        """
        return self.model.encode(self._checked_images(images))

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """Indices (B, K, h, w), whole numbers -> images (B, 3, H, W), float32, clamped to [-1, 1].

        Raises UserError for another shape or type, or an index outside [0, index_sizes[k]).
        """
        return self.model.decode(self._checked_indices(indices)).clamp_(-1, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """decode(encode(images))."""
        return self.decode(self.encode(images))

    def _checked_images(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor):
            raise UserError(f"images: a {type(images).__name__}; a torch tensor (B, 3, H, W) is needed")
        shape = tuple(images.shape)
        if images.ndim != 4 or shape[1] != 3 or not images.numel():
            raise UserError(f"images: shape {shape}; (B, 3, H, W) is needed, with at least one image")
        f = self.downsample
        if shape[2] % f or shape[3] % f:
            near = " x ".join(str(max(f, side // f * f)) for side in shape[2:])
            raise UserError(
                f"images: {shape[2]} x {shape[3]} pixels, but both sides must be multiples of f = {f}, such as {near}"
            )
        if images.dtype == torch.uint8:
            return from_uint8(images.to(self.device))
        if not images.is_floating_point():
            raise UserError(f"images: dtype {images.dtype}; floating point in [-1, 1] or uint8 is needed")
        low, high = (float(value) for value in images.detach().aminmax())
        if not (low >= -1 - HAIR and high <= 1 + HAIR):  # NaN fails both
            raise UserError(
                f"images: values from {low:g} to {high:g}; they must be in [-1, 1] (uint8 for 0 to 255) and not NaN"
            )
        return images.to(self.device, torch.float32)

    def _checked_indices(self, indices: Tensor) -> Tensor:
        sizes = self.index_sizes
        if not isinstance(indices, Tensor):
            raise UserError(f"indices: a {type(indices).__name__}; a torch tensor (B, {len(sizes)}, h, w) is needed")
        if indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex():
            raise UserError(f"indices: dtype {indices.dtype}; whole numbers are needed, such as int64")
        if indices.ndim != 4 or indices.shape[1] != len(sizes) or not indices.numel():
            raise UserError(f"indices: shape {tuple(indices.shape)}; (B, {len(sizes)}, h, w) is needed, not empty")
        indices = indices.to(self.device, torch.int64)
        for k, size in enumerate(sizes):
            low, high = (int(value) for value in indices[:, k].aminmax())
            if low < 0 or high >= size:
                raise UserError(f"indices: from {low} to {high} at [:, {k}], but they must be in 0 to {size - 1}")
        return indices


def _require_ours(path: Path, folder: Path) -> None:
    """Raise UserError if ``folder`` holds anything but an earlier tokenizer with the card that gsq wrote."""
    if not folder.exists():
        return
    names = {one.name for one in folder.iterdir()} if folder.is_dir() else None
    if names is None or names - {CONFIG_FILE, WEIGHTS_FILE, CARD_FILE}:
        raise UserError(f"{path}: exists and is not a saved tokenizer; choose another folder")
    if CARD_FILE in names:
        value = read_json(folder / CONFIG_FILE)
        if not isinstance(value, dict) or value.get("card_sha256") != sha256_of(folder / CARD_FILE):
            raise UserError(
                f"{path}: its {CARD_FILE} is not as gsq wrote it, and would be replaced; move it away, or choose "
                "another folder"
            )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", str(name)):
        choose("device", name, ("auto", "cpu", "cuda", "cuda:0"))
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device: '{name}', but this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    return device


def _locate(name: str) -> Path:
    """The file or folder that ``name`` means; downloads a Hugging Face model id."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    if re.fullmatch(r"[0-9a-f]{12}", name):
        folder = RunFolder.of(runs_root(), name).path
        if folder.is_dir():
            return folder
        raise UserError(f"{name}: no run of this signature below {runs_root()} (set GSQ_RUNS, or give the folder)")
    if is_repository(name):
        return download(name)
    raise UserError(f"{name}: no such file or folder (a Hugging Face model id has the form owner/name)")


_Read = tuple[RunConfig, dict[str, Tensor], dict[str, Any]]
"""Config, weights, and what is known of the run."""


def _read_file(path: Path) -> _Read:
    # A file of ours means its folder: that of a saved tokenizer, or of the run that it belongs to.
    if path.name in (CONFIG_FILE, WEIGHTS_FILE, "config.yaml"):
        for folder in (path.parent, path.parent.parent.parent):
            if _is_run(folder) or ((folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()):
                return _read_folder(folder)
    return *read_checkpoint(path), {}


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "attempts").is_dir()


def _read_folder(folder: Path) -> _Read:
    if _is_run(folder):
        config, weights = read_finished(folder)
        return config, read_tensors(weights), origin_of_run(RunFolder(folder), config)
    if (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file():
        try:
            value = json.loads((folder / CONFIG_FILE).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / CONFIG_FILE}: not JSON ({error})") from None
        if isinstance(value, dict) and "format" in value:
            return _read_saved(folder, value)
    return *read_checkpoint(find_checkpoint(folder)), {}


def _read_saved(folder: Path, value: Mapping[str, Any]) -> _Read:
    where = str(folder / CONFIG_FILE)
    if value["format"] != FORMAT:
        raise UserError(
            f"{where}: format {value['format']!r}, written by gsq {value.get('gsq_version', '?')}; this one reads "
            f"format {FORMAT}"
        )
    if not isinstance(value.get("config"), Mapping):
        raise UserError(f"{where}: has no config")
    weights = folder / WEIGHTS_FILE
    if value.get("sha256") not in (None, sha256_of(weights)):
        raise UserError(f"{weights}: damaged; its sha256 is not the one in {CONFIG_FILE}. Copy both files again")
    origin = value.get("run")
    config = load_config(value["config"], where=where, finished=True)
    return config, read_tensors(weights), origin if isinstance(origin, dict) else {}
