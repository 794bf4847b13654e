"""Strict YAML: a file becomes a frozen dataclass or an error that names the key, the file and the nearest valid key."""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union

import yaml

from .errors import InputError, damage

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def config_path(name: str) -> Path:
    """The packaged configs/NAME.yaml; NAME may contain folders. Raises InputError listing what that folder holds."""
    path = CONFIGS / f"{name.removesuffix('.yaml')}.yaml"
    if path.is_file():
        return path
    inside = path.parent.is_dir() and path.parent.resolve().is_relative_to(CONFIGS.resolve())
    beside = path.parent if inside else CONFIGS
    stems = sorted(p.stem for p in beside.glob("*.yaml"))
    place = "" if beside == CONFIGS else f"{beside.relative_to(CONFIGS).as_posix()}/"
    have = ", ".join(place + stem for stem in stems)
    raise InputError(f"no packaged config {name!r}; have {have or 'none'}{_nearest(path.stem, stems, place)}")


def read_yaml(path: str | Path) -> Any:
    """The plain content of a YAML file. Raises InputError for a missing, unreadable or malformed one."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"config {path} does not exist") from error
    except OSError as error:
        raise InputError(f"config {path} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # numbers of thousands of digits too
        raise InputError(f"config {path} is not valid YAML: {damage(error)}") from error


def load_config(cls: type[T], source: str | Path | Mapping[str, Any], **overrides: Any) -> T:
    """An instance of the dataclass `cls` from a YAML file, the name of a packaged config, or a mapping.

    Overrides win over the file; nested ones are mappings or dotted keys (`**{"field.levels": 8}`).
    Raises InputError for unknown keys, missing keys and wrong types; checks inside `__post_init__` are passed on.
    """
    where = "the given mapping"
    if isinstance(source, Mapping):
        values: Any = source
    else:
        path = Path(source)
        if isinstance(source, str) and path.suffix not in (".yaml", ".yml"):
            path = config_path(source)
        values, where = read_yaml(path), str(path)
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise InputError(f"{where} must hold keys and values, not a {type(values).__name__}")
    merged = _merge(values, _undot(overrides))
    return _build(cls, merged, "", where)


def to_dict(config: Any) -> Any:
    """Dataclasses, mappings, tuples and paths as plain dicts, lists and strings, ready for YAML or JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple, set, frozenset)):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def to_yaml(config: Any) -> str:
    """The text that `load_config` reads back into an equal config."""
    return yaml.dump(to_dict(config), Dumper=_ReadableDumper, sort_keys=False, allow_unicode=True, width=120)


class _ReadableDumper(yaml.SafeDumper):
    """Leaves text readable in any script, but escapes Unicode's line breaks: unescaped they read back as others."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Double quotes, the only style that escapes them, for text with line breaks beyond ASCII."""
        style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_ReadableDumper.add_representer(str, _ReadableDumper.represent_text)


def _undot(overrides: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in overrides.items():
        for part in reversed(key.split(".")[1:]):
            value = {part: value}
        nested = _merge(nested, {key.split(".")[0]: value})
    return nested


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _nearest(word: str, known: Sequence[str], place: str = "") -> str:
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f" (did you mean {place + close[0]!r}?)" if close else ""


def _build(cls: type[T], values: Mapping[str, Any], prefix: str, where: str) -> T:
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in values:
        if key not in fields:
            have = f"; valid keys: {', '.join(fields)}"
            name = f"{prefix}{key}"[:120]
            raise InputError(f"unknown key '{name}' in {where}{_nearest(str(key)[:120], list(fields)) or have}")
    kwargs = {k: _convert(hints[k], v, f"{prefix}{k}", where) for k, v in values.items()}
    for name, field in fields.items():
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if no_default and name not in kwargs:
            raise InputError(f"key '{prefix}{name}' is missing in {where}")
    try:
        return cls(**kwargs)
    except (ValueError, TypeError) as error:  # an InputError is one
        raise InputError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, key: str, where: str) -> Any:
    """`value` as the annotated type, without guessing: only int -> float, list -> tuple, str -> Path and 1e-3."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, key, where)
    if origin is Literal:
        if value in args and any(value == a and type(value) is type(a) for a in args):
            return value
        raise InputError(f"'{key}' in {where} is {_shown(value)}; choose one of {', '.join(map(repr, args))}")
    if dataclasses.is_dataclass(hint):
        if isinstance(hint, type) and isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return _build(typing.cast("type[DataclassInstance]", hint), value, f"{key}.", where)
        raise _wrong(key, value, "keys and values", where)
    base = origin or hint
    if base in (tuple, list, Sequence):
        return _convert_sequence(base, args, value, key, where)
    if base in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(key, value, "keys and values", where)
        kinds = args or (Any, Any)
        return {
            _convert(kinds[0], k, f"{key}.{k}", where): _convert(kinds[1], v, f"{key}.{k}", where)
            for k, v in value.items()
        }
    return _convert_scalar(base, value, key, where)


def _convert_union(args: tuple[Any, ...], value: Any, key: str, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    options = [a for a in args if a is not type(None)]
    exact = [a for a in options if isinstance(a, type) and type(value) is a]
    errors = []
    for option in exact + options:
        try:
            return _convert(option, value, key, where)
        except InputError as error:
            errors.append(error)
    if len(options) == 1:
        raise errors[0]
    names = " or ".join(getattr(a, "__name__", str(a)) for a in options)
    raise _wrong(key, value, names, where)


def _convert_sequence(base: Any, args: tuple[Any, ...], value: Any, key: str, where: str) -> Any:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _wrong(key, value, "a list", where)
    if base is tuple and args and not (len(args) == 2 and args[1] is Ellipsis):
        if len(value) != len(args):
            raise InputError(f"'{key}' in {where} has {len(value)} entries, expected {len(args)}")
        kinds: Sequence[Any] = args
    else:
        kinds = [args[0] if args else Any] * len(value)
    items = [
        _convert(kind, item, f"{key}[{i}]", where) for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    ]
    return tuple(items) if base is tuple else items


def _convert_scalar(base: Any, value: Any, key: str, where: str) -> Any:
    if base is float and not isinstance(value, bool):
        if isinstance(value, (int, float)):
            return float(value)
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 (no dot) as a string
            try:
                return float(value)
            except ValueError:
                pass
    elif base is Path and isinstance(value, (str, Path)):
        return Path(value)
    elif isinstance(base, type) and isinstance(value, base) and not (base is int and isinstance(value, bool)):
        return value
    raise _wrong(key, value, getattr(base, "__name__", str(base)), where)


def _wrong(key: str, value: Any, want: str, where: str) -> InputError:
    given = "empty" if value is None else f"{_shown(value)} ({type(value).__name__})"
    return InputError(f"'{key}' in {where} is {given}, expected {want}")


def _shown(value: Any) -> str:
    """A value in a message: of large ones the beginning, and of those that hold themselves many times over no more."""
    return _SHORT.repr(value)
