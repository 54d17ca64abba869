"""Convert checkpoints of the GSQ authors' public code (flex_gen) to a config and a state dict.

Their file is a ``torch.save`` of {"model_state_dict": averaged weights, "config": pickled arguments} (models/eval_*.pt
and the checkpoint.pt of their Hugging Face repositories), or their trainer's {"ema_model", "model", ...} without a
config, which needs its training YAML, or a JSON file, beside it. Nothing in a file is executed: tensors are read with
``weights_only``, and the pickled arguments by an unpickler that only builds plain values.
"""

from __future__ import annotations

import builtins
import collections
import io
import json
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsq.config.model import DEFAULT_MULTIPLIERS, ModelConfig
from gsq.config.quantizer import QuantizerConfig
from gsq.config.run import RunConfig
from gsq.errors import UserError
from gsq.pretrained.state import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
CONFIG_SUFFIXES = (".json", ".yaml", ".yml")

# Arguments and defaults of their FlexTokenizer; None for those that only matter in training.
DEFAULTS: dict[str, Any] = {
    "input_channels": 3,
    "hidden_channels": 128,
    "encoder_layer_configs": (4, 3, 4, 3, 4),
    "decoder_layer_configs": (3, 4, 3, 4, 4),
    "channel_multipliers": (1, 2, 2, 4),
    "mid_block_attn": False,
    "attention_resolutions": (),
    "embedding_dim": 4,
    "use_adaptive_norm": False,
    "use_learnable_up_down_sample": False,
    "residual_conv_kernel_size": 3,
    "input_conv_kernel_size": 3,
    "output_conv_kernel_size": 3,
    "dropout_probability": None,
    "quantizer_aux_loss_weight": None,
    "quantizer_config": {"quantize_type": "vq", "embed_dim": 4, "num_embed": 8192},
}
# Their registered models that fix some arguments.
_LIGHT = {
    "channel_multipliers": (1, 2, 2, 4),
    "encoder_layer_configs": (2, 2, 2, 2, 2),
    "decoder_layer_configs": (2, 2, 2, 2, 2),
}
_LEARNED = {"use_adaptive_norm": True, "use_learnable_up_down_sample": True}
MODELS: dict[str, dict[str, Any]] = {
    "flexTokenizer": {},
    "flex_magvit2": _LEARNED,
    "flex_openmagvit": _LEARNED | _LIGHT,
    "flex_vqgan": _LIGHT | {"mid_block_attn": True},
}


class _Node:
    """Replaces any OmegaConf object or typing alias in a pickle, and keeps its state."""

    def __new__(cls, *arguments: object, **named: object) -> _Node:
        return object.__new__(cls)

    def __init__(self, *arguments: object, **named: object) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        self.state = {k: v for part in parts if isinstance(part, dict) for k, v in part.items()}


