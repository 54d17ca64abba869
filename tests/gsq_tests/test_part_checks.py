"""``gsq check`` finds what a part of one's own does wrong, and passes the templates of ``gsq new``."""

from __future__ import annotations

from pathlib import Path

import pytest

from gsq.errors import UserError
from gsq.runs import part_checks
from gsq.runs.part_checks import ROLES, check_part, role_of
from gsq.templates.write import KINDS, write_part


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_checks, "training_checks", lambda config: iter(()))


@pytest.mark.parametrize("role", [role for role in ROLES if role not in ("quantizer", "loss")])
@pytest.mark.usefixtures("without_training")
def test_the_templates_pass(role: str) -> None:
    found = check_part(f"gsq.templates.{role}:{KINDS[role][0]}", role)
    assert [check for check in found if not check.passed or (check.message and check is not found[0])] == []


def test_a_quantizer_is_trained_with_in_parts_resumed_and_by_two_processes() -> None:
    found = check_part("gsq.templates.quantizer:Mine")
    assert [check for check in found if not check.passed] == []
    assert [check.name for check in found[-4:]] == [
        "3 steps, twice the same",
        "micro-batches change nothing",
        "a resumed run goes on the same",
        "two processes change nothing",
    ]


@pytest.mark.parametrize(
    ("part", "failing", "says"),
    [
        ("OutOfRange", "shapes, types", "out of range"),
        ("NotFinite", "shapes, types", "NaN"),
        ("WrongType", "shapes, types", "float32"),
        ("NoGradient", "gradient", "no gradient"),
        ("OtherDecoding", "decode", "0.001"),
        ("Undeclared", "plan counts", "index_sizes"),
        ("Drawing", "random state", "torch.Generator"),
        ("OfTheBatch", "each other", "differ"),
    ],
)
@pytest.mark.usefixtures("without_training")
def test_what_is_wrong_with_a_quantizer_is_named(part: str, failing: str, says: str) -> None:
    failed = [check for check in check_part(f"own_parts:{part}", "quantizer") if not check.passed]
    assert any(failing in check.name and says in check.message for check in failed), failed


@pytest.mark.usefixtures("without_training")
def test_a_part_that_prints_is_warned_of() -> None:
    found = check_part("own_parts:Chatty", "quantizer")
    assert any(check.passed and "prints" in check.message for check in found)


def test_a_loss_that_is_no_mean_over_images_is_named() -> None:
    failed = [check for check in check_part("own_parts:Summed", "loss") if not check.passed]
    assert "a mean over the images" in {check.name for check in failed}


def test_a_metric_of_one_value_for_all_is_refused() -> None:
    failed = [check.message for check in check_part("own_parts:Scalar", "metric") if not check.passed]
    assert failed
    assert "evaluation.metrics" in failed[0]


def test_the_role_follows_from_the_class_or_is_asked_for() -> None:
    assert role_of("gsq.templates.quantizer:Mine") == "quantizer"
    assert role_of("gsq.templates.model:Mine") == "model"
    with pytest.raises(UserError, match="--as"):
        check_part("gsq.templates.loss:Mine")


@pytest.mark.parametrize("kind", KINDS)
def test_new_writes_a_part_and_its_test(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"my_{kind}.py"
    written, part, setting = write_part(kind, file)
    assert [path.name for path in written] == [f"my_{kind}.py", f"test_my_{kind}.py"]
    assert part in file.read_text() and part in written[1].read_text() and part in setting
    assert "gsq.templates" not in file.read_text()
    for path, wrong in ((file, "is there already"), (tmp_path / "my-part.py", "my-part.py")):
        with pytest.raises(UserError, match=wrong):
            write_part(kind, path)
