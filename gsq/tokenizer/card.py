"""The model card of a saved tokenizer: README.md with the YAML front matter that the Hugging Face hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from gsq.config.overrides import to_dict
from gsq.config.parts import is_path
from gsq.config.run import RunConfig
from gsq.errors import UserError
from gsq.records.folder import RunFolder
from gsq.records.read import read_evaluations

CARD_FILE = "README.md"
# Sections of the config that say how a tokenizer was trained.
TRAINING = ("loss", "discriminator", "optimizer", "train", "data")
# Numbers of an evaluation that a card shows: key, name, and the hub's type of metric ("" keeps it out of the front
# matter).
METRICS = (
    ("rfid", "rFID", "rfid"),
    ("kid", "KID", ""),
    ("lpips", "LPIPS", "lpips"),
    ("psnr_db", "PSNR [dB]", "psnr"),
    ("ssim", "SSIM", "ssim"),
    ("mse", "MSE", ""),
    ("inception_score", "Inception score", ""),
    ("usage", "share of the codes in use", ""),
    ("effective_bits", "effective bits a token", ""),
)


def origin_of_run(run: RunFolder, config: RunConfig) -> dict[str, Any]:
    """What a card says of the run: signature, data set (label and fingerprint, no path), the training part of the
    config, and the evaluations of the finished weights, one a protocol."""
    plain = to_dict(config)
    plain["data"].pop("path", None)
    found = [result for result in read_evaluations(run) if result.get("step") == config.train.steps]
    return {
        "signature": run.signature,
        "data": str(run.read_config().get("data_label") or config.data.kind),
        "config": {name: plain[name] for name in TRAINING},
        "evaluations": found,
    }


def require_license(license: str | None, link: str | None) -> None:
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise UserError(
            f"license: {license!r} is not an identifier of the Hugging Face hub, which are such as apache-2.0, mit, "
            "cc-by-nc-4.0, other"
        )
    if link is not None and license is None:
        raise UserError(f"license_link: {link!r} needs a license, which may be 'other'")


def write_card(
    folder: Path,
    config: RunConfig,
    parameters: int,
    origin: Mapping[str, Any],
    name: str,
    license: str | None,
    license_link: str | None,
) -> None:
    """Write README.md into ``folder``. name: what ``from_pretrained`` takes to load the tokenizer."""
    head: dict[str, Any] = {
        "library_name": "gsq",
        "license": license or "unknown",
        **({"license_link": license_link} if license_link else {}),
        "tags": ["image-tokenizer", "vector-quantization", "image-reconstruction"],
    }
    if results := list(_results(origin)):
        head["model-index"] = [{"name": name.rpartition("/")[2], "results": results}]
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=120)
    body = "\n".join([*_summary(config, parameters, name), *_numbers(origin), *_training(origin), *_terms(license)])
    (folder / CARD_FILE).write_text(f"---\n{front}---\n\n{body}\n", encoding="utf-8")


def _features(result: Mapping[str, Any]) -> str:
    return f"{result['features']}, {result['num_images']:,} images of {result['resolution']} pixels"


def _results(origin: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The entries of model-index, one an evaluation."""
    for result in origin.get("evaluations", ()):
        data = result["protocol_fields"]["data"]
        metrics = [
            {
                "type": kind,
                "name": f"{label} ({_features(result)})" if key == "rfid" else label,
                "value": float(f"{result[key]:.6g}"),
            }
            for key, label, kind in METRICS
            if kind and result.get(key) is not None
        ]
        yield {
            "task": {"type": "image-reconstruction", "name": "Image reconstruction"},
            "dataset": {"type": data, "name": data, "split": result["protocol_fields"]["split"]},
            "metrics": metrics,
        }


def _summary(config: RunConfig, parameters: int, name: str) -> list[str]:
    sizes, model, f = config.index_sizes, config.model, config.model.downsample
    codes = f"{sizes[0]:,}" if len(set(sizes)) == 1 else " x ".join(f"{size:,}" for size in sizes)
    own = sorted({one for one in (model.kind, config.quantizer.kind) if is_path(one)})
    return [
        f"# {name.rpartition('/')[2]}",
        "",
        "A discrete image tokenizer (encoder, quantizer and decoder), trained with gsq.",
        "",
        "| | |",
        "|---|---|",
        f"| quantizer | {config.quantizer.kind} |",
        f"| indices of a latent position | {len(sizes)}, of {codes} codes each |",
        f"| bits of a latent position | {config.bits_per_token:g} |",
        f"| downsampling f | {f}: H x W pixels have H/{f} x W/{f} latent positions |",
        f"| parameters | {parameters:,} |",
        "",
        "## How to load it",
        "",
        "```python",
        "from gsq import Tokenizer",
        "",
        f'tokenizer = Tokenizer.from_pretrained("{name}")',
        "indices = tokenizer.encode(images)  # (B, 3, H, W), float in [-1, 1] or uint8 -> (B, K, h, w)",
        "images = tokenizer.decode(indices)  # float32 in [-1, 1]",
        "```",
        "",
        *([f"It needs code of its author's own, which Python must find: {', '.join(own)}.", ""] if own else []),
    ]


def _numbers(origin: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Numbers", "")
    evaluations = origin.get("evaluations", ())
    if not evaluations:
        yield from ("Not measured.", "")
    for result in evaluations:
        yield from (
            f"Protocol `{result['protocol']}` at step {result['step']:,}: {_features(result)}.",
            *(["Fewer images than features + 1: the rFID is biased upwards."] if result.get("rank_deficient") else []),
            "",
            "| | |",
            "|---|---|",
            *(f"| {label} | {result[key]:.4g} |" for key, label, _ in METRICS if result.get(key) is not None),
            "",
            "Numbers compare only with those of the same protocol, which is:",
            "",
            "```yaml",
            yaml.safe_dump(dict(result["protocol_fields"]), sort_keys=False, width=120).rstrip(),
            "```",
            "",
        )


def _training(origin: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Training", "")
    if not origin:
        yield from ("Not known: the tokenizer was not read from a run of gsq.", "")
        return
    yield from (
        f"Run `{origin['signature']}` on the data set `{origin['data']}`, by this part of its config:",
        "",
        "```yaml",
        yaml.safe_dump(origin["config"], sort_keys=False, width=120).rstrip(),
        "```",
        "",
    )


def _terms(license: str | None) -> list[str]:
    known = f"The weights are published under {license}." if license else "Nobody has named a licence of the weights."
    return ["## Licence", "", f"{known} The images and the networks of the losses have licences of their own."]