class _PlainUnpickler(pickle.Unpickler):
    """Builds plain values, and refuses a pickle that names anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "builtins" and name in ("dict", "list", "tuple", "set", "int", "float", "bool", "str", "bytes"):
            return getattr(builtins, name)
        if module == "collections" and name in ("OrderedDict", "defaultdict"):
            return getattr(collections, name)
        # _operator.getitem rebuilds typing.Optional[...] and the like, which say nothing here.
        if module.split(".")[0] in ("omegaconf", "typing") or (module, name) == ("_operator", "getitem"):
            return _Node
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _plain(value: Any, depth: int = 0) -> Any:
    if depth > 20:
        raise pickle.UnpicklingError("it is nested too deeply")
    if isinstance(value, _Node):
        value = value.state.get("_content", value.state.get("_val"))
    if isinstance(value, Mapping):
        return {str(k): _plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, depth + 1) for v in value]
    return _plain(value, depth + 1) if isinstance(value, _Node) else value


def unpickle_arguments(data: bytes, where: str) -> dict[str, Any]:
    """The arguments that their code pickles into a checkpoint, as plain values. Raises UserError."""
    try:
        value = _plain(_PlainUnpickler(io.BytesIO(data)).load())
    except Exception as error:  # a damaged pickle raises almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{where}: its pickled config cannot be read ({reason}); put the YAML that it was trained from beside it"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: its pickled config is a {type(value).__name__}, a mapping is needed")
    return value


def _refuse(where: str, key: str, value: object, allowed: str) -> UserError:
    return UserError(f"{where}: {key} {value!r} cannot be expressed here, only {allowed}")


def convert_config(arguments: Mapping[str, Any], where: str = "config") -> RunConfig:
    """The config for their model's ``arguments``, a training YAML, or its ``model`` section.

    Raises UserError for arguments that would compute another function here.
    """
    values = dict(arguments)
    if isinstance(values.get("model"), Mapping):
        values = dict(values["model"])
    name = str(values.pop("name", "flexTokenizer"))
    if name not in MODELS:
        raise _refuse(where, "name", name, ", ".join(MODELS))
    for ignored in ("pretrained", "path", "repo_id", "filename", "pretrained_cfg", "pretrained_cfg_overlay"):
        values.pop(ignored, None)
    unknown = sorted(set(values) - set(DEFAULTS))
    if unknown:
        raise UserError(f"{where}: unknown arguments {', '.join(unknown)}; known are {', '.join(DEFAULTS)}")
    values = DEFAULTS | MODELS[name] | values
    for key in ("input_channels", "residual_conv_kernel_size", "input_conv_kernel_size", "output_conv_kernel_size"):
        if values[key] != 3:
            raise _refuse(where, key, values[key], "3")
    if values["attention_resolutions"] not in (None, (), []):
        raise _refuse(
            where, "attention_resolutions", values["attention_resolutions"], "attention between middle blocks"
        )
    try:
        multipliers = tuple(int(m) for m in values["channel_multipliers"])
        downsample = 2 ** (len(multipliers) - 1)
        if downsample not in DEFAULT_MULTIPLIERS:
            raise _refuse(where, "channel_multipliers", list(multipliers), "2 to 6 levels")
        latent_dim = int(values["embedding_dim"])
        model = ModelConfig(
            downsample=downsample,
            latent_dim=latent_dim,
            channels=int(values["hidden_channels"]),
            channel_multipliers=multipliers,
            encoder_blocks=tuple(int(n) for n in values["encoder_layer_configs"]),
            decoder_blocks=tuple(int(n) for n in values["decoder_layer_configs"]),
            attention=bool(values["mid_block_attn"]),
            upsample="depth_to_space" if values["use_learnable_up_down_sample"] else "nearest",
            adaptive_norm=bool(values["use_adaptive_norm"]),
            norm_groups=32,
        )
        return RunConfig(model=model, quantizer=_convert_quantizer(values["quantizer_config"], latent_dim, where))
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(where) else f"{where}: {text}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: not the arguments of a tokenizer ({type(error).__name__}: {error})") from None


def _convert_quantizer(values: Mapping[str, Any], latent_dim: int, where: str) -> QuantizerConfig:
    q = dict(values)
    kind = str(q["quantize_type"]).lower()
    if kind not in ("gsq", "gvq", "vq"):
        raise _refuse(where, "quantizer_config.quantize_type", kind, "gsq, gvq and vq")
    if int(q["embed_dim"]) != latent_dim:
        raise _refuse(where, "quantizer_config.embed_dim", q["embed_dim"], f"embedding_dim, {latent_dim}")
    groups = int(q.get("num_group", 1)) if kind != "vq" else 1
    # "random" only draws among equal distances, but "softmax" among all: its codes are no function of the image.
    if str(q.get("argmin_func")).lower() == "softmax":
        raise _refuse(where, "quantizer_config.argmin_func", "softmax", "the nearest row")
    uniform = bool(q.get("use_uniform_init", kind == "vq"))
    if q.get("use_l1_norm"):
        norm = "l1"
    elif q.get("use_l2_norm"):
        norm = "l2"
    else:
        clipped = q.get("force_1d_clip") and uniform and latent_dim == groups and kind != "vq"
        norm = "clip" if clipped else "none"
    return QuantizerConfig(
        kind="vq" if kind == "vq" and norm == "none" else "gsq",
        groups=groups,
        codebook_size=int(q["num_embed"]),
        init="uniform" if uniform else "spherical",
        lookup_norm=norm,
        decoder_input="raw",
        loss_row="raw",
        commitment_weight=float(q.get("commitment_loss_weight", 0.25)),
    )


# Their names inside a block -> ours. Downsample is a bare convolution in our encoder.
_INSIDE = {
    "net.0": "norm1",
    "net.2": "conv1",
    "net.3": "norm2",
    "net.6": "conv2",
    "skip": "skip",
    "norm": "norm",
    "qkv_conv": "qkv",
    "proj_conv": "out",
    "gamma": "scale",
    "beta": "shift",
}
_KEY = re.compile(r"(encoder|decoder)\.(?:(conv_in)|(?:fianl|final)_layers\.([02])|blocks\.(\d+)\.(.+))\.(weight|bias)")


def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict under our names; entries without a counterpart keep theirs."""
    blocks = {"encoder": 0, "decoder": 0}
    for key in state:
        match = _KEY.fullmatch(key)
        if match and match[4]:
            blocks[match[1]] = max(blocks[match[1]], int(match[4]) + 1)
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        match = _KEY.fullmatch(key)
        if match is None:
            converted["quantizer.codebook" if key == "quantizers.codebook.weight" else key] = value
            continue
        part, first, last, block, inside, kind = match.groups()
        stem = part if part == "encoder" else "decoder.layers"
        if first:
            place = "0"
        elif last:
            place = str(blocks[part] + 1 + int(last))
        elif inside == "conv":
            place = f"{int(block) + 1}" + ("" if part == "encoder" else ".conv")
        elif inside in _INSIDE:
            place = f"{int(block) + 1}.{_INSIDE[inside]}"
        else:
            converted[key] = value
            continue
        converted[f"{stem}.{place}.{kind}"] = value
    return converted


