"""Archives of a notebook or a director, made by somebody who means ill: they are refused, and nothing is touched."""

import contextlib
import errno
import io
import json
import os
import queue
import stat
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from openfl.protocols import director_pb2, director_pb2_grpc
from safetensors.numpy import save

from openfl_audio.envoy.rounds_client import RETRY_SECONDS
from openfl_audio.errors import ArchiveError
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.protocol.archive import unpack_archive
from openfl_audio.protocol.codec import encode
from openfl_audio.protocol.plan import ARCHIVE, EXPERIMENT_PLAN, INITIAL_MODEL
from openfl_audio.protocol.wire import SERVICE
from tests.integration.conftest import (
    READY_SECONDS,
    USER,
    FakeEnvoy,
    grows_by_less_than,
    listing,
    open_as,
    plan_of,
    points,
    status_of,
    submission_of,
    submit,
    wait_for,
    workspace_with,
)

pytestmark = pytest.mark.integration

WORKSPACE = {"plan/plan.yaml": b"{}"}
CONTENT = bytes(1000) + b"not only zeros" * 1000


def link() -> bytes:
    entry = zipfile.ZipInfo("plan/link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return workspace_of((entry, b"/etc"))


def pipe() -> bytes:
    entry = zipfile.ZipInfo("plan/pipe")
    entry.external_attr = (stat.S_IFIFO | 0o644) << 16
    return workspace_of((entry, b""))


def workspace_of(*entries: tuple[zipfile.ZipInfo | str, bytes], **claims: int) -> bytes:
    """A zip whose table of contents `claims` something of its last entry, as file_size=10."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in entries:
            zipped.writestr(name, content)
        for claim, value in claims.items():
            setattr(zipped.filelist[-1], claim, value)
    return buffer.getvalue()


def with_noise_in(zipped: bytes, content_at: int) -> bytes:
    """Bits flipped where the first entry's compressed bytes are."""
    return (
        zipped[:content_at]
        + bytes(byte ^ 0xFF for byte in zipped[content_at : content_at + 20])
        + zipped[content_at + 20 :]
    )


BAD_WORKSPACES = {
    "no zip": b"no zip at all",
    "nothing": b"",
    "cut short": workspace_with(WORKSPACE)[:-30],
    "an absolute path": workspace_with({"/tmp/openfl-audio-outside": b"x"}),
    "a path out of it": workspace_with({"../outside": b"x"}),
    "a path out of it by a detour": workspace_with({"plan/../../outside": b"x"}),
    "a path out of it as on Windows": workspace_with({"..\\outside": b"x"}),
    "a drive": workspace_with({"C:outside": b"x"}),
    "a link": link(),
    "a pipe": pipe(),
    "two gibibytes": workspace_of(("plan/plan.yaml", b"{}"), file_size=2 << 30),
    "ten thousand and one files": workspace_with(dict.fromkeys(map(str, range(10_001)), b"")),
}
# Nothing that a list of contents tells: found out where it is unpacked.
BAD_INSIDE = {
    "an entry larger than it says": workspace_of(("plan/plan.yaml", CONTENT), file_size=10),
    "an entry of another checksum": workspace_of(("plan/plan.yaml", CONTENT), CRC=1),
    "an entry that is encrypted": workspace_of(("plan/plan.yaml", CONTENT), flag_bits=1),
    "an entry compressed in an unknown way": workspace_of(("plan/plan.yaml", CONTENT), compress_type=99),
    "an entry that is not what deflate makes": with_noise_in(workspace_of(("p", CONTENT)), 31),
    "an entry that is a file and a folder": workspace_of(("plan", b"x"), ("plan/plan.yaml", b"{}")),
    "an entry with a name of 300 characters": workspace_of(("x" * 300, b"x")),
    "an entry without a name": workspace_of(("/", b"")),
}
BAD_NAMES = {
    "a path out of the folder": "../../x",
    "a folder in a folder": "a/b",
    "empty": "",
    "300 characters": "x" * 300,
    "unicode": "spaß",
    "the folder above": "..",
    "the folder itself": ".",
    "hidden": ".hidden",
    "NUL": "a\0b",
    "a line break": "a\n",
    "a backslash": "..\\x",
    "an option": "-rf",
}
BAD_PLANS = {
    "no JSON": b"name: x",
    "nothing": b"",
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "null": b"null",
    "deep": b'{"name":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "rounds in words": plan_of("x", rounds="many"),
    "no rounds": plan_of("x", rounds=0),
    "minus one round": plan_of("x", rounds=-1),
    "endless rounds": plan_of("x", rounds=float("inf")),
    "no tasks": plan_of("x", tasks=[]),
    "tasks that are none": plan_of("x", tasks=[1]),
    "a name that is a number": plan_of(1),
    "an unknown key": plan_of("x", mean=True),
    "nobody": plan_of("x", envoys=[]),
    "somebody who is not there": plan_of("x", envoys=["nobody"]),
    "evaluators who are not there": plan_of("x", participation={"evaluators": ["nobody"]}),
    "an endless deadline": plan_of("x", participation={"deadline_seconds": float("inf")}),
    "an unknown rule": plan_of("x", aggregation={"rule": {"rule": "guess"}}),
    "17 MB": plan_of("x", untrained=["y" * (17 << 20)]),
}  # fmt: skip
FLOATS = {"weight": np.zeros(3, np.float32)}
BAD_MODELS = {
    "nothing": b"",
    "no safetensors": b"x" * 100,
    "a header of 2 GiB": (2 << 30).to_bytes(8, "little") + b"{}",
    "no tensor": save({}),
    "NaN": save({"weight": np.full(3, np.nan, np.float32)}),
    "cut short": save(FLOATS)[:-1],
    "more than it says": save(FLOATS) + b"\0",
}


def whole_submissions() -> dict[str, bytes]:
    good = submission_of(plan_of("x"))
    plan = json.dumps(plan_of("x")).encode()
    parts = {EXPERIMENT_PLAN: plan, ARCHIVE: workspace_with(WORKSPACE), INITIAL_MODEL: save(FLOATS)}
    at_plan = 30 + len(EXPERIMENT_PLAN)  # after a zip's local header, which ends with the name
    return {
        "nothing": b"",
        "no zip": b"x" * 1000,
        "cut short": good[:-30],
        "its end alone": good[-30:],
        "no plan": workspace_with({name: parts[name] for name in (ARCHIVE, INITIAL_MODEL)}),
        "no archive": workspace_with({name: parts[name] for name in (EXPERIMENT_PLAN, INITIAL_MODEL)}),
        "no model": workspace_with({name: parts[name] for name in (EXPERIMENT_PLAN, ARCHIVE)}),
        "a plan larger than it says": workspace_of(*of_last(parts, EXPERIMENT_PLAN), file_size=10),
        "an archive larger than it says": workspace_of(*of_last(parts, ARCHIVE), file_size=10),
        "a model larger than it says": workspace_of(*of_last(parts, INITIAL_MODEL), file_size=10),
        "a model smaller than it says": workspace_of(*of_last(parts, INITIAL_MODEL), file_size=10**6),
        "an archive of two gibibytes": workspace_of(*of_last(parts, ARCHIVE), file_size=2 << 30),
        "an encrypted plan": workspace_of(*of_last(parts, EXPERIMENT_PLAN), flag_bits=1),
        "a plan compressed in an unknown way": workspace_of(*of_last(parts, EXPERIMENT_PLAN), compress_type=99),
        "a plan that is not what deflate makes": with_noise_in(workspace_of(*parts.items()), at_plan),
        "a plan that lies elsewhere": workspace_of(*of_last(parts, EXPERIMENT_PLAN), header_offset=7),
    }  # fmt: skip


def of_last(parts: dict[str, bytes], name: str) -> list[tuple[str, bytes]]:
    return [*((other, parts[other]) for other in parts if other != name), (name, CONTENT)]


SUBMISSIONS = {
    **{f"name: {case}": submission_of(plan_of(name)) for case, name in BAD_NAMES.items()},
    **{f"plan: {case}": submission_of(plan) for case, plan in BAD_PLANS.items()},
    **{f"archive: {case}": submission_of(plan_of("x"), workspace=archive) for case, archive in BAD_WORKSPACES.items()},
    **{f"model: {case}": submission_of(plan_of("x"), model=model) for case, model in BAD_MODELS.items()},
    **{f"submission: {case}": submission for case, submission in whole_submissions().items()},
}


@pytest.fixture(scope="module")
def director(tmp_path_factory, certificates) -> Iterator[LocalFederation]:
    """A director with an envoy 'b', two folders deep so that what leaves its folder is seen."""
    folder = tmp_path_factory.mktemp("archives") / "deep" / "deeper"
    with LocalFederation(folder, certificates, USER) as processes:
        processes.start_director()
        wait_for(lambda: is_up(processes))
        with FakeEnvoy(processes, "b"):
            yield processes


def is_up(processes: LocalFederation) -> bool:
    with contextlib.suppress(grpc.RpcError):
        return bool(status_of(processes))
    return False


@pytest.mark.parametrize("case", SUBMISSIONS)
def test_a_bad_submission_is_refused_in_a_sentence_and_leaves_nothing_behind(director, case):
    around = director.folder.parents[1]
    before, known, logged = listing(around), status_of(director), len(director.log("director").read_text())
    with open_as(director, USER) as channel, pytest.raises(grpc.RpcError) as caught:
        submit(channel, SUBMISSIONS[case])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    sentence = caught.value.details()
    assert 10 < len(sentence) <= 2000
    assert "\n" not in sentence
    # The answer is there a moment before what was received is deleted.
    wait_for(lambda: listing(around) == before)
    assert status_of(director) == known
    assert "Traceback" not in director.log("director").read_text()[logged:]


@pytest.mark.parametrize("faults", ["values", "keys"])
def test_a_plan_full_of_faults_does_not_fill_the_directors_memory(director, faults):
    """Described one by one they would be a kilobyte each: gigabytes for the 16 MB that a plan may have."""
    number = 300_000
    wrong = {"envoys": [0] * number} if faults == "values" else {str(key): 0 for key in range(number)}
    # Some megabytes of JSON, several times over.
    within_bounds, refused = grows_by_less_than(100e6, director.pid("director")), pytest.raises(grpc.RpcError)
    with open_as(director, USER) as channel, within_bounds, refused as caught:
        submit(channel, submission_of(plan_of("x", **wrong)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()


def test_a_good_submission_is_taken_and_its_name_cannot_be_used_again(director):
    """Last of those to this director: it shows that the submissions before were refused for what was bad in them."""
    good = submission_of(plan_of("good"))
    with open_as(director, USER) as channel:
        submit(channel, good)
        wait_for(lambda: [e["waiting_for"] for e in status_of(director)["experiments"]] == [["b"]])
        before = listing(director.folder.parents[1])
        with pytest.raises(grpc.RpcError, match="an experiment named 'good' exists already"):
            submit(channel, good)
    wait_for(lambda: listing(director.folder.parents[1]) == before)
    (experiment,) = status_of(director)["experiments"]
    assert (experiment["name"], experiment["status"]) == ("good", "in_progress")


@pytest.mark.parametrize("case", BAD_WORKSPACES | BAD_INSIDE)
def test_a_bad_archive_is_not_unpacked(tmp_path, case):
    archive, folder = tmp_path / "deep" / ARCHIVE, tmp_path / "deep" / "workspace"
    folder.mkdir(parents=True)
    archive.write_bytes((BAD_WORKSPACES | BAD_INSIDE)[case])
    with pytest.raises(ArchiveError, match="archive|workspace.zip"):
        unpack_archive(archive, folder)
    outside = {name for name in listing(tmp_path) if not name.startswith("deep/workspace/")}
    assert outside == {"deep", "deep/workspace", f"deep/{ARCHIVE}"}


class BrokenDirector(director_pb2_grpc.DirectorServicer):
    """Sends an envoy whatever a test tells it to, as any name, and keeps what the envoy reports."""

    def __init__(self) -> None:
        self.orders: queue.Queue[str | None] = queue.Queue()
        self.reports: queue.Queue[tuple[str, str]] = queue.Queue()
        self.archive = b""
        self.stumbles = 0  # so many downloads fail first
        self._server = grpc.server(ThreadPoolExecutor(8))
        director_pb2_grpc.add_DirectorServicer_to_server(self, self._server)
        methods = {"Attend": grpc.unary_stream_rpc_method_handler(self.attend)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> "BrokenDirector":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.orders.put(None)
        self._server.stop(grace=None).wait()

    def attend(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        while (order := self.orders.get()) is not None:
            yield encode({"experiment": order, "warm": True})

    def UpdateShardInfo(self, request, context):  # noqa: N802
        return director_pb2.UpdateShardInfoResponse(accepted=True)

    def GetExperimentData(self, request, context):  # noqa: N802
        if self.stumbles:
            self.stumbles -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        yield director_pb2.ExperimentData(size=len(self.archive), npbytes=self.archive)

    def SetExperimentFailed(self, request, context):  # noqa: N802
        self.reports.put((request.experiment_name, request.error_description))
        return director_pb2.SetExperimentFailedResponse()


@pytest.fixture(scope="module")
def deceived(tmp_path_factory) -> Iterator[tuple[BrokenDirector, LocalFederation]]:
    """A real envoy 'a' at a director that means ill, without TLS."""
    folder = tmp_path_factory.mktemp("deceived") / "deep" / "deeper"
    with BrokenDirector() as broken, LocalFederation(folder, None, USER) as processes:
        processes.port = broken.port
        processes.start_envoy("a", points(1))
        wait_for(lambda: "is registered" in processes.log("a").read_text(), READY_SECONDS)
        downloads = processes.folder / "envoys" / "a"
        wait_for((downloads / ".format.json").exists, READY_SECONDS)
        yield broken, processes


@pytest.mark.parametrize(
    ("experiment", "case"),
    [
        *(("experiment", case) for case in ("a path out of it", "a link", "no zip", "two gibibytes")),
        *(("experiment", case) for case in BAD_INSIDE),
        *((name, "a path out of it") for name in BAD_NAMES.values() if name),
    ],
)
def test_an_envoy_refuses_a_bad_archive_or_name_and_says_so_and_stays(deceived, experiment, case):
    broken, processes = deceived
    # The experiment's own, and the rooms of workers, which come and go.
    own = f"deep/deeper/envoys/a/{experiment}", "deep/deeper/envoys/a/.rooms"

    def around() -> dict[str, str]:
        found = listing(processes.folder.parents[1])
        return {name: entry for name, entry in found.items() if not name.startswith(own)}

    # What it downloaded before is removed only after it has reported.
    downloads = processes.folder / "envoys" / "a"
    wait_for(lambda: not any("/workspace" in name for name in listing(downloads)))
    before, logged = around(), len(processes.log("a").read_text())
    broken.archive = (BAD_WORKSPACES | BAD_INSIDE)[case]
    reported, sentence = report_of(broken, experiment)
    assert reported == experiment
    assert "archive" in sentence or "workspace.zip" in sentence or "the director sent the experiment name" in sentence
    assert "\n" not in sentence
    assert around() == before
    assert processes.is_alive("a")
    assert "Traceback" not in processes.log("a").read_text()[logged:]


def report_of(broken: BrokenDirector, experiment: str) -> tuple[str, str]:
    """Return the envoy's report of an experiment that it is told to run, and cannot."""
    broken.orders.put(experiment)
    try:
        return broken.reports.get(timeout=60)
    finally:
        broken.orders.put("")


def test_an_envoy_whose_disk_is_full_says_so(deceived):
    broken, processes = deceived
    archive, full = processes.folder / "envoys" / "a" / "on-a-full-disk" / ARCHIVE, processes.folder / "full"
    full.symlink_to("/dev/full")
    broken.archive, broken.stumbles = workspace_with(WORKSPACE), 1_000
    broken.orders.put("on-a-full-disk")
    try:
        # What was there before the download is removed; only the next attempt goes to the full disk.
        wait_for(archive.exists)
        full.rename(archive)
        broken.stumbles = 0
        reported = broken.reports.get(timeout=60)
    finally:
        broken.orders.put("")
    assert reported == ("on-a-full-disk", "the envoy cannot read or write: [Errno 28] No space left on device")


def test_an_envoy_asks_again_when_the_director_stumbles_and_takes_its_time(deceived):
    broken, _ = deceived
    began = time.monotonic()
    broken.archive, broken.stumbles = b"no zip at all", 2
    assert report_of(broken, "stumbled-over")[1].startswith(f"{ARCHIVE} is no zip archive")
    assert broken.stumbles == 0
    assert time.monotonic() - began > 2 * RETRY_SECONDS
