"""Approval of experiments by a site: what waits for a decision, and the decisions, as files in the envoy's folder.

    .approval/bundles/HASH/            the files of a submission, as they were shown
    .approval/decisions/HASH.json      what the site decided of it
    .approval/waiting/EXPERIMENT.json  an experiment that waits for a decision

The envoy writes what waits, and people decide with `openfl-audio review`, `approve` and `reject` while it runs.
"""

import getpass
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openfl_audio.config import Settings, load_settings
from openfl_audio.envoy.settings import EnvoySettings
from openfl_audio.errors import ApprovalError, ArchiveError, CertificateError
from openfl_audio.files import make_folder, write_whole
from openfl_audio.protocol.bundle import Bundle, fingerprint, read_files, verify_author
from openfl_audio.protocol.codec import describe_faults
from openfl_audio.protocol.plan import NAME, PICKLES
from openfl_audio.protocol.revocation import REVOKED, RevocationList

# No name of an experiment begins with a dot.
FOLDER = ".approval"
# A hash is shown, and may be given, by its first digits.
SHOWN_DIGITS, LEAST_DIGITS = 12, 4


class ApprovalFile(BaseModel):
    """Base of what is kept in files of the approval."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Waiting(ApprovalFile):
    """An experiment that waits for the site's decision.

    Attributes:
        user: who submitted it, as it says itself.
        signed: whether a user's certificate proves that.
        since: since when it waits, in seconds of the clock.
    """

    name: str
    sha256: str
    rounds: int
    user: str
    signed: bool
    since: float


class Decision(ApprovalFile):
    """Decision of a site on a submission.

    Attributes:
        rounds: how many rounds are approved at most.
        by: the account of the machine that decided.
        at: when, in seconds of the clock.
    """

    sha256: str
    decision: Literal["approved", "rejected"]
    rounds: int
    name: str
    user: str = ""
    reason: str = ""
    by: str = ""
    at: float = 0.0


class ListedBundle(Settings):
    """A submission that may run: its hash, and its rounds at most; without a number, as many as it says."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rounds: int | None = Field(default=None, ge=1)


class ApprovedList(Settings):
    """The file of a site that approves what is listed.

    Attributes:
        bundles: submissions by their hash.
        authors: users whose signed submissions may run: names, or the SHA-256 of their public keys, which no authority
            can give to somebody else.
    """

    bundles: list[ListedBundle] = Field(default_factory=list)
    authors: list[str] = Field(default_factory=list)


Kind = TypeVar("Kind", bound=ApprovalFile)


