"""Options, connection and tables that the commands which ask a director have in common."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from openfl_audio.address import join_address, split_address
from openfl_audio.cli.options import Command, option
from openfl_audio.errors import StatusError
from openfl_audio.protocol.certificates import load_credentials

if TYPE_CHECKING:  # gRPC is slow to import, and the help needs none of it
    from openfl_audio.notebook.director_calls import DirectorCalls
    from openfl_audio.notebook.interactive_api import Federation

ANSWER_SECONDS = 20.0
# In a file or a pipe no line is broken.
PIPED_WIDTH = 10_000


class Connected(Command):
    """Base of the commands that ask a director."""

    director: str = option("address of the director", "localhost:50051", metavar="HOST[:PORT]")
    certificates: Path = option("folder with ca.crt and the user's certificate", Path("certificates"))
    user: str | None = option("whose certificate to use; needed unless TLS is off", None, metavar="NAME")
    disable_tls: bool = option("no encryption, and no proof of who is who", False)

    @contextmanager
    def calls(self) -> Iterator["DirectorCalls"]:
        """Yield a connection to the director. Raises StatusError, AddressError or CertificateError."""
        # Before gRPC is imported; what it reports is in the sentence of an error.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from openfl_audio.notebook.director_calls import DirectorCalls

        self._check_user()
        credentials = None if self.user is None or self.disable_tls else load_credentials(self.certificates, self.user)
        address = join_address(*split_address(self.director))
        with closing(
            DirectorCalls(self.user or "anonymous", address, credentials, who="command", timeout_s=ANSWER_SECONDS)
        ) as calls:
            yield calls

    def federation(self) -> "Federation":
        """Return a notebook's connection, for what starts an experiment. Raises as `calls`, and DirectorError."""
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from openfl_audio.notebook.interactive_api import Federation

        self._check_user()
        host, port = split_address(self.director)
        if self.disable_tls:
            return Federation(self.user, host, port, tls=False)
        files = (self.certificates / name for name in ("ca.crt", f"{self.user}.crt", f"{self.user}.key"))
        return Federation(self.user, host, port, True, *files)

    def _check_user(self) -> None:
        if self.user is None and not self.disable_tls:
            raise StatusError("give --user NAME, whose certificate is used, or --disable-tls")


def print_json(content: Any) -> None:
    """Print what the director said, for machines."""
    print(json.dumps(content, indent=2))


def print_tables(*tables: Table | str) -> None:
    """Print tables and sentences, as wide as the terminal is."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    # Names and errors are text, not rich's markup.
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    for table in tables:
        console.print(printable(table) if isinstance(table, str) else table)


def table_of(title: str, columns: Iterable[str], rows: Iterable[list[str]]) -> Table:
    """Return a table of texts; an empty one is shown as a dash."""
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for column in columns:
        table.add_column(column, overflow="fold")  # nothing is cut off where the terminal is narrow
    for row in rows:
        table.add_row(*(printable(cell) or "-" for cell in row))
    return table


def printable(text: str) -> str:
    """Return `text` without what would steer a terminal: an error has what an envoy's process wrote."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def moment(seconds: float) -> str:
    """Return a moment of the clock as people read it here."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""
