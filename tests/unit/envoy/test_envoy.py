import contextlib
import json
import os
import re
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from benchmarks.rounds_peers.shard import FewItemsShardDescriptor
from openfl_audio.cli.main import main
from openfl_audio.config import Retention
from openfl_audio.envoy.downloads import remove_outdated
from openfl_audio.envoy.envoy import Envoy
from openfl_audio.envoy.running_experiment import MAX_LOG_BYTES, rotate
from openfl_audio.envoy.settings import FOLDER_FORMAT, FOLDER_FORMAT_FILE, EnvoyFile
from openfl_audio.errors import ConnectionRefusedByDirectorError, FormatError, PrivacyError
from openfl_audio.formats import stamp
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.plan import ARCHIVE
from openfl_audio.protocol.privacy import TEST_NOISE


def file_of(work_dir: Path, **params: object) -> EnvoyFile:
    params |= {"director_host": "127.0.0.1", "director_port": 1, "work_dir": work_dir, "sandbox": "off"}
    return EnvoyFile.model_validate({"params": params, "shard_descriptor": {"template": "few"}})


def test_what_an_envoy_that_was_killed_had_downloaded_is_removed_and_the_rest_is_kept_from_others(tmp_path: Path):
    mine, others = tmp_path / "a", tmp_path / "b"
    for envoy in (mine, others):
        (envoy / "one/workspace/code").mkdir(parents=True)
        (envoy / "one/state").mkdir()
        for name in (ARCHIVE, "worker.log", "state/1.pt", "workspace/code/model.pkl"):
            (envoy / "one" / name).touch()
        (envoy / "notes.txt").touch()
        envoy.chmod(0o755)
    Envoy("a", file_of(tmp_path), FewItemsShardDescriptor(), tmp_path / "a.yaml", tls=False)._tidy_up()
    left = {path.relative_to(mine).as_posix() for path in mine.rglob("*") if path.is_file()}
    assert left == {"one/worker.log", "one/state/1.pt", "notes.txt", FOLDER_FORMAT_FILE}
    assert stat.S_IMODE(mine.stat().st_mode) == 0o700
    assert (others / "one/workspace/code/model.pkl").exists(), "another envoy may be at work there"


def test_a_folder_that_a_later_envoy_wrote_is_refused_by_name_by_the_envoy_and_its_site_s_commands(tmp_path, capsys):
    file = file_of(tmp_path)
    Envoy("a", file, FewItemsShardDescriptor(), tmp_path / "a.yaml", tls=False)._tidy_up()
    path = tmp_path / "a" / FOLDER_FORMAT_FILE
    assert json.loads(path.read_text()) == stamp(FOLDER_FORMAT)
    later = json.dumps({"format": FOLDER_FORMAT + 1, "version": "9.1"})
    path.write_text(later)
    sentence = r"\.format\.json has format 2, written by openfl-audio 9\.1: this is openfl-audio "
    with pytest.raises(FormatError, match=sentence):
        Envoy("a", file, FewItemsShardDescriptor(), tmp_path / "a.yaml", tls=False)
    template = "benchmarks.rounds_peers.shard.FewItemsShardDescriptor"
    params = {"director_host": "127.0.0.1", "director_port": 1, "work_dir": str(tmp_path)}
    (tmp_path / "a.yaml").write_text(json.dumps({"params": params, "shard_descriptor": {"template": template}}))
    for command in (["review"], ["approve", "one"], ["reject", "one", "--reason", "no"]):
        assert main([*command, "-n", "a", "-c", str(tmp_path / "a.yaml")]) == 1
        assert re.search(sentence, capsys.readouterr().err)
    assert path.read_text() == later


def test_noise_that_repeats_is_refused_where_the_director_is_on_another_machine(tmp_path, monkeypatch):
    monkeypatch.setenv(TEST_NOISE, "0")
    file = file_of(tmp_path)
    Envoy("a", file, FewItemsShardDescriptor(), tmp_path / "a.yaml", tls=False)
    elsewhere = file.model_copy(update={"params": file.params.model_copy(update={"director_host": "10.1.2.3"})})
    sentence = f"{TEST_NOISE} makes noise repeat, which protects nobody, and the director of envoy 'b' is at 10.1.2.3"
    with pytest.raises(PrivacyError, match=sentence):
        Envoy("b", elsewhere, FewItemsShardDescriptor(), tmp_path / "b.yaml", tls=False)


def test_logs_of_experiments_that_are_not_to_be_kept_are_removed_and_never_those_of_a_running_one(tmp_path):
    for number, name in enumerate(("oldest", "older", "newest")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "worker.log").write_text("said")
        os.utime(tmp_path / name, (number, number))
    remove_outdated(tmp_path, Retention(), set())
    assert len([*tmp_path.iterdir()]) == 3
    remove_outdated(tmp_path, Retention(experiments=1), {"oldest"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["newest", "oldest"]
    remove_outdated(tmp_path / "nowhere", Retention(experiments=1), set())


def test_a_large_log_of_earlier_runs_is_set_aside(tmp_path):
    log = tmp_path / "worker.log"
    rotate(log)
    log.write_bytes(bytes(MAX_LOG_BYTES))
    rotate(log)
    assert [path.name for path in tmp_path.iterdir()] == ["worker.log"]
    log.write_bytes(bytes(MAX_LOG_BYTES + 1))
    rotate(log)
    assert [path.name for path in tmp_path.iterdir()] == ["worker.log.1"]


class Unreachable(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "connection refused"


@contextlib.contextmanager
def counted_connections() -> Iterator[tuple[int, list[int]]]:
    """A port that ends every connection at once, and a list with an item for each of them."""
    connections: list[int] = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(1)
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield listener.getsockname()[1], connections
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_running_envoy_looks_at_the_directors_certificate_once_a_minute_and_one_that_starts_at_every_call(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("openfl_audio.envoy.envoy.wait_to_repeat", lambda channel: None)
    write_certificates(tmp_path / "certificates", envoys=["a"])
    file = file_of(tmp_path, certificates=tmp_path / "certificates")
    envoy = Envoy("a", file, FewItemsShardDescriptor(), tmp_path / "a.yaml", tls=True)
    failures = iter(range(3))

    def call() -> str:
        if next(failures, None) is not None:
            raise Unreachable
        return "answer"

    with counted_connections() as (port, connections):
        envoy._address = f"127.0.0.1:{port}"  # in place of the director, whom only the channel calls now
        assert envoy.call(call) == "answer"
        assert len(connections) == 1
        failures = iter(range(3))
        assert envoy.call(call, deadline=float(1 << 40)) == "answer"
        assert len(connections) == 1 + 3
        failures = iter(range(1))
        with pytest.raises(ConnectionRefusedByDirectorError, match="cannot reach the director"):
            envoy.call(call, deadline=0.0)