class Approvals:
    """Submissions that wait at a site, and its decisions: in `folder`, that of the envoy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER

    def files_of(self, sha256: str) -> Path:
        """Return the folder with the files of a submission as they were shown."""
        return self.folder / "bundles" / sha256

    def waiting(self) -> list[Waiting]:
        """Return the experiments that wait, the oldest first."""
        return sorted(self._read_all("waiting", Waiting), key=lambda each: each.since)

    def decisions(self) -> list[Decision]:
        """Return all decisions, the oldest first."""
        return sorted(self._read_all("decisions", Decision), key=lambda each: each.at)

    def decision(self, sha256: str) -> Decision | None:
        """Return what was decided of a submission, None if nothing was."""
        return _read(self.folder / "decisions" / f"{sha256}.json", Decision)

    def ask(self, bundle: Bundle, workspace: Path, user: str, signed: bool) -> None:
        """Let an experiment, whose files are in `workspace`, wait for a decision."""
        shown = self.files_of(bundle.sha256)
        if not shown.exists():
            make_folder(shown.parent)
            partial = shown.with_name(f".{bundle.sha256}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(workspace, partial, ignore=shutil.ignore_patterns(*PICKLES))
            partial.rename(shown)
        waiting = Waiting(
            name=bundle.plan.name,
            sha256=bundle.sha256,
            rounds=bundle.plan.rounds,
            user=user,
            signed=signed,
            since=time.time(),
        )
        self._write("waiting", waiting.name, waiting)

    def forget_waiting(self, name: str) -> None:
        """Note that an experiment waits no more; what nobody decided of is removed."""
        path = self.folder / "waiting" / f"{name}.json"
        waiting = _read(path, Waiting)
        path.unlink(missing_ok=True)
        used = {each.sha256 for each in self.waiting()} | {each.sha256 for each in self.decisions()}
        if waiting is not None and waiting.sha256 not in used:
            shutil.rmtree(self.files_of(waiting.sha256), ignore_errors=True)

    def approve(self, name_or_hash: str) -> Decision:
        """Approve what waits, or what was rejected before. Raises ApprovalError."""
        return self._decide(name_or_hash, "approved", "")

    def reject(self, name_or_hash: str, reason: str) -> Decision:
        """Reject what waits, or what was approved before; `reason` is told to the notebook. Raises ApprovalError."""
        return self._decide(name_or_hash, "rejected", reason)

    def find(self, name_or_hash: str) -> Waiting | Decision:
        """Return what is meant by the name of an experiment, or the first digits of a hash. Raises ApprovalError."""
        waiting, decided = self.waiting(), [*reversed(self.decisions())]
        everything: list[Waiting | Decision] = [*waiting, *decided]
        named = [each for each in everything if each.name == name_or_hash][:1]
        hashed = [each for each in everything if each.sha256.startswith(name_or_hash)]
        candidates = named or (hashed if len(name_or_hash) >= LEAST_DIGITS else [])
        found = {each.sha256: each for each in reversed(candidates)}
        if len(found) > 1:
            raise ApprovalError(f"'{name_or_hash}' begins the hash of {len(found)} submissions: give more digits")
        if not found:
            names = ", ".join(each.name for each in waiting) or "nothing"
            raise ApprovalError(f"no experiment '{name_or_hash}' was submitted to {self.folder.parent}: {names} waits")
        return next(iter(found.values()))

    def last_approved(self, name: str, user: str, but: str) -> Decision | None:
        """Return the approved submission that one of this name or user follows most likely; `but` is its own hash."""
        approved = [
            each
            for each in self.decisions()
            if each.decision == "approved" and each.sha256 != but and self.files_of(each.sha256).exists()
        ]
        of_name = [each for each in approved if each.name == name]
        return next(reversed(of_name or [each for each in approved if each.user == user]), None)

    def _decide(self, name_or_hash: str, decision: Literal["approved", "rejected"], reason: str) -> Decision:
        found = self.find(name_or_hash)
        shown = self.files_of(found.sha256)
        if shown.exists() and fingerprint(read_files(shown)) != found.sha256:
            raise ApprovalError(f"the files in {shown} are not those that were submitted: reject '{found.name}'")
        rounds, at = found.rounds, time.time()
        decided = Decision(
            sha256=found.sha256,
            decision=decision,
            rounds=rounds,
            name=found.name,
            user=found.user,
            reason=reason,
            by=getpass.getuser(),
            at=at,
        )
        self._write("decisions", found.sha256, decided)
        return decided

    def _write(self, kind: str, name: str, record: ApprovalFile) -> None:
        make_folder(self.folder / kind)
        write_whole(self.folder / kind / f"{name}.json", record.model_dump_json(indent=1).encode(), durable=True)

    def _read_all(self, kind: str, record: type[Kind]) -> Iterator[Kind]:
        for path in sorted((self.folder / kind).glob("*.json")):
            if (found := _read(path, record)) is not None:
                yield found


def _read(path: Path, kind: type[Kind]) -> Kind | None:
    """Return a record, None if there is none. Raises ApprovalError, naming the file, for what is no record."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ApprovalError(f"{path} cannot be read: {describe_faults(error)}") from None


