"""Options in files: recipes, and the settings of a run."""

from __future__ import annotations

import json
from argparse import Action, ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tlfx.errors import InputError
from tlfx.system.files import write_atomically

__all__ = ["check_settings", "parse_with_config", "read_config", "settings_of", "write_config"]

FREE = {
    *("config", "output", "resume", "data_dir", "dataset_download", "workers", "path", "log_interval", "tensorboard"),
    *("checkpoint_steps", "validation_batch_size", "initial_checkpoint", "reset_classifier"),
    *("eval_steps", "evaluate", "multi_scale"),
}
"""Options that may change when a run is resumed, because its weights do not depend on them."""


BASE = "base"
"""The key of a file that names another file, relative to it, whose options it inherits."""


def parse_with_config(
    parser: ArgumentParser, arguments: Sequence[str] | None, *checks: Callable[[Namespace], None]
) -> Namespace:
    """Options of a command line, which override those in the files of --config, where later files override earlier
    ones; exits if they are invalid or a check raises InputError."""
    first = ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("-c", "--config", action="append", default=[])
    try:
        for file in first.parse_known_args(arguments)[0].config:
            parser.set_defaults(**read_config(Path(file), parser))
        options = parser.parse_args(arguments)
        for check in checks:
            check(options)
    except InputError as error:
        parser.error(str(error))
    return options


def read_config(file: Path, parser: ArgumentParser) -> dict[str, Any]:
    """Options of a YAML file by their names, as `batch-size: 128` or `batch_size: 128`, for `parser.set_defaults`.

    The options of the file that `base: FILE` names come first, and those of the file override them.

    Raises InputError for a file of another kind, an unknown option, a value that its flag does not accept, or a file
    that is its own base.
    """
    options: dict[str, Any] = {}
    for one in reversed(_with_bases(file)):
        options.update(_options_in(one, _content(one), parser))
    return options


def _with_bases(file: Path) -> list[Path]:
    """A file, its base, the base of that, and so on."""
    files = [file]
    while (base := _content(files[-1]).get(BASE)) is not None:
        files.append(files[-1].parent / str(base))
        if files[-1].resolve() in [f.resolve() for f in files[:-1]]:
            raise InputError(f"--config {file}: {files[-2]} names {base} as its base, which is based on it")
    return files


def _content(file: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"--config {file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {file} has no options: expected lines such as batch-size: 128")
    return content


def _options_in(file: Path, content: dict[Any, Any], parser: ArgumentParser) -> dict[str, Any]:
    """The options of one file without its base, with values as their flags give them."""
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    named = {str(key).replace("-", "_"): value for key, value in content.items() if key != BASE}
    unknown = [key for key in named if key not in actions]
    if unknown:
        raise InputError(f"--config {file}: unknown {', '.join(unknown)}; options are named as the flags of --help")
    return {key: _value(file, actions[key], value) for key, value in named.items()}


def _value(file: Path, action: Action, value: Any) -> Any:
    """The value of an option, converted as by its flag."""
    try:
        return _take(action, value)
    except (ValueError, TypeError) as error:
        raise InputError(f"--config {file}: {action.dest}: {value!r} is not valid: {error}") from error


def _take(action: Action, value: Any) -> Any:
    """As :func:`_value`. Raises ValueError for an invalid value."""
    if action.nargs == 0 or isinstance(action, BooleanOptionalAction):
        return _of_kind(value, bool, "true or false")
    if action.dest == "model_kwargs":
        return _of_kind(value, dict, "names with values")
    if action.nargs == 2 and not (isinstance(value, list) and len(value) == 2):
        raise ValueError("expected a list of 2")
    if action.nargs in ("+", 2) or isinstance(action.default, list):
        return [_one(action, x) for x in _of_kind(value, list, "a list")]
    return None if value is None else _one(action, value)


def _one(action: Action, value: Any) -> Any:
    if isinstance(value, (dict, list, bool)):
        raise ValueError("expected one value")
    taken = action.type(str(value)) if callable(action.type) else str(value)
    if action.choices is not None and taken not in action.choices:
        raise ValueError(f"expected one of {', '.join(map(repr, action.choices))}")
    return taken


def _of_kind(value: Any, kind: type, expected: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"expected {expected}")
    return value


def write_config(options: Namespace, file: Path) -> None:
    """Write the options of a run to a file for `--config`."""
    kept = {
        key: value
        for key, value in vars(options).items()
        if value is not None and key not in ("config", "resume", "evaluate")
    }
    write_atomically(file, lambda raw: raw.write(yaml.safe_dump(_plain(kept), sort_keys=False).encode()))


def settings_of(options: Namespace, world: int, updates: int) -> dict[str, Any]:
    """The settings that determine the weights of a run: options, number of processes, and updates in an epoch."""
    kept = {key: value for key, value in vars(options).items() if key not in FREE}
    return {**_plain(kept), "processes": world, "updates_per_epoch": updates}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Values as in a file: lists instead of tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def check_settings(begun: dict[str, Any], now: dict[str, Any], weights_flag: str = "--initial-checkpoint") -> None:
    """Raise InputError if a run would be resumed with different settings."""
    differing = [key for key in {**begun, **now} if begun.get(key) != now.get(key)]
    if differing:
        pairs = ", ".join(f"{key} {begun.get(key)} (now {now.get(key)})" for key in differing)
        raise InputError(
            f"--resume: this run was started with {pairs}. It can only be resumed with the same settings: pass them, "
            f"or start another run with weights as {weights_flag}"
        )
