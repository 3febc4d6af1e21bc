"""Command line of the federation: `openfl-audio status` says who is there, and what runs."""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before its import; what it reports is in the one sentence below

import grpc
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from openfl_audio.address import join_address, split_address
from openfl_audio.errors import AddressError, CertificateError
from openfl_audio.protocol.certificates import load_credentials
from openfl_audio.protocol.wire import (
    RoundsStub,
    StatusRequest,
    channel_credentials,
    encode,
    explain_unreachable,
    open_channel,
)

ANSWER_SECONDS = 20.0
# In a file or a pipe no line is broken.
PIPED_WIDTH = 10_000


class StatusError(RuntimeError):
    """There is no status to be had; the message is one sentence."""


def fetch_status(address: str, certificates: Path | None, user: str | None) -> dict[str, Any]:
    """Return what the director tells `user`; `certificates` None turns TLS off. Raises StatusError, AddressError or
    CertificateError.
    """
    credentials = None
    if certificates is not None:
        if user is None:
            raise StatusError("give --user NAME, whose certificate is used, or --disable-tls")
        credentials = load_credentials(certificates, user)
    line = channel_credentials(credentials) if credentials else None
    with open_channel(address, line, client_id=user or "anonymous") as channel:
        try:
            return json.loads(RoundsStub(channel).get_status(encode(StatusRequest()), timeout=ANSWER_SECONDS))
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise StatusError(f"the director at {address} refused: {error.details()}") from None
            root = credentials.root if credentials else None
            raise StatusError(explain_unreachable(address, error.details(), root, "command")) from None


def print_status(status: dict[str, Any], console: Console) -> None:
    console.print(_table("Envoys", ("name", "corpus", "online", "experiment"), map(_envoy, status["envoys"])))
    columns = ("name", "owner", "corpus", "status", "round", "seconds a round", "waiting for", "error")
    console.print(_table("Experiments", columns, map(_experiment, status["experiments"])))


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
    """The first line, which names the envoy, and the last, which of a traceback is the error itself."""
    lines = error.strip().splitlines()
    return "\n".join(lines if len(lines) < 2 else (lines[0], lines[-1]))


def _printable(text: str) -> str:
    """Without what would steer a terminal: an error has what an envoy's process wrote."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="openfl-audio", description="Look at a running federation.")
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="envoys and experiments")
    status.add_argument("--director", default="localhost:50051", metavar="HOST[:PORT]", help="default: %(default)s")
    status.add_argument("--certificates", type=Path, default=Path("certificates"), metavar="DIR")
    status.add_argument("--user", metavar="NAME", help="whose certificate to use; needed unless TLS is off")
    status.add_argument("--disable-tls", action="store_true", help="no encryption, and no proof of who is who")
    status.add_argument("--json", action="store_true", help="for machines, all that the director says")
    options = parser.parse_args(arguments)
    try:
        address = join_address(*split_address(options.director))
        found = fetch_status(address, None if options.disable_tls else options.certificates, options.user)
    except (StatusError, AddressError, CertificateError) as error:
        print(f"openfl-audio: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        width = None if sys.stdout.isatty() else PIPED_WIDTH
        # Names and errors are text, not rich's markup.
        print_status(found, Console(width=width, markup=False, highlight=False, emoji=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
