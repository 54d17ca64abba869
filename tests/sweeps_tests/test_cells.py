"""From a sweep to its cells: which there are, which are left out and why, and who they are."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from preamble import PlanOf
from rich.console import Console

from gsq.cli.show_plan import print_plan
from gsq.config.flops import cost
from gsq.config.overrides import load_config, override
from gsq.config.presets import preset
from gsq.errors import UserError
from gsq.runs.identity import identity
from gsq.sweeps.costing.cost import estimate, speed
from gsq.sweeps.costing.forecast import forecast
from gsq.sweeps.planning.cells import Plan, axis_columns, derived, other_axes
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.schema.columns import COLUMNS


def axes_of(plan: Plan) -> list[dict[str, object]]:
    return [cell.axes for cell in plan.cells]


def test_each_combination_is_a_cell_with_its_config(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"downsample": [8, 4], "groups": [1, 4]}, set={"steps": 7})
    assert axes_of(plan) == [{"downsample": f, "groups": g} for f in (8, 4) for g in (1, 4)]
    for cell in plan.cells:
        assert cell.config.model.downsample == cell.axes["downsample"]
        assert cell.config.quantizer.groups == cell.axes["groups"]
        assert cell.config.train.steps == 7
    assert (plan.dropped, plan.merged, plan.broken_images) == ((), (), ())
    assert plan.cells[1].title == "downsample=8 groups=4"
    assert plan_of().cells[0].title == "base"


def test_cells_are_dropped_with_the_first_constraint_that_is_false(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"groups": [1, 3, 4, 8, 16]}, where=["latent_dim % groups == 0", "groups < 8"])
    assert axes_of(plan) == [{"groups": 1}, {"groups": 4}]
    assert plan.dropped == (
        ({"groups": 3}, "latent_dim % groups == 0"),
        ({"groups": 8}, "groups < 8"),
        ({"groups": 16}, "groups < 8"),
    )


def test_constraints_see_the_axis_else_the_base_by_either_name(plan_of: PlanOf) -> None:
    axes = {"quantizer.groups": [1, 2, 4], "seed": [0, 1]}
    kept = plan_of(axes=axes, where=["groups == 2 or seed == 1", "latent_dim == 16", "groups in [1, 2]"])
    assert [tuple(cell.axes.values()) for cell in kept.cells] == [(1, 1), (2, 0), (2, 1)]
    assert len(plan_of(axes=axes, where="not (groups == 4 and seed == 0) and quantizer == 'gsq'").cells) == 5


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("group_dim == 4", [(8, 4)]),
        ("bits_per_token == 8", [(8, 1), (4, 1)]),
        ("bits_per_pixel == 0.5", [(8, 4), (4, 1)]),
        ("bits_per_pixel <= 0.125", [(8, 1)]),
        ("compression_ratio > 10", [(8, 1), (8, 4)]),
        ("tokens_per_image == 64", [(8, 4), (4, 1)]),
        ("images == 2800", [(8, 1), (8, 4), (4, 1)]),
        ("images > steps * batch_size", None),
    ],
)
def test_constraints_over_derived_quantities(plan_of: PlanOf, where: str, kept: list[tuple[int, int]] | None) -> None:
    cases = [{"downsample": f, "groups": g} for f, g in ((8, 1), (8, 4), (4, 1))]
    parts = {"cases": cases, "where": where, "set": {"steps": 350, "batch_size": 8}}
    if kept is None:
        with pytest.raises(UserError, match="3 by"):
            plan_of(**parts)
        return
    plan = plan_of(**parts)
    assert [(cell.axes["downsample"], cell.axes["groups"]) for cell in plan.cells] == kept


@pytest.mark.parametrize("name", ["parameters", "train_flops"])
def test_constraints_over_cost(plan_of: PlanOf, name: str) -> None:
    axes = {"width": [16, 32, 64]}
    costs = [getattr(cell.cost, name) for cell in plan_of(axes=axes).cells]
    assert costs[0] < costs[1] < costs[2]
    assert axes_of(plan_of(axes=axes, where=f"{costs[0]!r} < {name} <= {costs[1]!r}")) == [{"width": 32}]


DIVIDES = "latent_dim % groups == 0"


@pytest.mark.parametrize(
    "limit", ["bits_per_pixel < 100", "group_dim >= 1", "parameters < 1e9", "train_flops < 1e18", "images > 0"]
)
@pytest.mark.parametrize("first", [True, False], ids=["after division", "before division"])
def test_derived_quantities_of_cells_that_do_not_divide(plan_of: PlanOf, limit: str, first: bool) -> None:
    where = [DIVIDES, limit] if first else [limit, DIVIDES]
    plan = plan_of(axes={"groups": [1, 3, 4]}, where=where)
    assert axes_of(plan) == [{"groups": 1}, {"groups": 4}]
    assert plan.dropped == (({"groups": 3}, DIVIDES),)


@pytest.mark.parametrize("name", ["parameters", "train_flops"])
def test_constraints_on_cost_see_every_axis(plan_of: PlanOf, name: str) -> None:
    """An axis without a short name changes the model as well."""
    axes = {"model.blocks": [1, 4]}
    small, large = (getattr(cell.cost, name) for cell in plan_of(axes=axes).cells)
    assert small < large
    plan = plan_of(axes=axes, where=f"{name} < {(small + large) / 2}")
    assert axes_of(plan) == [{"model.blocks": 1}]


def test_duplicates_are_merged_into_the_first(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"groups": [1, 4]}, cases=[{"groups": 4}, {"quantizer.groups": 1}, {"groups": 2}])
    one, four, two = plan.cells
    assert [cell.axes for cell in plan.cells] == [{"groups": 1}, {"groups": 4}, {"groups": 2}]
    assert plan.merged == (({"groups": 4}, four.signature), ({"quantizer.groups": 1}, one.signature))
    assert two.signature not in (one.signature, four.signature)
    # What is no science makes no second run.
    again = plan_of(axes={"execution.threads": [1, 2]})
    assert len(again.cells) == 1 and again.merged == (({"execution.threads": 2}, again.cells[0].signature),)


def test_derived_quantities(plan_of: PlanOf) -> None:
    (cell,) = plan_of(cases=[{"downsample": 8, "latent_dim": 16, "groups": 4, "codebook_size": 1024}]).cells
    assert derived(cell.config) == {
        "group_dim": 4,
        "bits_per_token": 40.0,
        "bits_per_pixel": 0.625,
        "compression_ratio": 12.0,
        "tokens_per_image": 64,
    }
    assert cell.cost == cost(cell.config)
    assert cell.cost.images == cell.config.train.steps * cell.config.train.batch_size
    columns = axis_columns(cell.config, cell.data_label)
    elsewhere = {"effective_bits", "other_axes"}
    assert set(columns) == {c.name for c in COLUMNS if c.role in ("axis", "derived")} - elsewhere
    assert columns["width"] == 16 and columns["quantizer"] == "gsq" and columns["data"].startswith("photos:")


def test_the_signature_is_the_identity_of_the_run(plan_of: PlanOf) -> None:
    for cell in plan_of(axes={"groups": [1, 4], "seed": [0, 1]}).cells:
        by_hand = load_config({"quantizer": {"groups": cell.axes["groups"]}}, preset("cpu-tiny"))
        by_hand = override(by_hand, {"seed": cell.axes["seed"]})
        assert cell.signature == identity(by_hand) == identity(cell.config)


def test_the_same_science_is_the_same_run_in_every_sweep(plan_of: PlanOf) -> None:
    first = plan_of("first", axes={"groups": [1, 4], "latent_dim": [8, 16]})
    other = plan_of(
        "other",
        zip=[{"model.latent_dim": [16, 16, 8], "quantizer.groups": [4, 1, 4]}],
        set={
            "evaluation": {"num_images": 16, "every": 10},
            "execution": {"threads": 2, "checkpoint_every": 7, "log_every": 3, "device": "cpu"},
        },
    )
    shared = {cell.signature for cell in first.cells} & {cell.signature for cell in other.cells}
    assert shared == {cell.signature for cell in other.cells} and len(shared) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"steps": 8},
        {"batch_size": 4},
        {"learning_rate": 7e-4},
        {"width": 32},
        {"image_size": 64},
        {"quantizer.init": "uniform"},
        {"loss.adversarial_weight": 0.2},
        {"discriminator.layers": 3},
        {"train.precision": "bfloat16"},
        {"data.flip": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_science_is_another_run(plan_of: PlanOf, change: dict[str, object]) -> None:
    plan = plan_of(cases=[{}, change])
    assert len({cell.signature for cell in plan.cells}) == 2


def test_an_invalid_cell_is_named_with_its_axes(plan_of: PlanOf) -> None:
    with pytest.raises(UserError) as caught:
        plan_of("bad", axes={"latent_dim": [16], "groups": [1, 3]})
    message = str(caught.value)
    for words in ("sweep 'bad'", "latent_dim=16 groups=3", "does not divide", "1, 2, 4, 8, 16", f"where: {DIVIDES}"):
        assert words in message
    with pytest.raises(UserError, match=r"groups=two.*where: 'groups > 1'"):
        plan_of(axes={"groups": ["two"]}, where="groups > 1")


def test_an_empty_plan_says_which_constraint_dropped_how_many(plan_of: PlanOf) -> None:
    with pytest.raises(UserError) as caught:
        plan_of("none", axes={"groups": [1, 2, 4]}, where=["groups < 4", "seed == 1"])
    message = str(caught.value)
    for words in ("sweep 'none'", "empty", "all 3 cells", "1 by 'groups < 4'", "2 by 'seed == 1'"):
        assert words in message


def test_cut_keeps_the_first_cells(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"groups": [1, 2, 3, 4, 8]}, where=DIVIDES)
    cut = plan.cut(2)
    assert cut.cells == plan.cells[:2] and cut.name == plan.name and cut.dropped == plan.dropped
    assert plan.cut(99) == plan


def photographs(folder: Path, count: int = 12) -> None:
    random = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{'val' if i % 3 == 0 else 'train'}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)


def test_images_make_the_identity_and_their_place_does_not(plan_of: PlanOf) -> None:
    photographs(Path("a"))
    (Path("a") / "train" / "broken.png").write_bytes(b"\x89PNG but no more")

    def plan(path: str) -> Plan:
        return plan_of(set={"data": {"kind": "image_folder", "path": path}}, axes={"groups": [1, 2]})

    before = plan("a")
    assert before.broken_images == ("train/broken.png",)
    assert Counter(cell.data_label.split(":")[0] for cell in before.cells) == {"image_folder": 2}
    Path("a").rename("b")
    assert [cell.signature for cell in plan("b").cells] == [cell.signature for cell in before.cells]
    (Path("b") / "train" / "1.png").unlink()
    assert not {cell.signature for cell in plan("b").cells} & {cell.signature for cell in before.cells}
    with pytest.raises(UserError, match=r"data\.path: .*nowhere is not a folder"):
        plan("nowhere")


def test_a_plan_says_what_images_there_are_and_what_was_left_out(
    plan_of: PlanOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs(Path("a"))
    (Path("a") / "train" / "torn[1].png").write_bytes(b"\x89PNG but no more")
    (Path("a") / "train" / "drawing.svg").write_text("<svg/>")
    (Path("a") / "train" / "._1.png").write_bytes(b"x")
    plan = plan_of(set={"data": {"kind": "image_folder", "path": "a"}}, axes={"groups": [1, 2]})
    (data,) = plan.data
    assert (data.train, data.validation, data.label) == (8, 4, plan.cells[0].data_label)
    assert data.counts() == {"broken": 1, "format": 1, "hidden": 1}
    console = Console(width=80)
    print_plan(console, plan, forecast(plan))
    said = capsys.readouterr().out
    assert "8 to train on, 4 held out" in said and "1 broken: train/torn[1].png" in said
    assert "(1 svg): train/drawing.svg" in said and "1 hidden" in said
    document = json.loads(json.dumps(data.to_dict()))
    assert document["left_out"] == data.counts() and document["train"] == 8
    assert {one["name"] for one in document["files_left_out"]} == {
        "train/torn[1].png",
        "train/drawing.svg",
        "train/._1.png",
    }
    # Nothing is said of absent images, or of a plan that was submitted before.
    assert plan_of().data[0].label.startswith("photos:")


def test_memory_counts_decoded_images(plan_of: PlanOf, tmp_path: Path) -> None:
    photographs(Path("a"))
    data = {"kind": "image_folder", "path": "a"}
    plan = plan_of(set={"data": data}, axes={"groups": [1, 2]})
    decoded = 4 * 40 * 40 * (12 + 2)
    rate = speed(plan.cells, {}, "cpu")
    for cell in plan.cells:
        assert cell.image_bytes == decoded
        without = dataclasses.replace(cell, image_bytes=0)
        assert estimate(cell, rate, "cpu").memory_bytes == estimate(without, rate, "cpu").memory_bytes + decoded
        # A GPU has its own memory.
        assert estimate(cell, rate, "gpu").memory_bytes == estimate(without, rate, "gpu").memory_bytes
    folder = SweepFolder(tmp_path / "runs", plan.name)
    folder.write_plan(plan)
    assert [cell.image_bytes for cell in folder.read_plan().cells] == [decoded] * 2
    several = plan_of(set={"data": data, "execution.data_workers": 4}, axes={"groups": [1]})
    assert several.cells[0].image_bytes == decoded + 3 * 2 * 4 * 40 * 40


def test_a_plan_does_not_change_its_spec(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"groups": [1, 2]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.cells[0].config.train.steps = 1  # type: ignore[misc]
    assert plan_of(axes={"groups": [1, 2]}) == plan


def test_every_kind_of_quantizer_is_a_cell_with_its_bits(plan_of: PlanOf) -> None:
    plan = plan_of(
        set={"latent_dim": 8},
        cases=[
            {"quantizer": "gsq", "groups": 4, "codebook_size": 16},
            {"quantizer": "vq", "codebook_size": 1024},
            {"quantizer": "rvq", "depth": 3, "codebook_size": 32},
            {"quantizer": "fsq", "groups": 8, "codebook_size": 4},
            {"quantizer": "fsq", "groups": 8, "codebook_size": 8, "quantizer.levels": [8, 8, 4, 4, 4, 4, 4, 4]},
            {"quantizer": "lfq", "groups": 8, "codebook_size": 2},
            {"quantizer": "bsq", "groups": 8, "codebook_size": 2},
        ],
        where="tokens_per_image >= 64 and bits_per_token >= 8",
    )
    found = [axis_columns(cell.config, "d") for cell in plan.cells]
    assert [row["bits_per_token"] for row in found] == [16, 10, 15, 16, 18, 8, 8]
    assert [row["tokens_per_image"] // 64 for row in found] == [4, 1, 3, 8, 8, 8, 8]
    assert [row["group_dim"] for row in found] == [2, 8, 8, 1, 1, 1, 1]
    assert [row["depth"] for row in found] == [1, 1, 3, 1, 1, 1, 1]
    assert found[3]["levels"] == "4x4x4x4x4x4x4x4" and found[4]["levels"][:5] == "8x8x4" and found[0]["levels"] is None


def test_constraints_know_the_bits_of_every_kind(plan_of: PlanOf) -> None:
    cases = [
        {"quantizer": "rvq", "depth": 3, "codebook_size": 32},
        {"quantizer": "fsq", "groups": 16, "codebook_size": 4, "quantizer.levels": [4] * 16},
        {"quantizer": "lfq", "groups": 16, "codebook_size": 2},
    ]
    for bits, kept in {15: "rvq", 32: "fsq", 16: "lfq"}.items():
        (cell,) = plan_of(cases=cases, where=f"bits_per_token == {bits}").cells
        assert cell.config.quantizer.kind == kept
    (cell,) = plan_of(cases=cases, where=f"tokens_per_image == {3 * 64}").cells
    assert cell.config.quantizer.kind == "rvq"


def test_axes_without_a_column_are_kept_as_json(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"quantizer.init": ["uniform"], "quantizer.groups": [2], "seed": [1]})
    assert other_axes(plan.cells[0].axes) == '{"quantizer.init": "uniform"}'
    assert other_axes({"groups": 2}) == "{}"


@pytest.mark.parametrize(
    ("axes", "key"),
    [
        ({"seed": [0, 2**63]}, "train.seed"),
        ({"seed": [10**40]}, "train.seed"),
        ({"repeat": [2**63]}, "train.repeat"),
        ({"steps": [2**62], "batch_size": [4]}, "train.steps * train.batch_size"),
    ],
)
def test_a_number_that_the_table_cannot_hold_is_refused_by_the_plan(plan_of: PlanOf, axes: dict, key: str) -> None:
    with pytest.raises(UserError) as found:
        plan_of(axes=axes)
    largest = str(next(iter(axes.values()))[-1])
    for word in (f"{key}: ", largest[:6], str(2**63 - 1)):
        assert word in str(found.value)
    assert len(plan_of(axes={"seed": [2**63 - 1]}).cells) == 1
