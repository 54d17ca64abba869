"""The registry of quantizers: what config, costs and plans need to know of each kind. Imports no torch.

The file of a quantizer, ``gsq/quantizers/<name>.py``, declares its kinds by a top-level statement,
``KINDS = (Kind(...), ...)``. Since importing that file would load torch, this module reads the statement alone and
evaluates it with the names defined here. ``gsq.quantizers`` builds the class. A quantizer of a user's own is imported
instead, and can leave ``KINDS`` out.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from gsq.config.parts import is_path, load
from gsq.errors import UserError

QUANTIZERS = Path(__file__).parents[1] / "quantizers"
# Messages and help name the kinds in this order, then others by name.
ORDER = ("gsq", "vq", "rvq", "fsq", "lfq", "bsq", "simvq", "ibq", "diveq")
# How a codebook starts, and what becomes of rows that nothing chooses.
ROWS = ("init", "codebook_decay", "restart_below", "kmeans_steps")
# The gradient through a chosen row.
GRADIENT = ("gradient", "soft_temperature", "soft_decay")
# Options of a codebook and of the look-up in it.
CODEBOOK = (*ROWS, *GRADIENT, "lookup_norm", "lookup_precision", "commitment_weight", "codebook_update")


# The section ``quantizer`` of a config: a QuantizerConfig, which is defined above this module.
Section = Any


@dataclass(frozen=True)
class Option:
    """A key that a kind adds to the config's section ``quantizer``. Signatures leave out its default."""

    name: str
    default: Any
    """int, float, bool or str, which is also the key's type."""
    check: Callable[[Any], str] = lambda value: ""
    """Returns why a value is refused and what is allowed; empty if it is fine."""


def index_a_group(q: Section) -> tuple[int, ...]:
    """One index into V rows for each group."""
    return (q.codebook_size,) * q.groups


