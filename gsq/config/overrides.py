"""Configs from files and overrides, and back to plain values. Imports no torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from gsq.config.axes import AXES
from gsq.config.parts import Options, check_parts, named_parts
from gsq.config.program import ProgramConfig
from gsq.config.quantizer import QuantizerConfig, refuse_ignored
from gsq.config.run import SECTIONS, RunConfig
from gsq.config.values import checked, key_types
from gsq.errors import UserError, nearest

KEYS: tuple[str, ...] = tuple(f"{name}.{f.name}" for name, section in SECTIONS.items() for f in fields(section))

# Short names of sweep axes, for the config keys behind them.
SHORT_NAMES: dict[str, str] = {axis.name: axis.key for axis in AXES if axis.key}
_SPLIT = {name: SHORT_NAMES.get(name, name).split(".") for name in (*SHORT_NAMES, *KEYS)}
# quantizer.options.temperature: a key that a part of a user's own declares.
OPTIONS = tuple(f"{key}." for key in KEYS if key.endswith(".options"))


def config_key(name: str, where: str) -> str:
    """The config key of a short or dotted name. Raises UserError, which names the nearest key, if there is none."""
    key = SHORT_NAMES.get(name, name)
    if key in KEYS or (key.startswith(OPTIONS) and key.split(".", 2)[2].isidentifier()):
        return key
    valid = [*SHORT_NAMES, *KEYS]
    last = [k for k in KEYS if k.split(".")[1] == name.split(".")[-1]]
    hint = f" (did you mean '{last[0]}'?)" if last else nearest(name, valid)
    raise UserError(f"{where}: '{name}' is not a config key{hint}; short names are {', '.join(SHORT_NAMES)}")


def load_config(
    values: Mapping[str, Any],
    base: RunConfig | None = None,
    where: str = "config",
    *,
    preset: QuantizerConfig | None = None,
    finished: bool = False,
) -> RunConfig:
    """Merge nested ``values`` ({"model": {"latent_dim": 8}}) into ``base`` with OmegaConf's type checks.

    preset: the quantizer of the preset behind ``base`` (default: that of ``base``); options that it sets may stay even
    if the kind of quantizer ignores them. finished: the config of a finished run, in which options that earlier
    versions accepted (an option that its kind ignores, a number in quotes) stay valid.

    Raises UserError for an unknown key (naming the nearest), a wrong type or an impossible combination.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    base = base or RunConfig()
    sections: dict[str, Any] = {}
    if {"name", "base"} <= {*values}:
        raise UserError(
            f"{where}: is a sweep file; name a preset (cpu-tiny) or a file of config sections ({', '.join(SECTIONS)})"
        )
    for name, section_values in values.items():
        if name not in SECTIONS:
            raise UserError(
                f"{where}: unknown section '{name}'{nearest(name, SECTIONS)}; sections are {', '.join(SECTIONS)}"
            )
        if not isinstance(section_values, Mapping):
            raise UserError(f"{where}: {name}: {section_values!r} is not a mapping of keys to values")
        valid = {f.name for f in fields(SECTIONS[name])}
        for key in section_values:
            if key not in valid:
                raise UserError(
                    f"{where}: unknown key '{name}.{key}'{nearest(str(key), valid)}; "
                    f"{name} has {', '.join(sorted(valid))}"
                )
            if not (finished or _refers(section_values[key])):
                checked(f"{name}.{key}", section_values[key], f"{where}: {name}.{key}")
        current = getattr(base, name)
        structured = OmegaConf.structured(dataclasses.replace(current))
        try:
            merged = OmegaConf.merge(structured, keep_shell_variables(dict(section_values), valid))
            plain = OmegaConf.to_container(merged, resolve=True)
        except OmegaConfBaseException as error:
            key = f"{name}.{error.full_key}" if getattr(error, "full_key", None) else name
            reason = str(error.msg or error).splitlines()[0]
            if "$VALUE" in reason:  # OmegaConf leaves its own template unfilled for an entry of a tuple
                lists = [k for k, v in section_values.items() if isinstance(v, (list, tuple))]
                key, reason = f"{name}.{' or '.join(lists)}", "an entry is of the wrong type"
            raise UserError(f"{where}: {key}: {reason}") from None
        assert isinstance(plain, dict)
        sections[name] = SECTIONS[name](**{str(key): value for key, value in plain.items()})
    loaded = dataclasses.replace(base, **sections)
    if not finished:
        if "quantizer" in sections:
            refuse_ignored(loaded.quantizer, values["quantizer"], preset or base.quantizer)
        try:
            check_parts(loaded)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return loaded


