"""The command `gati`: subcommands that are imported only when they are called."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from types import FrameType

import click

from gati import __version__
from gati.errors import GatiError, printable

COMMANDS = {
    "export": ("gati_export.commands.export:export", "Cut a backbone, train heads, write a model repository."),
    "serve": ("gati.serve:serve", "Serve a model repository on this machine's tritonserver."),
    "refresh": ("gati_export.commands.refresh:refresh", "Learn from served traffic and publish the next release."),
    "sync": ("gati_export.commands.sync:sync", "Keep a repository in step with one in an object store."),
    "bench": ("gati_export.commands.bench:bench_command", "Measure a chain beside the plain model and others."),
    "report": ("gati_export.commands.report:report", "Show what a release learned and what it promises."),
    "rollback": ("gati_export.commands.rollback:rollback", "Publish an earlier release again, under the next number."),
    "status": ("gati_export.commands.status:status", "Watch a served chain: exits, hits, agreement, latency."),
    "demo": ("gati_export.demo.command:demo", "The whole of it on handwritten digits, in some minutes."),
}
"""Name: where it is, and what it does in a line (known without importing it)."""
EXTRAS = {"serve": "serve", "status": "serve", "rollback": "serve,client", "sync": "serve,client", "demo": "demo"}
"""What a subcommand needs of pyproject.toml's extras; others need "export"."""


class LazyGroup(click.Group):
    """A group that imports a subcommand when it is called, not when help lists it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a subcommand."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            extra = EXTRAS.get(cmd_name, "export")
            raise click.ClickException(
                f"gati {cmd_name} needs more than is installed ({error}): in a clone of gati, pip install "
                f"-c constraints.txt '.[{extra}]'."
            ) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the subcommands from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gati")
@click.option("--debug", is_flag=True, help="Show the traceback when a command fails.")
def gati(debug: bool) -> None:
    """Learned caches for models served on NVIDIA Triton.

    Start with `gati export`, then `gati serve`; `gati COMMAND --help` explains each.
    """


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; exits with 0, 1 (failed) or 2 (used wrongly), with one sentence on stderr."""
    if arguments is None:
        signal.signal(signal.SIGTERM, _end)
        arguments = sys.argv[1:]
    _ask_loopback_directly()
    debug = "--debug" in arguments
    arguments = ["--debug"] * debug + [a for a in arguments if a != "--debug"]
    try:
        sys.exit(gati.main(arguments, prog_name="gati", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        click.echo(f"Error: {_sentence(error)}", err=True)
        sys.exit(1)


def _end(number: int, _frame: FrameType | None) -> None:
    """Leaves by way of what has to be cleaned up: servers, temporary folders."""
    sys.exit(128 + number)


def _ask_loopback_directly() -> None:
    """Has nothing that is started here ask a proxy, that the environment may name, for a server on this machine."""
    spared = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if spared != "*":
        os.environ["no_proxy"] = ",".join(filter(None, [spared, "localhost", "127.0.0.1", "::1"]))


def _sentence(error: Exception) -> str:
    if isinstance(error, GatiError):
        return printable(str(error))
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("gati"):
        return f"Something is not installed that this needs ({error}): see README on installing it."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error} (this should not happen; --debug shows where)"