def is_authors(state: Mapping[str, Any]) -> bool:
    """Whether a state dict has their names."""
    return any(key.startswith(("encoder.conv_in.", "encoder.blocks.")) for key in state)


def _strip(state: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the prefixes that DistributedDataParallel and torch.compile add to each name."""
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", str(key)): value for key, value in state.items()}


def _beside(path: Path) -> dict[str, Any]:
    """The config beside a checkpoint: the file of the same name, else config.*, else the folder's only one."""
    from gsq.config.overrides import read_yaml

    files = sorted(p for p in path.parent.iterdir() if p.suffix in CONFIG_SUFFIXES and p.is_file())
    for wanted in ([p for p in files if p.stem == path.stem], [p for p in files if p.stem == "config"], files):
        if len(wanted) == 1:
            break
    else:
        count = "several JSON or YAML files" if files else "no JSON or YAML file"
        raise UserError(
            f"{path}: holds no config, and its folder has {count}; put the YAML that it was trained from there, as "
            f"{path.with_suffix('.yaml').name}"
        )
    if wanted[0].suffix != ".json":
        return read_yaml(wanted[0])
    try:
        value = json.loads(wanted[0].read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{wanted[0]}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{wanted[0]}: a mapping is needed, found a {type(value).__name__}")
    return value


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint of a folder. Raises UserError if there is none, or several."""
    files = sorted(p for p in folder.iterdir() if p.suffix in CHECKPOINT_SUFFIXES and p.is_file())
    named = [p for p in files if p.stem == "checkpoint"]
    if len(named or files) != 1:
        names = ", ".join(p.name for p in files[:5]) + (", ..." if len(files) > 5 else "")
        raise UserError(
            f"{folder}: holds {len(files)} checkpoints ({names}); name one of them"
            if files
            else f"{folder}: neither a saved tokenizer, a run folder, nor a folder with a checkpoint "
            f"({', '.join(CHECKPOINT_SUFFIXES)})"
        )
    return (named or files)[0]


def read_checkpoint(path: Path) -> tuple[RunConfig, dict[str, Tensor]]:
    """Read one of their checkpoint files: config and state dict under our names. Raises UserError."""
    found = read_tensors(path)
    where = str(path)
    # Averaged weights first: they are what the paper evaluates.
    state = next((found[k] for k in ("model_state_dict", "ema_model", "model", "state_dict") if k in found), found)
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: its weights are a {type(state).__name__}, a state dict is needed")
    stripped = _strip(state)
    if not is_authors(stripped):
        some = ", ".join(sorted(stripped)[:3]) or "none"
        raise UserError(f"{path}: not a tokenizer of the authors' code; its names are {some}, ...")
    pickled = found.get("config")
    if isinstance(pickled, bytes):
        config = convert_config(unpickle_arguments(pickled, where), where)
    else:
        config = convert_config(pickled if isinstance(pickled, Mapping) else _beside(path), where)
    tensors = {key: value for key, value in stripped.items() if hasattr(value, "shape")}
    if any(not math.prod(value.shape) for value in tensors.values()):
        raise UserError(f"{path}: holds empty tensors")
    return config, convert_state(tensors)
