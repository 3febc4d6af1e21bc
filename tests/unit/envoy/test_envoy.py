import stat
from pathlib import Path

from benchmarks.rounds_peers.shard import FewItemsShardDescriptor
from openfl_audio.envoy.envoy import Envoy
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