class Verdict(BaseModel):
    """Answer of a site about an experiment: it may run, it waits, or `refused` says why it must not."""

    waits: bool = False
    refused: str = ""


class Desk:
    """Decides for the envoy, by its settings, whether a submission may run."""

    def __init__(self, name: str, settings: EnvoySettings, root: bytes | None) -> None:
        """Decide for envoy `name`; `root` has the certificates of the authorities (PEM), None without TLS."""
        self._envoy, self._settings, self._root = name, settings, root
        self.approvals = Approvals(settings.work_dir / name)
        self._revoked = RevocationList(settings.certificates / REVOKED if settings.certificates and root else None)

    def author_of(self, bundle: Bundle) -> tuple[str, str]:
        """Return the name of a submission's user, and the fingerprint of a key, "" where no certificate proves it."""
        try:
            return self._verified(bundle)
        except CertificateError:
            return bundle.author.user, ""

    def _verified(self, bundle: Bundle) -> tuple[str, str]:
        """Return who signed a submission, and the key. Raises CertificateError, which says why it counts for nobody."""
        if self._root is None:
            raise CertificateError("without TLS nothing is signed")
        return verify_author(bundle, self._root, self._revoked.current())

    def judge(self, bundle: Bundle) -> Verdict:
        """Return whether a submission may run, by what the site has decided so far.

        Raises ApprovalError, naming the file, if the site's decisions cannot be read.
        """
        decided = self.approvals.decision(bundle.sha256)
        if decided is not None and decided.decision == "rejected":
            why = f": {decided.reason}" if decided.reason else ""
            return Verdict(refused=f"the site of envoy '{self._envoy}' has rejected this experiment{why}")
        if self._settings.approval == "listed":
            return self._judge_by_list(bundle)
        return Verdict(waits=decided is None or decided.rounds < bundle.plan.rounds)

    def approved_by_hash(self, bundle: Bundle) -> bool:
        """Tell whether the site has approved these very bytes: a trusted author may send others tomorrow."""
        if self._settings.approval == "any":
            return False
        decided = self.approvals.decision(bundle.sha256)
        if decided is not None and decided.decision == "approved" and bundle.plan.rounds <= decided.rounds:
            return True
        return self._settings.approval == "listed" and self._is_listed(bundle)

    def _is_listed(self, bundle: Bundle) -> bool:
        return any(
            entry.sha256 == bundle.sha256 and bundle.plan.rounds <= (entry.rounds or bundle.plan.rounds)
            for entry in self._listed().bundles
        )

    def _listed(self) -> ApprovedList:
        if self._settings.approved is None:
            raise ApprovalError("approval is 'listed', and the settings name no file of what is `approved`")
        return load_settings(self._settings.approved, ApprovedList)

    def _judge_by_list(self, bundle: Bundle) -> Verdict:
        if self._is_listed(bundle):
            return Verdict()
        listed = self._listed()
        try:
            user, key = self._verified(bundle)
            if user in listed.authors or key in listed.authors:
                return Verdict()
            signed = f"signed by '{user}'"
        except CertificateError as error:
            signed = str(error)
        return Verdict(
            refused=f"envoy '{self._envoy}' runs what its site has listed, and this submission "
            f"({bundle.sha256[:SHOWN_DIGITS]}, {bundle.plan.rounds} rounds, {signed}) is not on the list"
        )


def prepare_workspace(workspace: Path) -> None:
    """Remove the pickles of a submission that was approved: its objects are built from what was shown."""
    for name in PICKLES:
        (workspace / name).unlink(missing_ok=True)


def check_name(bundle: Bundle, experiment: str) -> None:
    """Raise ArchiveError unless a submission is the experiment under whose name the director sent it."""
    if bundle.plan.name != experiment or not NAME.fullmatch(experiment):
        raise ArchiveError(f"the director sent experiment '{bundle.plan.name}' under the name '{experiment}'")
