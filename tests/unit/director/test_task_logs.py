import asyncio
from pathlib import Path

from openfl_audio.director.task_logs import MAX_BYTES, TaskLogs


def read(logs: TaskLogs, envoy: str) -> bytes:
    async def everything() -> bytes:
        return b"".join([chunk async for chunk in logs.read(envoy, lambda: True)])

    return asyncio.run(everything())


def test_each_envoy_has_a_log_of_its_own(tmp_path: Path):
    logs = TaskLogs(tmp_path / "logs")
    assert read(logs, "a") == b""
    logs.add("a", "größer\n")
    logs.add("b", "other\n")
    logs.add("a", "than ever\n")
    assert read(logs, "a").decode() == "größer\nthan ever\n"
    assert (tmp_path / "logs").stat().st_mode & 0o777 == 0o700


def test_of_a_long_log_the_end_is_kept(tmp_path: Path):
    logs = TaskLogs(tmp_path / "logs")
    for number in range(5):
        logs.add("a", f"{number}" * (MAX_BYTES // 2 + 1))
    kept = read(logs, "a").decode()
    assert kept.startswith("2")
    assert kept.endswith("4")
    assert sum(path.stat().st_size for path in (tmp_path / "logs").iterdir()) < 3 * MAX_BYTES


def test_a_log_is_followed_until_the_end(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("openfl_audio.director.task_logs.FOLLOW_SECONDS", 0.001)
    logs, ended = TaskLogs(tmp_path / "logs"), []
    logs.add("a", "one ")

    async def follow() -> str:
        read = ""
        async for chunk in logs.read("a", lambda: bool(ended)):
            read += chunk.decode()
            if read == "one ":
                logs.add("a", "two ")
            elif not ended:
                ended.append(True)
                logs.add("a", "three")
        return read

    assert asyncio.run(follow()) == "one two three"


def test_a_log_that_the_disk_does_not_take_is_lost(tmp_path: Path, caplog):
    (tmp_path / "logs").write_text("no folder")
    TaskLogs(tmp_path / "logs").add("a", "said")
    assert "the log of envoy 'a' is not kept" in caplog.text
