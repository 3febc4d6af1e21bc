import os
import stat
from pathlib import Path

from benchmarks.rounds_peers.shard import FewItemsShardDescriptor
from openfl_audio.config import Retention
from openfl_audio.envoy.envoy import MAX_LOG_BYTES, Envoy, remove_outdated, rotate
from openfl_audio.envoy.settings import EnvoySettings
from openfl_audio.protocol.plan import ARCHIVE


def test_what_an_envoy_that_was_killed_had_downloaded_is_removed_and_the_rest_is_kept_from_others(tmp_path: Path):
    mine, others = tmp_path / "a", tmp_path / "b"
    for envoy in (mine, others):
        (envoy / "one/workspace/code").mkdir(parents=True)
        (envoy / "one/state").mkdir()
        for name in (ARCHIVE, "worker.log", "state/1.pt", "workspace/code/model.pkl"):
            (envoy / "one" / name).touch()
        (envoy / "notes.txt").touch()
        envoy.chmod(0o755)
    settings = EnvoySettings(director_host="127.0.0.1", director_port=1, work_dir=tmp_path)
    Envoy("a", settings, FewItemsShardDescriptor(), tmp_path / "a.yaml", tls=False)._tidy_up()
    left = {path.relative_to(mine).as_posix() for path in mine.rglob("*") if path.is_file()}
    assert left == {"one/worker.log", "one/state/1.pt", "notes.txt"}
    assert stat.S_IMODE(mine.stat().st_mode) == 0o700
    assert (others / "one/workspace/code/model.pkl").exists(), "another envoy may be at work there"


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