def _refers(value: Any) -> bool:
    """Whether OmegaConf replaces the value by another one, which it checks."""
    return isinstance(value, str) and "${" in value


class Overrides:
    """``override`` for many cells of one base. It makes and checks a section that cells share only once.

    Like the signature, it compares values as they are written (0.0 and -0.0, 1 and 1.0 in a list).
    """

    def __init__(self, base: RunConfig, preset: QuantizerConfig | None = None) -> None:
        """preset: as for ``load_config``."""
        self.base, self.preset = base, preset or base.quantizer
        self._own = {name: getattr(base, name) for name in SECTIONS}
        self._sections: dict[tuple[str, ...], Any] = {}
        self._checked: set[str] = set()

    def __call__(self, values: Mapping[str, Any], where: str = "config") -> RunConfig:
        """Raises UserError as ``override`` does."""
        nested: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            section, key = _SPLIT.get(name) or config_key(name, where).split(".", 1)
            if key.startswith("options."):
                nested.setdefault(section, {})[key] = value
            else:
                nested.setdefault(section, {})[key] = checked(f"{section}.{key}", value, f"{where}: {name}")
        return self._replaced(nested, refuse=True)

    def restore(self, changes: Mapping[str, Any]) -> RunConfig:
        """The config that ``differences`` described, exactly. Raises UserError for a value that is not allowed, and
        KeyError, ValueError or TypeError for anything but such a description."""
        if "program" in changes:
            return ProgramConfig.from_dict(changes)
        nested: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            section, key = _SPLIT[name]
            nested.setdefault(section, {})[key] = tuple(value) if isinstance(value, list) else value
        return self._replaced(nested)

    def _replaced(self, nested: dict[str, dict[str, Any]], refuse: bool = False) -> RunConfig:
        parts = {}
        for section, part in nested.items():
            written = (section, *(f"{key}={value!r}" for key, value in part.items()))
            if written not in self._sections:
                before = getattr(self.base, section)
                own = {key.partition(".")[2]: part.pop(key) for key in list(part) if key.startswith("options.")}
                if own:
                    part["options"] = {**part.get("options", before.options), **own}
                changed = dataclasses.replace(before, **part)
                if refuse and section == "quantizer":
                    refuse_ignored(changed, part, self.preset)
                self._sections[written] = changed
            parts[section] = self._sections[written]
        made = RunConfig(**{**self._own, **parts})
        if refuse:
            self._check_parts(made)
        return made

    def _check_parts(self, config: RunConfig) -> None:
        """``check_parts``, once for cells that name the same parts with the same options."""
        named = named_parts(config)
        given = [getattr(config, name).options for name in SECTIONS if hasattr(getattr(config, name), "options")]
        if named or any(given):
            key = repr((named, given))
            if key not in self._checked:
                check_parts(config)
                self._checked.add(key)


