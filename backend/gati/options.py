"""Options that several subcommands share, and what they do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gati.errors import GatiError
from gati.system.files import replace

existing_folder = click.Path(exists=True, file_okay=False, path_type=Path)


class OutputFile(click.Path):
    """A file to be written when the work is done; where it could not be, that is said before, as wrong use."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Its path."""
        path = Path(str(super().convert(value, param, ctx)))
        if not path.exists():
            folder = next(above for above in path.absolute().parents if above.exists())
            if not (folder.is_dir() and os.access(folder, os.W_OK)):
                self.fail(f"{path} can't be written: {folder} is no folder that files can be put into.", param, ctx)
        return path


json_option = click.option(
    "--json",
    "json_path",
    type=OutputFile(),
    help="Write the result to this file, as JSON.",
)


def write_json(path: Path | None, result: Any) -> None:
    """Writes a command's result where `--json` says."""
    if path is not None:
        text = json.dumps(result, indent=2) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() or not path.exists():
            replace(path, text)
        else:  # a pipe, or a terminal
            path.write_text(text, encoding="utf-8")


def port_option(name: str, default: int) -> Callable[[Any], Any]:
    """An option for a port."""
    return click.option(
        f"--{name}-port", type=click.IntRange(0, 65535), default=default, show_default=True, help="0: any free port."
    )


def checked(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """A callback for an option whose text others will parse: what they would say of it is said now, as wrong use."""

    def check(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
        try:
            if text is not None:
                parse(text)
        except ValueError as error:
            raise click.BadParameter(f"{error}.") from error
        except GatiError as error:
            raise click.BadParameter(str(error)) from error
        return text

    return check
