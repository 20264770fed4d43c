"""The command line: one file per verb, imported only when it is called."""

from __future__ import annotations

import importlib
import sys
import traceback

import click

from spa._version import __version__

# verb -> one line of help; the function of the same name in the module spa.cli.<verb> carries it out
VERBS = {
    "prune": "Remove what matters least, prove the result, and compile it for the targets named.",
    "inspect": "Parameters, multiply-accumulates, bytes and what is prunable.",
    "explain": "Why a group can or cannot be pruned.",
    "verify": "Compare two networks on random or given inputs.",
    "diff": "What changed between two networks, per layer.",
    "compile": "Compile a network for one target.",
    "run": "Run a compiled bundle on given inputs.",
    "bench": "Time bundles and models against each other.",
    "check": "Hold models against budgets and a committed baseline.",
    "config": "Show the configuration and where its values come from.",
    "report": "Write one HTML page about a run: what is left, why, and how good it is.",
    "passes": "List the passes and their options.",
    "targets": "List the targets.",
    "doctor": "Say what is missing on this machine and how to install it.",
    "completion": "Print the script that lets a shell complete our commands.",
}


class Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = getattr(importlib.import_module(f"spa.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spa")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Make trained networks small and fast, starting from nothing but an ONNX file."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with a code of `spa.errors`."""
    from spa.errors import SpaError

    args = sys.argv[1:] if argv is None else argv
    try:
        code = cli.main(args, prog_name="spa", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(130)
    except SpaError as error:
        if "--debug" in args:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        if "--debug" in args:
            traceback.print_exc()
        print(
            f"internal error: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n"
            "  try: the same command with `spa --debug ...`, and report the traceback",
            file=sys.stderr,
        )
        sys.exit(70)