def override(config: RunConfig, values: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Set dotted or short keys ({"latent_dim": 8}) without OmegaConf, at the cost of ``dataclasses.replace``.

    Raises UserError like ``load_config``.
    """
    return Overrides(config)(values, where)


def differences(config: RunConfig, base: RunConfig) -> dict[str, Any]:
    """Dotted keys and values from which ``Overrides(base).restore`` rebuilds ``config``; tuples as lists. For a
    ProgramConfig every key."""
    if isinstance(config, ProgramConfig):
        return config.to_dict()
    changed: dict[str, Any] = {}
    for section in SECTIONS:
        one, other = getattr(config, section), getattr(base, section)
        if one is not other:
            for name in _names(one):
                value, before = getattr(one, name), getattr(other, name)
                if value is not before and repr(value) != repr(before):
                    changed[f"{section}.{name}"] = _plain(value)
    return changed


# The start of a parameter expansion of the shell, ${NAME}, ${NAME:-default}, ${#NAME}, and the backslashes before it.
# OmegaConf's ${section.key} and ${oc.env:NAME} have a dot after the first word, unlike the shell's.
_SHELL_VARIABLE = re.compile(r"(\\*)\$\{(?=[#!]?([A-Za-z_]\w*)[}:%#/^,@\[+=?-])")


def keep_shell_variables(value: Any, keys: Collection[str] = ()) -> Any:
    """Escape every ``${NAME}`` of the shell for OmegaConf, at any depth of lists and mappings, so that it stays as
    written.

    keys: keys of the file itself, whose ``${NAME}`` is OmegaConf's reference to the key. The user of a value expands
    its variables, like ``$NAME``.
    """

    def escaped(match: re.Match[str]) -> str:
        slashes, name = match.groups()
        # OmegaConf halves backslashes before ${; an odd number of them escapes it already.
        return match[0] if name in keys or len(slashes) % 2 else f"{slashes * 2}\\${{"

    if isinstance(value, str):
        return _SHELL_VARIABLE.sub(escaped, value)
    if isinstance(value, Mapping):
        return {key: keep_shell_variables(inner, keys) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(keep_shell_variables(inner, keys) for inner in value)
    return value


def read_value(name: str, text: str) -> Any:
    """The value of ``--set NAME=TEXT``, read like YAML (1e-3 is a number). For a key that is a text, 2024 and no are
    texts too, since a shell removes quotes. Raises UserError for a syntax error."""
    import yaml
    from omegaconf import OmegaConf

    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index,call-overload]
    except yaml.YAMLError as error:
        raise UserError(f"--set: {name}={text}: no value: {str(error).splitlines()[0]}") from None
    words = key_types().get(SHORT_NAMES.get(name, name), (None, None))[0] is str
    return text if words and isinstance(value, bool | int | float) else value


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. ``${section.key}`` takes another value of the file; ``${NAME}`` stays a variable of the
    shell, like ``$NAME``. Raises UserError with line and column for a syntax error."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
        keys = set(map(str, loaded)) if isinstance(loaded, dict) else set()
        container = OmegaConf.to_container(OmegaConf.create(keep_shell_variables(loaded, keys)), resolve=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; a YAML file is needed") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; YAML is needed") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}{place}: YAML syntax error: {error.problem or error.context}") from None
    except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None
    if not isinstance(container, dict):
        raise UserError(f"{path}: a mapping of keys to values is needed, found a {type(container).__name__}")
    return {str(key): value for key, value in container.items()}


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Nested plain values, tuples as lists (what config.yaml holds)."""
    if isinstance(config, ProgramConfig):
        return config.to_dict()
    return {name: section_dict(getattr(config, name)) for name in SECTIONS}


def section_dict(section: Any) -> dict[str, Any]:
    """Plain values of one section, tuples as lists."""
    return {name: _plain(getattr(section, name)) for name in _names(section)}


def _plain(value: Any) -> Any:
    if isinstance(value, Options):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


# Cached, since planning asks for the fields of each of thousands of cells.
_FIELDS = {section: tuple(f.name for f in fields(section)) for section in SECTIONS.values()}


def _names(section: Any) -> tuple[str, ...]:
    return _FIELDS.get(type(section)) or tuple(f.name for f in fields(section))


def from_dict(values: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """The inverse of ``to_dict``, without OmegaConf (for files that gsq wrote)."""
    if "program" in values:
        return ProgramConfig.from_dict(values)
    sections = {
        name: SECTIONS[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in section.items()})
        for name, section in values.items()
    }
    return RunConfig(**sections)
