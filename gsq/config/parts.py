"""Parts of a user's own, named by import path ``package.module:Name``: found, checked, and identified by their source.

A part is whatever the built-in one in its place is (a quantizer's class, a function that makes a manifest, ...). Its
keys stand in ``options`` of its section, and the dataclass ``Options`` that it declares says which there are. What
trains enters the signature by the hash of its source, what evaluates the protocol's.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

from gsq.config.types import check_type
from gsq.errors import UserError, choose, nearest

# Config keys that take a part, and what the part is; those of ``evaluation`` are not signed.
TAKEN = {
    "quantizer.kind": "a subclass of gsq.quantizers.Quantizer",
    "model.kind": "a class with the functions encoder and decoder, which return torch modules",
    "discriminator.kind": "a class or function that returns a torch module of logits",
    "loss.perceptual": "a class or function that returns a torch module (images, targets) -> scalar",
    "data.kind": "a function from a DataConfig to a gsq.data.manifest.Manifest",
    "evaluation.features": "a function that returns a torch module (B, 3, H, W) -> (B, k)",
    "evaluation.metrics": "a class or function that returns a callable (images, originals) -> (B,)",
}
# What is named elsewhere: by a sweep's key, and on the command line of ``gsq evaluate``.
OTHERS = {
    "program": "a function train(config, run) that returns a dict of metrics",
    "model": "a function that returns an object with encode and decode, or reconstruct",
}
PATH = "package.module:Name"
_HASH = "__gsq_source_sha256__"


class Options(dict[str, Any]):
    """Keys and values of a part's own; lists are held as tuples. Not to be changed, since configs are hashed."""

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), **more: Any) -> None:
        given = dict(values, **more)
        super().__init__({str(k): tuple(v) if isinstance(v, list) else v for k, v in given.items()})

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True, default=str))


def is_path(name: str) -> bool:
    """Whether a value names a part of a user's own: ``package.module:Name``."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def choose_or_own(section: str, values: object, **allowed: Iterable[str]) -> None:
    """``gsq.errors.choose`` for keys that also take a part of a user's own."""
    for key, words in allowed.items():
        if not is_path(value := getattr(values, key)):
            choose(f"{section}.{key}", value, (*words, PATH))


def search_also(folder: Path) -> None:
    """Let modules in ``folder`` be found after those that Python finds anyway."""
    if (text := str(folder.resolve())) not in sys.path:
        sys.path.append(text)


def imported(module: str) -> ModuleType:
    """A user's own module; what it prints while it is imported goes to standard error, beside a verb's own output."""
    with redirect_stdout(sys.stderr):
        return importlib.import_module(module)


def load(name: str, key: str) -> Any:
    """The part that a config key names.

    Raises UserError where its module cannot be imported, for whatever reason, or has no such callable.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = imported(module_name)
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
        raise UserError(
            f"{key}: '{name}' cannot be imported ({reason}); write {PATH} of a module that Python finds: in this "
            "folder, beside the sweep's YAML file, or on PYTHONPATH"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UserError(
            f"{key}: module {module_name} has no class or function '{attribute}'{nearest(attribute, names)}; name "
            f"{TAKEN.get(key) or OTHERS[key.rpartition(' ')[2]]}"
        )
    return found


def options_of(name: str, key: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a part: those given, and the defaults of the others.

    Raises UserError for one that the part's dataclass ``Options`` does not have (naming the nearest), or of another
    type.
    """
    section = key.split(".")[0]
    declared: Any = getattr(load(name, key), "Options", None)
    if declared is None or not dataclasses.is_dataclass(declared):
        if given:
            raise UserError(
                f"{section}.options: '{next(iter(given))}' is given, but {name} declares no options; declare them as a "
                "dataclass: its attribute Options"
            )
        return {}
    valid = [f.name for f in dataclasses.fields(declared)]
    hints = get_type_hints(declared)
    for option, value in given.items():
        where = f"{section}.options.{option}"
        if option not in valid:
            raise UserError(f"{where}: {name} has no such option{nearest(option, valid)}; it has {', '.join(valid)}")
        wanted = hints[option]
        check_type(value, tuple if get_args(wanted) or wanted in (tuple, list) else wanted, where)
    whole = {option for option, wanted in hints.items() if wanted is float}
    try:
        # 1 and 1.0 are one value, with one signature.
        make: Any = declared
        made = make(**{option: float(v) if option in whole else v for option, v in given.items()})
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{section}.options: {name} refuses {dict(given)}: {error}") from error
    return {option: getattr(made, option) for option in valid}


