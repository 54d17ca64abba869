"""Tokenizers that gsq did not train, under one protocol: their rows, and what is refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from cheap_evaluation import MEANS
from seeded_weights import seeded_images
from tiny_run import tiny
from torch import Tensor
from typer.testing import CliRunner

from gsq import UserError, evaluate, train
from gsq.cli.main import app
from gsq.data.batches import ImageSource
from gsq.evaluation.foreign import Convention, load_foreign
from gsq.evaluation.likeness import check_likeness
from gsq.runs.foreign import evaluate_foreign, folder_to_compare

MODELS = "foreign_models"


def rows_of(name: str, **changes: Any) -> list[dict[str, Any]]:
    config = tiny(evaluation__features=MEANS, **changes)
    return evaluate_foreign(load_foreign(f"{MODELS}:{name}"), ImageSource(config.data), config.evaluation)


def test_a_model_gets_every_metric_by_the_protocol_of_ones_own_runs() -> None:
    (row,) = rows_of("blur")
    config = tiny(evaluation__features=MEANS)
    source = ImageSource(config.data)
    # The same numbers as the same function inside gsq.
    from foreign_models import Blur

    from gsq.models.autoencoder import Autoencoder

    class Inside(Autoencoder):
        def forward(self, images: Tensor) -> Any:
            codes = Blur().encode(images)
            return super().forward(images)._replace(images=Blur().decode(codes))

    own = evaluate(Inside(config), source, config.evaluation)
    assert row["protocol"] == own["protocol"]
    assert all(row[name] == own[name] for name in ("rfid", "kid", "psnr_db", "ssim", "mse"))
    # 8 x 8 positions of 32 x 32 pixels, and 64 rows.
    assert (row["codebook_size"], row["groups"], row["downsample"], row["tokens_per_image"]) == (64, 1, 4, 64)
    assert row["bits_per_token"] == 6 and row["bits_per_pixel"] == 6 / 16
    images = source.validation_batch(0, row["num_images"])
    indices = Blur().encode(images)
    assert row["usage"] == len(indices.unique()) / 64 and row["tokens"] == indices.numel()
    counts = indices.flatten().bincount().double() / indices.numel()
    assert row["perplexity"] == pytest.approx(math.exp(-torch.special.xlogy(counts, counts).sum()), rel=1e-9)
    assert row["parameters"] == 1 and row["quantizer"] == "foreign" and row["state"] == "done"


def test_signatures_follow_source_and_weights_and_not_the_place_of_a_file(tmp_path: Path) -> None:
    config = tiny(evaluation__features=MEANS)

    def signature(name: str, **options: Any) -> str:
        model = load_foreign(f"{MODELS}:{name}", options)
        return str(
            evaluate_foreign(model, ImageSource(config.data), config.evaluation, options=options)[0]["signature"]
        )

    first = signature("brighter")
    assert first == signature("brighter") and len(first) == 12
    assert len({first, signature("blur"), signature("brighter", by=1.2)}) == 3


def test_what_a_model_declares_is_on_its_row() -> None:
    (row,) = rows_of("grouped")
    assert (row["groups"], row["levels"], row["bits_per_token"], row["quantizer"]) == (2, "4x8", 5, "product")
    assert (row["latent_dim"], row["group_dim"], row["compression_ratio"]) == (6, 3, 8)
    assert len(row["usage_per_group"]) == 2 and row["usage_per_group"][1] == 2 / 8
    assert json.loads(row["other_axes"]) == {"model": f"{MODELS}:grouped", "weights": "random"}
    assert json.loads(row["parts"])["model"].startswith(f"{MODELS}:grouped@")


def test_a_model_without_indices_has_no_usage() -> None:
    (row,) = rows_of("coloured")
    assert "usage" not in row and "codebook_size" not in row and row["rfid"] > 0


def test_each_resolution_is_a_row() -> None:
    small, large = rows_of("blur", evaluation__resolutions=[32, 64])
    assert (small["resolution"], large["resolution"]) == (32, 64) and small["signature"] == large["signature"]
    assert (small["tokens_per_image"], large["tokens_per_image"]) == (64, 256)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("encoder_only", "encode alone.*decode, or reconstruct"),
        ("nothing", "without any of them"),
        ("channels_last", "channels second"),
        ("half_size", r"\(4, 3, 16, 16\).*size that it is given"),
        ("only_48", "takes images of 48 pixels.*--resolution 48"),
        ("leaves", "SystemExit: no weights"),
        ("fails", r"\[-1, 1\]: RuntimeError: a shape"),
        ("not_finite", "not finite"),
        ("too_few_rows", "codebook of 8 rows"),
        ("no_whole_numbers", r"indices of sizes \[8\].*float32.*indices\(codes\)"),
        ("absent", "no class or function 'absent'"),
    ],
)
def test_a_model_that_cannot_be_measured_is_one_error_that_names_it(name: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"{MODELS}.*{words}"):
        rows_of(name)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("of_zero_to_one", r"range: \[0, 1\]"),
        ("of_bytes", r"range: \[0, "),
        ("returns_zero_to_one", r"output_range: \[0, 1\]"),
        ("channels_returned_backwards", "channels as BGR"),
        ("turned", "swapping rows and columns"),
    ],
)
def test_images_read_otherwise_than_declared_are_found_and_named(name: str, fix: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: .*{fix}"):
        rows_of(name)


@pytest.mark.parametrize("name", ["coloured", "blur", "declared_zero_to_one", "grouped"])
def test_right_models_and_random_ones_pass(name: str) -> None:
    source = ImageSource(tiny().data)
    check_likeness(load_foreign(f"{MODELS}:{name}"), source.validation_batch(0, 4))


def test_a_declared_order_of_channels_is_applied() -> None:
    images = seeded_images(2, 8, 8, 0).float() / 127.5 - 1
    for convention in (Convention(), Convention((0, 1)), Convention((0, 255), (-1, 1), "bgr")):
        assert torch.equal(
            convention.given(images).flip(1), Convention(convention.range, channels="bgr").given(images)
        ) or (convention.channels == "bgr")
    both = Convention((0.0, 255.0), None, "bgr")
    torch.testing.assert_close(both.read(both.given(images)), images, atol=1e-6, rtol=0)
    assert both.given(images)[0, 0, 0, 0] == pytest.approx(float((images[0, 2, 0, 0] + 1) * 127.5))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"range": [1, 0]}, "black and white"),
        ({"range": "01"}, "range"),
        ({"range": [0, math.inf]}, "range"),
        ({"channels": "grb"}, "bgr"),
    ],
)
def test_a_convention_that_is_none_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_foreign(f"{MODELS}:blur", {}, values)


def test_a_model_that_only_reconstructs_needs_no_indices_for_the_codebook_that_it_declares() -> None:
    (row,) = rows_of("reconstructs_alone")
    assert not {"usage", "tokens_per_image"} & {*row} and math.isfinite(row["rfid"])


def test_every_image_of_a_folder_without_a_split_counts(pictures: Path) -> None:
    data, files = folder_to_compare(pictures, 32)
    assert len(files.validation) == 12 and not files.train and data.kind == "image_folder"
    for name in ("train", "val"):
        (pictures / name).mkdir()
    for i, file in enumerate(sorted(pictures.glob("*.png"))):
        file.rename(pictures / ("train" if i < 8 else "val") / file.name)
    assert len(folder_to_compare(pictures, 32)[1].validation) == 4


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(seeded_images(1, 40, 40, i)[0].permute(1, 2, 0).numpy()).save(folder / f"{i:02}.png")
    return folder


# The command.


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, ["evaluate", *words])


def test_one_model_on_a_folder(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--data", str(pictures), "--resolution", "32", "--features", MEANS, "--allow-small")
    done = invoke(f"{MODELS}:brighter", "-o", "by=1.05", *words, "--distance", "precision_recall")
    assert done.exit_code == 0, done.output
    table = Path("results/foreign.parquet")
    (row,) = pq.read_table(table).to_pylist()
    assert row["num_images"] == 12 and row["sweep"] == "foreign" and row["step"] is None and row["precision"] >= 0
    # Again, and another model: a row of the same key is replaced.
    assert invoke(f"{MODELS}:brighter", "-o", "by=1.05", *words, "--distance", "precision_recall").exit_code == 0
    assert invoke(f"{MODELS}:declared_zero_to_one", *words).exit_code == 0
    assert len(pq.read_table(table)) == 2
    wrong = invoke(f"{MODELS}:of_zero_to_one", *words)
    assert wrong.exit_code != 0 and "range: [0, 1]" in str(wrong.exception)
    assert len(pq.read_table(table)) == 2
    assert invoke(f"{MODELS}:of_zero_to_one", "--range", "0,1", *words).exit_code == 0


def test_a_table_of_models_beside_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny(steps=2, evaluation__features=MEANS, loss__perceptual="none", discriminator__kind="none")
    run = train(config, tmp_path / "runs")
    models: list[dict[str, Any]] = [
        {"model": f"{MODELS}:blur", "name": "blur"},
        {"model": f"{MODELS}:brighter", "options": {"by": 1.1}},
        {"model": f"{MODELS}:of_zero_to_one", "range": [0, 1]},
        # Relative to the file, not to the working folder.
        {"run": os.path.relpath(run.path, "lists"), "name": "ours"},
    ]
    Path("lists").mkdir()
    text = yaml.safe_dump({"protocol": os.path.relpath(run.path, "lists"), "models": models})
    Path("lists/peers.yaml").write_text(text)
    done = invoke("lists/peers.yaml", "--json")
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)) == 4
    rows = pq.read_table("results/peers.parquet").to_pylist()
    (protocol,) = {row["protocol"] for row in rows}
    own = next(row for row in rows if row["signature"] == run.path.name)
    kept = json.loads(next((run.path / "attempts").rglob("evaluations/*.json")).read_text())
    assert protocol == kept["protocol"] and own["rfid"] == pytest.approx(kept["rfid"], rel=1e-6)
    assert own["groups"] == config.quantizer.groups and own["step"] == 2
    assert next(json.loads(row["other_axes"])["model"] for row in rows) == "blur"
    from gsq.analysis import load_results

    frame = load_results("results/peers.parquet")
    assert set(frame["model"]) >= {"blur", "ours"} and set(frame["weights"]) >= {"trained"}


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ((f"{MODELS}:blur",), "--protocol: missing"),
        ((f"{MODELS}:blur", "--protocol", "cpu-tiny", "-o", "by"), "KEY=VALUE"),
        ((f"{MODELS}:brighter", "--protocol", "cpu-tiny", "-o", "to=1"), "failed with options.*to"),
        ((f"{MODELS}:blur", "--protocol", "cpu-tiny", "--range", "low"), "--range: 'low'"),
        (("quickstart", "--channels", "bgr"), "--channels: is for models"),
        ((f"{MODELS}:blur", "--protocol", "cpu-tiny", "--cluster", "slurm"), "--cluster: slurm"),
        (("models.yaml",), "'modle' is not a key"),
        (("axes.yaml", "--protocol", "x.yaml"), "sweeps image_size"),
        (("axes.yaml", "--protocol", "cpu-tiny", "--output", "table.csv"), r"table.csv must end in \.parquet"),
        (("fails.yaml", "--protocol", "cpu-tiny", "--output", "other.parquet"), "schema version none.*another file"),
        (("options.yaml",), "options.yaml: options: 3: must be a mapping"),
        (("number.yaml",), "number.yaml: model: 3: must be text"),
        (("protocol.yaml",), r"protocol.yaml: protocol: \['a'\]: must be text"),
        (("a-run", "--cluster", "slurm"), "--cluster: slurm"),
    ],
)
def test_a_wrong_command_is_one_error(
    words: tuple[str, ...], fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    Path("models.yaml").write_text(yaml.safe_dump({"models": [{"model": f"{MODELS}:blur", "modle": 1}]}))
    Path("axes.yaml").write_text(yaml.safe_dump({"models": [{"model": f"{MODELS}:blur"}]}))
    Path("x.yaml").write_text(yaml.safe_dump({"base": "cpu-tiny", "axes": {"image_size": [32, 64]}}))
    blur = {"model": f"{MODELS}:blur"}
    Path("fails.yaml").write_text(yaml.safe_dump({"models": [{"model": f"{MODELS}:fails"}]}))
    Path("options.yaml").write_text(yaml.safe_dump({"models": [{**blur, "options": 3}]}))
    Path("number.yaml").write_text(yaml.safe_dump({"models": [{"model": 3}]}))
    Path("protocol.yaml").write_text(yaml.safe_dump({"models": [blur], "protocol": ["a"]}))
    Path("a-run").mkdir()
    pq.write_table(pa.table({"a": [1]}), "other.parquet")
    done = invoke(*words)
    assert done.exit_code != 0 and isinstance(done.exception, UserError) and re.search(fix, str(done.exception))
    assert not Path("results").exists()


def test_a_started_sweep_names_its_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gsq.cli.foreign import _of_protocol
    from gsq.sweeps import load_spec, plan
    from gsq.sweeps.planning.folder import SweepFolder

    def begun(name: str, axes: dict[str, Any]) -> None:
        cells = plan(load_spec({"name": name, "base": "cpu-tiny", "axes": axes}))
        SweepFolder(tmp_path, name).write_plan(cells)

    monkeypatch.setenv("GSQ_RUNS", str(tmp_path))
    begun("mine", {"groups": [1, 4]})
    assert _of_protocol("mine")[0].image_size == 32
    begun("sizes", {"image_size": [32, 64]})
    with pytest.raises(UserError, match="--protocol: the cells of sweep sizes have several"):
        _of_protocol("sizes")


def test_the_committed_table_has_five_families_beside_a_run_by_one_protocol() -> None:
    from gsq.analysis import load_results

    results = Path(__file__).parents[2] / "results"
    frame = load_results(results / "peers.parquet")
    listed = yaml.safe_load((results / "peers.yaml").read_text())["models"]
    assert list(frame["model"]) == [entry["name"] for entry in listed]
    assert frame["protocol"].nunique() == 1 == (frame["weights"] == "trained").sum()
    assert (frame["weights"] == "random").sum() == 5 and frame["signature"].nunique() == 6
    # Nothing that one can see in random weights.
    assert frame.loc[frame["weights"] == "random", "rfid"].min() > 3 * frame["rfid"].min()
