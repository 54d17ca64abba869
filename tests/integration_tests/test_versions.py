"""What pyproject.toml declares is what was tested: minimums by make lowest, caps by the pinned versions."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def declared(*extras: str) -> list[Requirement]:
    texts: Iterable[str] = [
        *PROJECT["dependencies"],
        *(text for name in extras for text in PROJECT["optional-dependencies"][name]),
    ]
    return [found for found in map(Requirement, texts) if found.name != "gsq"]


def pinned(name: str) -> dict[str, Version]:
    lines = (REPOSITORY / name).read_text().splitlines()
    return {canonicalize_name(package): Version(version) for package, _, version in (x.partition("==") for x in lines)}


# Any other torch than that of constraints.txt would be gigabytes.
@pytest.mark.parametrize("requirement", [r for r in declared("dino", "hub") if r.name != "torch"], ids=str)
def test_each_minimum_is_a_version_that_make_lowest_installs(requirement: Requirement) -> None:
    (minimum,) = (s.version for s in requirement.specifier if s.operator in (">=", "=="))
    assert pinned(".ci/constraints-lowest.txt")[canonicalize_name(requirement.name)] == Version(minimum)


def test_pinned_versions_are_allowed() -> None:
    found = pinned("constraints.txt")
    for requirement in declared("dino", "hub", "dev", "notebooks"):
        assert found[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    assert pinned(".ci/constraints-lowest.txt")["torch"] == found["torch"]


def test_the_newest_submitit_that_is_allowed_is_the_pinned_one() -> None:
    (requirement,) = (r for r in declared() if r.name == "submitit")
    (newest,) = (s.version for s in requirement.specifier if s.operator == "<=")
    assert pinned("constraints.txt")["submitit"] == Version(newest)
