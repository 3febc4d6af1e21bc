"""The ledger of a site: what has been spent of a corpus's privacy, on the site's own disk.

There is one file for each corpus and unit, and all envoys that serve this corpus use it. An entry is written and
brought to the disk before the update that it pays for leaves. No experiment can change or begin a ledger anew: it only
grows, each entry names the hash of the one before, and a witness, a small file elsewhere, remembers the last one. So a
ledger that was damaged or restored from an old backup is refused rather than believed.
"""

import fcntl
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from openfl_audio.errors import BudgetSpentError, PrivacyError
from openfl_audio.files import append_at, make_folder, sync_folder, write_json
from openfl_audio.formats import check_format, stamp
from openfl_audio.privacy.accounting import ADJACENCY, Release, epsilon
from openfl_audio.privacy.clipping import check_positive
from openfl_audio.protocol.privacy import Unit

logger = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True)
class Budget:
    """Most that may be spent of a corpus in all, for one unit: `epsilon` at `delta`."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        """Raise ValueError for a budget that cannot be right."""
        check_positive(epsilon=self.epsilon, delta=self.delta)
        if self.delta >= 1:
            raise ValueError(f"delta is {self.delta}: it should be far below 1 over the number of units")


@dataclass(frozen=True)
class Account:
    """A corpus, by a name that all its envoys use, and the unit that is protected."""

    corpus: str
    unit: Unit


@dataclass(frozen=True)
class Entry:
    """A release that was paid for, and the SHA-256 of the update that it is in."""

    experiment: str
    round_number: int
    release: Release
    update: str


@dataclass(frozen=True)
class _State:
    """Content of a ledger: the hash of every line, the first of which is its title, and the entries after that."""

    hashes: list[str]
    entries: list[Entry]
    end: int


class Ledger:
    """The ledger of one account, in a file that several envoys may share on one machine.

    Attributes:
        path: the file; a lock lies beside it.
    """

    def __init__(self, path: Path, account: Account, budget: Budget, site: str, witness: Path) -> None:
        """Open the ledger in `path`, which need not be there yet, for the envoy `site`.

        `witness` is a file of this envoy in a folder that is not backed up or restored together with the ledger.
        Raises PrivacyError if the ledger is damaged, older than the witness, or of another account, and FormatError if
        it is of a later version.
        """
        self.path, self._account, self._budget, self._site, self._witness = path, account, budget, site, witness
        make_folder(path.parent)
        make_folder(witness.parent)
        with self._locked() as state:
            if not state.hashes:
                state = self._append(state, stamp(FORMAT) | asdict(account))
            self._remember(state)

    def spent(self) -> float:
        """Return the epsilon of all entries together, at the budget's delta."""
        with self._locked() as state:
            return epsilon((entry.release for entry in state.entries), self._budget.delta)

    def spent_by_experiment(self) -> dict[str, float]:
        """Return the epsilon of each experiment's entries by themselves; together they cost less than the sum."""
        with self._locked() as state:
            releases: dict[str, list[Release]] = {}
            for entry in state.entries:
                releases.setdefault(entry.experiment, []).append(entry.release)
        return {name: epsilon(of_one, self._budget.delta) for name, of_one in releases.items()}

    def describe(self) -> dict[str, Any]:
        """Return the guarantee as it stands: unit, adjacency, epsilon spent, budget and delta, and what is left."""
        spent = self.spent()
        return {
            **asdict(self._account),
            "adjacency": ADJACENCY,
            "epsilon": spent,
            "delta": self._budget.delta,
            "budget": self._budget.epsilon,
            "left": max(0.0, self._budget.epsilon - spent),
        }

    def refuse_if_overspent(self, *planned: Release) -> None:
        """Raise BudgetSpentError if tasks with all `planned` releases would cost more than is left."""
        with self._locked() as state:
            self._refuse(state, *planned)

    def charge(self, experiment: str, round_number: int, release: Release, update: bytes) -> bool:
        """Pay for an update before it leaves, durably, and return whether it costs anything.

        The bytes of an update that was paid for cost nothing when they are sent again. Raises BudgetSpentError where
        too little is left, as another envoy of the corpus may have spent since the task began; nothing is paid then,
        and the update must not leave. Raises OSError if it cannot be written: the update must not leave before this is
        tried again, and an entry that was written already is not written twice.
        """
        digest = hashlib.sha256(update).hexdigest()
        with self._locked() as state:
            line = next((n for n, entry in enumerate(state.entries, 2) if entry.update == digest), None)
            if line is not None and line <= self._seen()["lines"]:
                return False
            if line is None:
                self._refuse(state, release)
                entry = Entry(experiment, round_number, release, digest)
                moment = {"at": datetime.now(timezone.utc).isoformat(timespec="seconds")}
                state = self._append(state, asdict(entry) | moment, entry)
            self._remember(state)
        return True

    def _refuse(self, state: _State, *planned: Release) -> None:
        releases = [*(entry.release for entry in state.entries), *planned]
        cost = epsilon(releases, self._budget.delta)
        if cost > self._budget.epsilon:
            logger.warning(
                "%s: with %s epsilon would be %.3g at a delta of %g, and the budget is %g",
                self.path,
                " and ".join(map(str, planned)),
                cost,
                self._budget.delta,
                self._budget.epsilon,
            )
            raise BudgetSpentError(f"{self._site}'s budget is spent")

    @contextmanager
    def _locked(self) -> Iterator[_State]:
        """Yield what the ledger holds, while no other process reads or writes it."""
        with self.path.with_name(f"{self.path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self._read()
            self._check_witness(state)
            yield state

    def _read(self) -> _State:
        # What follows the last end of a line was being written when the process or the power ended: no update left.
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        hashes: list[str] = []
        entries: list[Entry] = []
        for number, line in enumerate(lines, 1):
            content = self._parse(line, number, hashes[-1] if hashes else "")
            if number == 1:
                self._check_title(content)
            else:
                entries.append(_entry(content))
            hashes.append(hashlib.sha256(line).hexdigest())
        return _State(hashes, entries, sum(len(line) + 1 for line in lines))

    def _parse(self, line: bytes, number: int, previous: str) -> dict[str, Any]:
        try:
            content = json.loads(line)
            follows = content["previous"] == previous
        except (ValueError, KeyError, TypeError):
            follows = False
        if not follows:
            raise PrivacyError(
                f"{self.path}: line {number} does not follow the one before, so what was spent is not known: bring "
                "back the newest whole copy of the file"
            )
        return content

    def _check_title(self, title: dict[str, Any]) -> None:
        check_format(self.path, title, FORMAT)
        found = (title["corpus"], title["unit"])
        if found != (self._account.corpus, self._account.unit):
            raise PrivacyError(
                f"{self.path} is the ledger of {found[0]!r} by {found[1]}, not of {self._account.corpus!r} by "
                f"{self._account.unit}: name another file"
            )

    def _check_witness(self, state: _State) -> None:
        seen = self._seen()
        lines = seen["lines"]
        if not lines or (lines <= len(state.hashes) and state.hashes[lines - 1] == seen["hash"]):
            return
        raise PrivacyError(
            f"{self.path} has {len(state.hashes)} lines, and {self._witness} has seen line {lines}: it was restored "
            "from an old backup or replaced, so what was spent since is not known; bring back the newest copy"
        )

    def _seen(self) -> dict[str, Any]:
        """Return the number of lines that the witness has seen, and the hash of the last of them."""
        if not self._witness.exists():
            return {"lines": 0}
        seen = json.loads(self._witness.read_text(encoding="utf-8"))
        check_format(self._witness, seen, FORMAT)
        return seen

    def _append(self, state: _State, content: dict[str, Any], *entries: Entry) -> _State:
        previous = state.hashes[-1] if state.hashes else ""
        line = json.dumps(content | {"previous": previous}).encode()
        end = append_at(self.path, state.end, line + b"\n", durable=True)
        if not state.hashes:
            sync_folder(self.path.parent)
        return _State([*state.hashes, hashlib.sha256(line).hexdigest()], [*state.entries, *entries], end)

    def _remember(self, state: _State) -> None:
        write_json(self._witness, stamp(FORMAT) | {"lines": len(state.hashes), "hash": state.hashes[-1]})


def _entry(content: dict[str, Any]) -> Entry:
    return Entry(content["experiment"], content["round_number"], Release(**content["release"]), content["update"])
