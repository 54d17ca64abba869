"""Checkpoints of the authors' public code: the same function here, and what cannot be read says so.

The fixtures are outputs of that code; see fixtures/authors/README.md.
"""

from __future__ import annotations

import base64
import json
import math
import pickle
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from gsq import Tokenizer, UserError
from gsq.config.run import RunConfig
from gsq.models.autoencoder import Autoencoder
from gsq.tokenizer.flex_gen import convert_config, convert_state, unpickle_arguments

FIXTURES = Path(__file__).parent / "fixtures" / "authors"
CASES: dict[str, dict[str, Any]] = json.loads((FIXTURES / "cases.json").read_text())


def numbers(name: str, shape: tuple[int, ...] | list[int]) -> Tensor:
    """Uniform in [-1, 1) from the raw bits of a counter-based generator keyed by the name."""
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(math.prod(shape))
    return torch.from_numpy((raw >> np.uint64(11)) * 2.0**-52 - 1).reshape(tuple(shape)).float()


def weight(name: str, shape: list[int]) -> Tensor:
    value = numbers(name, shape)
    if name.endswith("codebook.weight"):
        return value
    if name.endswith("bias"):
        return 0.2 * value
    return 1 + 0.2 * value if len(shape) == 1 else value * (3 / math.prod(shape[1:])) ** 0.5


def state_of(case: str) -> dict[str, Tensor]:
    return {name: weight(name, shape) for name, shape in CASES[case]["shapes"].items()}


def pickled(case: str) -> bytes:
    return base64.b64decode(CASES[case]["pickled_config"])


@cache
def outputs() -> dict[str, Tensor]:
    return load_file(FIXTURES / "outputs.safetensors")


