"""The `bitgate` command. One module per subcommand, imported when it is used."""

from __future__ import annotations

from importlib import import_module
from keyword import iskeyword

import click

#: subcommands in the order of the help; module and function have the same name, but for `try_`
COMMANDS = (
    "try",
    "predict",
    "gates",
    "lock",
    "show",
    "plot",
    "curves",
    "compare",
    "accept",
    "drift",
    "propose",
    "export",
    "calibrate",
    "search",
    "merge",
)


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        word = f"{name}_" if iskeyword(name) else name
        command: click.Command = getattr(import_module(f"bitgate.cli.{word}"), word)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bitgate")
def main() -> None:
    """Decide whether quantized models are still good enough.

    Measuring is pytest's: `pytest bench --help` shows its options under "bitgate". This command
    is for everything around it.
    """
