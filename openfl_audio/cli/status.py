"""`openfl-audio envoys` and `openfl-audio experiments`: who is there, and what runs."""

import json
import os
import sys
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from openfl_audio.address import join_address, split_address
from openfl_audio.cli.options import Command, option
from openfl_audio.errors import StatusError
from openfl_audio.protocol.certificates import load_credentials

ANSWER_SECONDS = 20.0
# In a file or a pipe no line is broken.
PIPED_WIDTH = 10_000
Rows = list[dict[str, Any]]


class _Status(Command):
    """Base of the commands that ask a director."""

    director: str = option("address of the director", "localhost:50051", metavar="HOST[:PORT]")
    certificates: Path = option("folder with ca.crt and the user's certificate", Path("certificates"))
    user: str | None = option("whose certificate to use; needed unless TLS is off", None, metavar="NAME")
    disable_tls: bool = option("no encryption, and no proof of who is who", False)
    json_: bool = option("print all that the director says, for machines", False)

    def run(self) -> None:
        address = join_address(*split_address(self.director))
        status = fetch_status(address, None if self.disable_tls else self.certificates, self.user)
        if self.json_:
            print(json.dumps(self.part(status), indent=2))
            return
        width = None if sys.stdout.isatty() else PIPED_WIDTH
        # Names and errors are text, not rich's markup.
        Console(width=width, markup=False, highlight=False, emoji=False).print(self.table(self.part(status)))

    @staticmethod
    @abstractmethod
    def part(status: dict[str, Any]) -> Rows:
        """Return the part of a director's status that the command is about."""

    @staticmethod
    @abstractmethod
    def table(rows: Rows) -> Table:
        """Return that part as a table."""


class Envoys(_Status):
    """List the envoys of a running federation.

    Their corpora are shown, whether they are online, and which experiment they work on.
    """

    example: ClassVar[str] = "openfl-audio envoys --director fl.example.org:50051 --user ada"

    @staticmethod
    def part(status: dict[str, Any]) -> Rows:
        return status["envoys"]

    @staticmethod
    def table(rows: Rows) -> Table:
        return _table("Envoys", ("name", "corpus", "online", "experiment"), map(_envoy, rows))


class Experiments(_Status):
    """List the experiments of a running federation.

    Their owners are shown, how many rounds are done, which envoys they wait for, and errors.
    """

    example: ClassVar[str] = "openfl-audio experiments --director fl.example.org:50051 --user ada"

    @staticmethod
    def part(status: dict[str, Any]) -> Rows:
        return status["experiments"]

    @staticmethod
    def table(rows: Rows) -> Table:
        columns = ("name", "owner", "corpus", "status", "round", "seconds a round", "waiting for", "error")
        return _table("Experiments", columns, map(_experiment, rows))


def fetch_status(address: str, certificates: Path | None, user: str | None) -> dict[str, Any]:
    """Return what the director tells `user`; `certificates` None turns TLS off.

    Raises StatusError, AddressError or CertificateError.
    """
    # Before its import; what it reports is in the one sentence below.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc

    from openfl_audio.protocol.messages import FederationStatus, StatusRequest, decode_answer, encode
    from openfl_audio.protocol.wire import RoundsStub, channel_credentials, explain_unreachable, open_channel

    credentials = None
    if certificates is not None:
        if user is None:
            raise StatusError("give --user NAME, whose certificate is used, or --disable-tls")
        credentials = load_credentials(certificates, user)
    line = channel_credentials(credentials) if credentials else None
    with open_channel(address, line, client_id=user or "anonymous") as channel:
        try:
            answer = RoundsStub(channel).get_status(encode(StatusRequest()), timeout=ANSWER_SECONDS)
            return decode_answer(answer, FederationStatus).model_dump()
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise StatusError(f"the director at {address} refused: {error.details()}") from None
            root = credentials.root if credentials else None
            raise StatusError(explain_unreachable(address, error.details(), root, "command")) from None


def _table(title: str, columns: Iterable[str], rows: Iterable[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for column in columns:
        table.add_column(column, overflow="fold")  # nothing is cut off where the terminal is narrow
    for row in rows:
        table.add_row(*(_printable(cell) or "-" for cell in row))
    return table


def _envoy(envoy: dict[str, Any]) -> list[str]:
    return [envoy["name"], envoy["corpus"], "yes" if envoy["online"] else "no", envoy["experiment"]]


def _experiment(experiment: dict[str, Any]) -> list[str]:
    # One more round than was asked for validates the last model.
    done = min(experiment["round"], experiment["rounds"])
    seconds = experiment["seconds_per_round"]
    return [
        experiment["name"],
        experiment["owner"],
        experiment["corpus"],
        experiment["status"],
        f"{done} of {experiment['rounds']}",
        "" if seconds is None else f"{seconds:.1f}",
        experiment["waits"] or ", ".join(experiment["waiting_for"]),
        _shorten(experiment["error"]),
    ]


def _shorten(error: str) -> str:
    """Return the first line, which names the envoy, and the last, which of a traceback is the error itself."""
    lines = error.strip().splitlines()
    return "\n".join(lines if len(lines) < 2 else (lines[0], lines[-1]))


def _printable(text: str) -> str:
    """Return `text` without what would steer a terminal: an error has what an envoy's process wrote."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)
