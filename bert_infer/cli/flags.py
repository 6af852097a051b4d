"""Hydra's own flags: parsed, and refused where they mean nothing here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

from bert_infer.configuration.options import groups, values
from bert_infer.errors import RefusedError, nearest

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_WAYS = ("--run", "--multirun", "--cfg", "--info", "--hydra-help", "--shell-completion")


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what Hydra reads in ``arguments``; flags and overrides come in any order.

    Raises:
        RefusedError: a flag is none of Hydra's, or not supported, or lacks what belongs to it.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    flags = [flag for action in parser._actions for flag in action.option_strings]  # noqa: SLF001
    parser.error = lambda message: _refuse(message, arguments, flags)  # type: ignore[method-assign]
    asked: argparse.Namespace = parser.parse_intermixed_args(list(arguments))
    for flag in ("experimental_rerun", "config_name", "config_path"):
        if getattr(asked, flag):
            raise RefusedError(
                f"--{flag.replace('_', '-')} is not supported.",
                "Give overrides; --config-dir=DIR adds options of your own.",
            )
    given = [flag for flag in _WAYS if getattr(asked, flag.strip("-").replace("-", "_"))]
    if len(given) > 1:
        raise RefusedError(f"{' and '.join(given)} exclude each other.", "Give one of them.")
    if asked.resolve and not asked.cfg:
        raise RefusedError("--resolve belongs to --cfg.", "Write --cfg job --resolve.")
    if asked.shell_completion:
        _check_completion(asked.overrides)
    return asked


def _check_completion(overrides: Sequence[str]) -> None:
    """Refuse what --shell-completion cannot do.

    Raises:
        RefusedError: no shell is named, or none asks.
    """
    words = {word.partition("=")[::2] for word in overrides}
    asked = {what for what, shell in words if shell in {"bash", "fish", "zsh"}}
    if not asked & {"install", "uninstall", "query"}:
        raise RefusedError(
            "--shell-completion installs or removes a shell's completion.",
            "Add install=bash, install=fish or install=zsh.",
        )
    if "query" in asked and "COMP_LINE" not in os.environ:
        raise RefusedError(
            "query= is a shell's own question, with the line that is being typed in COMP_LINE.",
            "To have the shell ask it: eval what --shell-completion install=bash prints.",
        )


def _refuse(message: str, arguments: Sequence[str], flags: list[str]) -> NoReturn:
    """Raise argparse's complaint as a RefusedError, with the flag that was probably meant."""
    unknown = next((a for a in arguments if a.startswith("-") and a not in flags), "")
    key = unknown.lstrip("-").partition("=")[0]
    if key in {*groups(), *values(), "text"}:
        raise RefusedError(f"{message}.", f"Write {key}=VALUE, without dashes.")
    raise RefusedError(f"{message}.", nearest(unknown, flags) or "Try --help.")