def save_as_they_do(case: str, path: Path) -> Path:
    torch.save({"model_state_dict": state_of(case), "config": pickled(case)}, path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_the_same_function_of_the_same_weights(case: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(save_as_they_do(case, tmp_path / "checkpoint.pt"), device="cpu")
    images = numbers("image", (1, 3, CASES[case]["height"], CASES[case]["width"]))
    latent = tokenizer.model.encoder(images)
    assert torch.allclose(latent, outputs()[f"{case}.latent"], atol=1e-5, rtol=0)
    # Theirs are (B, h, w, G), without G for vq.
    theirs = outputs()[f"{case}.indices"]
    theirs = theirs[..., None] if theirs.ndim == 3 else theirs
    assert torch.equal(tokenizer.encode(images), theirs.permute(0, 3, 1, 2))
    # Theirs is x + (row - x), which rounds.
    assert torch.allclose(tokenizer.model.quantizer(latent).latent, outputs()[f"{case}.quantized"], atol=1e-6, rtol=0)
    reconstruction = outputs()[f"{case}.reconstruction"]
    assert reconstruction.abs().max() > 1  # so clamping shows
    indices = tokenizer.encode(images)
    assert torch.allclose(tokenizer.model.decode(indices), reconstruction, atol=1e-5, rtol=0)
    assert torch.allclose(tokenizer.decode(indices), reconstruction.clamp(-1, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_their_pickled_arguments_are_read_without_running_them(case: str) -> None:
    arguments = unpickle_arguments(pickled(case), "file")
    wanted = CASES[case]["config"]
    assert {key: arguments[key] for key in wanted} == wanted
    assert convert_config(arguments) == convert_config(wanted)


def test_the_fixtures_cover_what_a_checkpoint_can_be() -> None:
    configs = [convert_config(case["config"]) for case in CASES.values()]
    assert {c.model.downsample for c in configs} == {4, 8, 16}
    assert {c.model.upsample for c in configs} == {"nearest", "depth_to_space"}
    assert {c.lookup_norm for c in configs} == {"l2", "l1", "clip", "none"}
    assert {c.quantizer.groups for c in configs} == {1, 4} and {c.quantizer.kind for c in configs} == {"gsq", "vq"}
    assert {c.model.attention for c in configs} == {c.model.adaptive_norm for c in configs} == {True, False}


CASE = "f4-vq"


def trainer_file(folder: Path, prefix: str = "module.") -> Path:
    """What their trainer saves: two models under DistributedDataParallel's prefix, no config."""
    averaged = {prefix + name: value for name, value in state_of(CASE).items()}
    newest = {name: value + 1 for name, value in averaged.items()}
    package = {"model": newest, "ema_model": averaged, "optimizer": {"state": {}}, "step": 3}
    torch.save(package, folder / "checkpoint.3.pt")
    return folder / "checkpoint.3.pt"


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_a_trainer_checkpoint_with_its_yaml_gives_the_averaged_weights(tmp_path: Path, prefix: str) -> None:
    path = trainer_file(tmp_path, prefix)
    training = {"seed": 42, "model": {"name": "flexTokenizer", **CASES[CASE]["config"]}, "optim": {"base_lr": 1e-4}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(training))
    plain = Tokenizer.from_pretrained(save_as_they_do(CASE, tmp_path / "saved.pt"))
    assert Tokenizer.from_pretrained(path).fingerprint() == plain.fingerprint()


def test_safetensors_with_a_json_config(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(state_of(CASE), folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps(CASES[CASE]["config"]))
    plain = Tokenizer.from_pretrained(save_as_they_do(CASE, tmp_path / "saved.pt"))
    assert Tokenizer.from_pretrained(folder).fingerprint() == plain.fingerprint()


def test_what_is_read_is_saved_in_our_format(tmp_path: Path) -> None:
    first = Tokenizer.from_pretrained(save_as_they_do("f8-four-groups", tmp_path / "saved.pt"))
    second = Tokenizer.from_pretrained(first.save_pretrained(tmp_path / "ours"))
    assert second.config == first.config and second.fingerprint() == first.fingerprint()


def test_a_checkpoint_without_a_config_says_what_to_do(tmp_path: Path) -> None:
    path = trainer_file(tmp_path)
    with pytest.raises(UserError, match=r"no config.*checkpoint\.3\.yaml"):
        Tokenizer.from_pretrained(path)
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(UserError, match=r"several JSON.*checkpoint\.3\.yaml"):
        Tokenizer.from_pretrained(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_channels": 1}, "input_channels 1 cannot be expressed"),
        ({"residual_conv_kernel_size": 5}, "residual_conv_kernel_size 5"),
        ({"attention_resolutions": [1]}, "attention_resolutions"),
        ({"channel_multipliers": [1] * 7}, "channel_multipliers"),
        ({"encoder_layer_configs": [1, 1]}, "encoder_blocks"),
        ({"hidden_channels": 48}, "norm_groups: 32 does not divide"),
        ({"embedding_dim": 8}, "embed_dim 4 cannot be expressed here, only embedding_dim, 8"),
        ({"name": "kl_gan"}, "name 'kl_gan'"),
        ({"surprise": 1}, "unknown arguments surprise"),
        ({"hidden_channels": "${width}"}, "arguments of a tokenizer"),
        (
            {"quantizer_config": {"quantize_type": "fsq", "levels": [8, 8], "embed_dim": 4}},
            "'fsq'.*only gsq, gvq and vq",
        ),
        ({"quantizer_config": {"quantize_type": "vq"}}, "KeyError: 'embed_dim'"),
        ({"quantizer_config": {"quantize_type": "gsq", "embed_dim": 4, "num_embed": 8, "num_group": 3}}, "groups: 3"),
        (
            {"quantizer_config": {"quantize_type": "gsq", "embed_dim": 4, "num_embed": 8, "argmin_func": "softmax"}},
            "softmax",
        ),
        (
            {
                "quantizer_config": {
                    "quantize_type": "gsq",
                    "embed_dim": 4,
                    "num_embed": 8,
                    "num_group": 4,
                    "use_l2_norm": True,
                }
            },
            "leaves two points",
        ),
    ],
)
def test_what_their_config_can_say_and_ours_cannot_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        convert_config(CASES[CASE]["config"] | changes, "config.yaml")
    assert str(error.value).startswith("config.yaml: ") and "\n" not in str(error.value)


def test_registered_models_fix_their_arguments() -> None:
    rest = {"embedding_dim": 4}
    magvit = convert_config({"name": "flex_magvit2", **rest}).model
    assert magvit.adaptive_norm and magvit.upsample == "depth_to_space" and magvit.encoder_depths == (4, 3, 4, 3, 4)
    vqgan = convert_config({"name": "flex_vqgan"}).model
    assert vqgan.attention and not vqgan.adaptive_norm and vqgan.decoder_depths == (2, 2, 2, 2, 2)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, ("exit 3",)


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    torch.save({"model_state_dict": state_of(CASE), "config": pickle.dumps(Evil())}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"pickled config .*(posix|nt)\.system"):
        Tokenizer.from_pretrained(tmp_path / "a.pt")
    torch.save({"model_state_dict": state_of(CASE), "config": Evil()}, tmp_path / "b.pt")
    with pytest.raises(UserError, match="does not unpickle"):
        Tokenizer.from_pretrained(tmp_path / "b.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short", b"\x80\x04]."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"checkpoint{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        Tokenizer.from_pretrained(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"authors' code.* layer\.weight"):
        Tokenizer.from_pretrained(tmp_path / "a.pt")


def test_weights_that_do_not_fit_the_config_are_listed(tmp_path: Path) -> None:
    state = state_of(CASE)
    state["encoder.blocks.99.net.0.weight"] = state.pop("encoder.blocks.0.net.0.weight")
    state["quantizers.codebook.weight"] = torch.zeros(16, 4)
    torch.save({"model_state_dict": state, "config": pickled(CASE)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"architecture .*config: .*missing .*unexpected .*shape "):
        Tokenizer.from_pretrained(tmp_path / "a.pt")


@pytest.mark.parametrize("case", CASES)
def test_every_name_has_a_counterpart(case: str) -> None:
    config = convert_config(CASES[case]["config"])
    assert isinstance(config, RunConfig)
    wanted = {name: value.shape for name, value in Autoencoder(config).state_dict().items()}
    assert {name: value.shape for name, value in convert_state(state_of(case)).items()} == wanted
