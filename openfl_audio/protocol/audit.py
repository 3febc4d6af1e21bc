"""Audit of a record: its chain, and the heads of it that the other side has kept."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from openfl_audio.errors import RecordError
from openfl_audio.protocol.heads import check_issuer, check_signature
from openfl_audio.protocol.record import NO_HASH, Head, entry_of, read_record, sha256_of

# What an update is known by on both sides.
_OF_UPDATE = ("bytes", "tensors", "names_sha256")


class Verdict(NamedTuple):
    """Faults of a record, each a sentence that names the line, and what else is to be known of it."""

    faults: list[str]
    notes: list[str]


class _Chain(NamedTuple):
    """A record that was read: its owner, the hash and line of each entry by number, and the faults of its chain."""

    owner: str
    hashes: dict[int, str]
    lines: dict[int, int]
    faults: list[str]

    @property
    def last(self) -> int:
        return max(self.hashes, default=0)


def verify(path: Path, other: Path | None = None, root: bytes | None = None) -> Verdict:
    """Check the record in `path`, and against the record `other` of the other side if there is one.

    `root` is the certificate of the authority (PEM) that the signatures lead to; without it they are only those of the
    certificates that `other` has. Raises RecordError if a file cannot be read.
    """
    chain = _read_chain(path)
    faults, notes = list(chain.faults), [f"{path}: {chain.last} entries of {chain.owner or 'nobody knows whom'}"]
    if other is not None:
        theirs = _read_chain(other)
        notes.append(f"{other}: {theirs.last} entries of {theirs.owner or 'nobody knows whom'}")
        faults += [f"{other}: {fault}" for fault in theirs.faults]
        _compare_heads(chain, other, root, faults, notes)
        faults += _compare_updates(path, other)
    return Verdict(faults, notes)


def entries_of(path: Path, experiment: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the entries of a record, or those of an experiment. Raises RecordError for a line that is none."""
    for line_number, line in enumerate(read_record(path), start=1):
        if (entry := entry_of(line)) is None:
            raise RecordError(f"{path}, line {line_number} is no entry: `openfl-audio audit verify` says more")
        if experiment in (None, entry.get("experiment")):
            yield entry


def _read_chain(path: Path) -> _Chain:
    """Read a record, and find where its chain is broken."""
    entries: list[tuple[int, str, str]] = []  # number, hash before, own hash, by line; 0 is no entry
    owner = ""
    for line in read_record(path):
        entry = entry_of(line)
        if entry and entry["number"] == 1:
            owner = owner or str(entry.get("owner", ""))
        entries.append((entry["number"], entry["before"], sha256_of(line)) if entry else (0, "", ""))
    return _check_chain(entries, owner)


def _check_chain(entries: list[tuple[int, str, str]], owner: str) -> _Chain:
    lines_of = defaultdict(list)
    for line, (number, _, _) in enumerate(entries, start=1):
        lines_of[number].append(line)
    wanted = {before for _, before, _ in entries}
    faults = [f"line {line} is no entry: it was changed or added" for line in lines_of.pop(0, [])]
    hashes, lines = {0: NO_HASH}, {}
    for number, found in lines_of.items():
        # Of two lines with one number the right one is that which the next entry goes on from.
        line = next((line for line in found if entries[line - 1][2] in wanted), found[0])
        hashes[number], lines[number] = entries[line - 1][2], line
        faults += [f"line {each} was added: line {line} is entry {number} as well" for each in found if each != line]
    present = sorted(lines)
    for before, number in zip([0, *present], present, strict=False):
        if number > before + 1:
            gap = f"entry {before + 1} is" if number == before + 2 else f"entries {before + 1} to {number - 1} are"
            faults.append(f"line {lines[number]} is entry {number}: {gap} missing before it")
        elif before and lines[number] < lines[before]:
            faults.append(f"line {lines[number]} is entry {number}, and entry {before} comes after it: out of order")
        elif entries[lines[number] - 1][1] != hashes[before]:
            changed = f"line {lines[before]} was changed" if before else "line 1 was changed"
            faults.append(f"{changed}: line {lines[number]} has another hash of the entry before it")
    hashes.pop(0)
    return _Chain(owner, hashes, lines, faults)