def option_value(config: Any, key: str) -> Any:
    """The value of an option by its dotted key, ``quantizer.options.temperature``, in a RunConfig.

    Raises UserError where no part of a user's own stands there, or it has no such option.
    """
    section, _, option = key.split(".", 2)
    taken = next(one for one in TAKEN if one.startswith(f"{section}."))
    name = getattr(getattr(config, section), taken.split(".")[1])
    if not is_path(name):
        raise UserError(f"{key}: {taken} is '{name}', which has no options; name a part of your own ({PATH}) in set")
    values = options_of(name, taken, getattr(config, section).options)
    if option not in values:
        raise UserError(f"{key}: {name} has no such option{nearest(option, values)}; it has {', '.join(values)}")
    return values[option]


def changed_options(name: str, key: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the part's defaults, which are left out of signatures."""
    defaults = options_of(name, key, {})
    return {option: value for option, value in options_of(name, key, given).items() if value != defaults[option]}


def source(name: str) -> tuple[Path, tuple[Path, ...]]:
    """The folder that a part's module is imported from, and its files relative to that.

    They are the Python files of its package or, of a single file, itself and what it imports from the same folder.
    Raises UserError where there are none.
    """
    module_name = name.partition(":")[0]
    # The hash of one of gsq's own templates covers that file alone.
    top = module_name if module_name.startswith("gsq.") else module_name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.submodule_search_locations:
        folder = Path(next(iter(spec.submodule_search_locations)))
        files = (f for f in folder.rglob("*.py") if "__pycache__" not in f.parts)
        return folder.parent, tuple(sorted(f.relative_to(folder.parent) for f in files))
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise UserError(f"{name}: the source of module {top} cannot be found")
    file = Path(spec.origin)
    if top.startswith("gsq."):
        root = file.parents[module_name.count(".")]
        return root, (file.relative_to(root),)
    if file.parent.name in ("site-packages", "dist-packages"):
        return file.parent, (Path(file.name),)
    return file.parent, tuple(sorted({f.relative_to(file.parent) for f in _with_imports(file, set())}))


def _with_imports(file: Path, seen: set[Path]) -> Iterator[Path]:
    """A file, and the modules and packages beside it that it imports, directly or by others."""
    seen.add(file)
    yield file
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for top in {one.partition(".")[0] for one in names} - {"gsq"}:
            beside, package = file.parent / f"{top}.py", file.parent / top
            found = [beside] if beside.is_file() else sorted(package.rglob("*.py")) if package.is_dir() else []
            for one in found:
                if one not in seen and "__pycache__" not in one.parts:
                    yield from _with_imports(one, seen) if one == beside else _added(one, seen)


def _added(file: Path, seen: set[Path]) -> Iterator[Path]:
    seen.add(file)
    yield file


def source_sha256(name: str) -> str:
    """sha256 over the names and contents of a part's source files, as they were when it was first asked for.

    It stays with the imported module: a file that is edited later is another source when it is imported again.
    """
    module = imported(name.partition(":")[0])
    if (known := vars(module).get(_HASH)) is None:
        root, files = source(name)
        hashed = hashlib.sha256()
        for file in files:
            hashed.update(file.as_posix().encode() + b"\0" + (root / file).read_bytes() + b"\0")
        known = hashed.hexdigest()
        setattr(module, _HASH, known)
    return str(known)


def named_parts(config: Any) -> dict[str, tuple[str, ...]]:
    """The parts of a user's own that a RunConfig names, by config key; of a ProgramConfig its program."""
    if config.program:
        return {"program": (config.program,)}
    found = {}
    for key in TAKEN:
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        values = value if isinstance(value, tuple) else (value,)
        if paths := tuple(one for one in values if is_path(one)):
            found[key] = paths
    return found


def sources_text(config: Any) -> str | None:
    """JSON of the parts of a user's own by config key, each with the first digits of its source's hash; None without.

    What the results table holds of them.
    """
    found = {
        key: [f"{name}@{source_sha256(name)[:12]}" for name in names] for key, names in named_parts(config).items()
    }
    plain = {key: names if key == "evaluation.metrics" else names[0] for key, names in found.items()}
    return json.dumps(plain, sort_keys=True) if plain else None


def check_parts(config: Any) -> None:
    """Raise UserError for a part that cannot be imported, or options that its part does not have."""
    for key, names in named_parts(config).items():
        section = key.split(".")[0]
        for name in names:
            if inspect.ismodule(load(name, key)):
                raise UserError(f"{key}: '{name}' is a module; name {TAKEN[key]}")
            if section != "evaluation":
                options_of(name, key, getattr(config, section).options)
    for section in ("quantizer", "model", "discriminator", "loss", "data"):
        given = getattr(config, section).options
        key = next(k for k in TAKEN if k.startswith(f"{section}."))
        if given and key not in named_parts(config):
            raise UserError(
                f"{section}.options: '{next(iter(given))}' has no meaning for {key} "
                f"'{getattr(getattr(config, section), key.split('.')[1])}', only for a part of your own ({PATH})"
            )