def grouped_rows(q: Section, latent_dim: int) -> int:
    """V rows of d = D / G channels, for each group or for all together."""
    return q.codebook_size * (latent_dim if q.codebooks == "per_group" else latent_dim // q.groups)


def row_products(q: Section, latent_dim: int) -> int:
    """Each group against V rows; nothing at d = 1, where a binary search finds the row."""
    return 0 if latent_dim == q.groups else q.codebook_size * latent_dim


def several_groups(q: Section) -> str:
    """Check for a kind that can have a codebook for each group."""
    if q.codebooks == "per_group" and q.groups == 1:
        return (
            "quantizer.codebooks: 'per_group' has no meaning for quantizer.groups 1, which has one codebook; use shared"
        )
    return ""


def one_group(q: Section) -> str:
    """Check for a kind that neither groups the channels nor normalises."""
    if q.groups != 1:
        return f"quantizer.groups: {q.groups}, but {q.kind} has one group; use 1, or kind gsq"
    if q.lookup_norm not in ("auto", "none"):
        return f"quantizer.lookup_norm: '{q.lookup_norm}', but {q.kind} does not normalise; use auto, or kind gsq"
    return ""


def two_values(q: Section) -> str:
    """Check for a kind that takes the sign of each channel."""
    if q.codebook_size != 2:
        return f"quantizer.codebook_size: {q.codebook_size}, but {q.kind} takes the sign of each channel: 2"
    return ""


@dataclass(frozen=True)
class Kind:
    """One kind of quantizer. Functions get the section ``quantizer`` of a config and D, its latent channels."""

    name: str
    """quantizer.kind."""
    cls: str
    """The class in the same file, a ``gsq.quantizers.base.Quantizer`` with a class method ``build``."""
    options: tuple[str, ...]
    """Keys of the section that affect its result, besides groups and codebook_size; others are refused."""
    own: tuple[Option, ...] = ()
    """Keys that no other kind has."""
    per_channel: bool = False
    """Whether it quantizes each channel, so that groups must equal latent_dim."""
    least_group_dim: int = 1
    """Channels that a group needs at least."""
    init: str = "uniform"
    """Meaning of quantizer.init "auto"."""
    lookup_norm: str = "none"
    """Meaning of quantizer.lookup_norm "auto" if a group has several channels."""
    index_sizes: Callable[[Section], tuple[int, ...]] = index_a_group
    """Number of values of each index of a latent position."""
    parameters: Callable[[Section, int], int] = lambda q, latent_dim: 0
    """Number of learned parameters: codebook entries and others."""
    lookup_macs: Callable[[Section, int], int] | None = None
    """Multiply-adds for one latent position. None: each group against every entry of ``parameters``, and nothing at d =
    1, where a binary search finds the row."""
    check: Callable[[Section], str] = lambda q: ""
    """Returns why a section is refused, with key, value and fix; empty if it is fine."""
    module: str = field(default="", compare=False)
    """Name of its file, which ``declared`` fills in."""

    def uses(self, key: str) -> bool:
        return key in ("kind", "groups", "codebook_size", *self.options, *(option.name for option in self.own))

    def position_macs(self, q: Section, latent_dim: int) -> int:
        """Multiply-adds of the look-up of one latent position."""
        if self.lookup_macs is not None:
            return self.lookup_macs(q, latent_dim)
        return 0 if latent_dim == q.groups else q.groups * self.parameters(q, latent_dim)


def declared(file: Path) -> tuple[Kind, ...]:
    """The kinds that a file declares; none without ``KINDS``. Raises TypeError for anything but a tuple of Kind."""
    text = file.read_text(encoding="utf-8")
    if "\nKINDS = " not in text:
        return ()
    (statement,) = (
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "KINDS"
    )
    # Evaluate in this module's namespace, so that its helpers can be named.
    kinds = eval(compile(ast.Expression(statement.value), str(file), "eval"), dict(globals()))
    if not isinstance(kinds, tuple) or not all(isinstance(kind, Kind) for kind in kinds):
        raise TypeError(f"{file}: KINDS must be a tuple of Kind")
    return tuple(replace(kind, module=file.stem) for kind in kinds)


@cache
def kinds() -> dict[str, Kind]:
    """Every kind by name. Raises ValueError if two have the same name or add the same option."""
    found = [kind for file in sorted(QUANTIZERS.glob("*.py")) for kind in declared(file)]
    found.sort(key=lambda kind: (ORDER.index(kind.name) if kind.name in ORDER else len(ORDER), kind.name))
    for names in ([kind.name for kind in found], [option.name for kind in found for option in kind.own]):
        if len(set(names)) < len(names):
            raise ValueError(f"two quantizers in {QUANTIZERS} declare the same name: {', '.join(names)}")
    return {kind.name: kind for kind in found}


def kind_named(name: str) -> Kind:
    """The kind with a built-in name, or a user's own at package.module:Name. Raises UserError like ``parts.load``."""
    return _own_kind(name, load(name, "quantizer.kind")) if is_path(name) else kinds()[name]


@cache
def _own_kind(name: str, cls: type) -> Kind:
    module = sys.modules[name.partition(":")[0]]
    stated = getattr(module, "KINDS", ())
    if not isinstance(stated, tuple) or not all(isinstance(kind, Kind) for kind in stated):
        raise UserError(f"quantizer.kind: '{name}': KINDS of its module must be a tuple of gsq.config.kinds.Kind")
    found = [kind for kind in stated if kind.cls == name.partition(":")[2]]
    if found and found[0].own:
        raise UserError(
            f"quantizer.kind: '{name}': options of your own belong in the dataclass Options of the class, not into "
            f"Kind.own ({', '.join(option.name for option in found[0].own)})"
        )
    return replace(found[0] if found else Kind(name, cls.__name__, ()), name=name, module=module.__name__)


def users_of(key: str) -> list[str]:
    """Names of the kinds that an option affects."""
    return [name for name, kind in kinds().items() if kind.uses(key)]