def _compare_heads(chain: _Chain, other: Path, root: bytes | None, faults: list[str], notes: list[str]) -> None:
    """Check that each head in `other` is that of an entry."""
    certificates: dict[str, str] = {}
    good, unsigned, rewritten = 0, 0, False
    for line, entry in _heads(other, chain.owner):
        if entry["event"] == "key":
            certificates[str(entry.get("serial"))] = str(entry.get("certificate"))
            continue
        if type(entry.get("entry")) is not int:
            faults.append(f"{other}, line {line} is no head: it was changed")
            continue
        head = Head(entry["entry"], str(entry.get("sha256")))
        try:
            unsigned += not _is_signed(chain.owner, head, entry, certificates, root)
        except RecordError as error:
            faults.append(f"{other}, line {line}: {error}")
            continue
        since = f"{other} has its head since {entry['time']} (line {line})"
        if not head.number or chain.hashes.get(head.number) == head.sha256:
            good = max(good, head.number)
        elif head.number > chain.last:
            faults.append(f"the end is cut off: it has {chain.last} entries, and had {head.number}: {since}")
            return
        elif not rewritten:
            rewritten = True
            where = f"line {chain.lines[head.number]} (entry {head.number})" if head.number in chain.lines else "a line"
            after = f"after entry {good}" if good else "from its beginning"
            faults.append(f"{where} is not what it was, the record was rewritten {after}: {since}")
    if not good and not rewritten:
        faults.append(f"{other} has no head of the record of {chain.owner}: nothing can be compared")
    if unsigned:
        notes.append(
            f"{unsigned} heads are unsigned, as TLS was off: whoever could write {other} can have made them up"
        )
    if root is None and unsigned == 0:
        notes.append("signatures hold for the certificates in the record; --ca says whether the authority signed those")
    if good:
        notes.append(f"entry {good} and all before it are as {other} knows them; what follows has no head there yet")


def _heads(other: Path, owner: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line_number, line in enumerate(read_record(other), start=1):
        entry = entry_of(line)
        if entry and entry["event"] in ("key", "head") and entry.get("of") == owner:
            yield line_number, entry


def _is_signed(owner: str, head: Head, entry: dict[str, Any], certificates: dict[str, str], root: bytes | None) -> bool:
    """Tell whether a head has a signature. Raises RecordError if it does not hold."""
    if "signature" not in entry:
        return False
    certificate = certificates.get(str(entry.get("serial")), "")
    check_signature(owner, head, str(entry["signature"]), certificate)
    if root is not None:
        check_issuer(owner, certificate, root)
    return True


def _compare_updates(path: Path, other: Path) -> Iterator[str]:
    """Yield what was received and never sent, or is not what was sent, if one side is an envoy and one the director."""
    sent: defaultdict[tuple[str, str, str], list[Any]] = defaultdict(list)
    received: list[tuple[str, str, str, Any, str]] = []
    for file in (path, other):
        owner = ""
        for line_number, entry in _updates(file):
            owner = owner or str(entry.get("owner", ""))
            of_update = [entry.get(key) for key in _OF_UPDATE]
            experiment, round_number = str(entry.get("experiment")), str(entry.get("round"))
            if entry["event"] == "sent":
                sent[owner, experiment, round_number].append(of_update)
            elif entry["event"] == "received":
                envoy = f"envoy '{entry.get('envoy')}'"
                received.append((envoy, experiment, round_number, of_update, f"{file}, line {line_number}"))
    envoys = {envoy for envoy, _, _ in sent}
    for envoy, experiment, round_number, of_update, where in received:
        if envoy in envoys and of_update not in sent[envoy, experiment, round_number]:
            is_other = bool(sent[envoy, experiment, round_number])
            what = "is not what the envoy has recorded" if is_other else "was never sent: the envoy has no entry of it"
            yield f"{where}: the update of {envoy} for round {round_number} of '{experiment}' {what}"


def _updates(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    for line_number, line in enumerate(read_record(path), start=1):
        entry = entry_of(line)
        if entry and entry["event"] in ("begun", "sent", "received"):
            yield line_number, entry
