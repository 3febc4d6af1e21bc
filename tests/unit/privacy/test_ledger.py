import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openfl_audio.errors import BudgetSpentError, FormatError, PrivacyError
from openfl_audio.privacy.accounting import Release, epsilon
from openfl_audio.privacy.ledger import Account, Budget, Ledger

ACCOUNT = Account("ward 7", "speaker")
BUDGET = Budget(epsilon=4.0, delta=1e-5)
RELEASE = Release(2.0, 0.1, 20)


def ledger(folder: Path, site: str = "site_b", budget: Budget = BUDGET, account: Account = ACCOUNT) -> Ledger:
    return Ledger(folder / "shared" / "ledger.jsonl", account, budget, site, folder / site / "witness.json")


def lines(folder: Path) -> list[str]:
    return (folder / "shared" / "ledger.jsonl").read_text().splitlines()


def test_what_is_spent_adds_up_over_experiments_and_openings(tmp_path):
    for number in range(3):
        assert ledger(tmp_path).charge(f"experiment {number % 2}", number, RELEASE, bytes([number]))
    one = epsilon([RELEASE], BUDGET.delta)
    again = ledger(tmp_path)
    assert again.spent() == epsilon([RELEASE] * 3, BUDGET.delta) > one
    assert again.spent_by_experiment() == {"experiment 0": epsilon([RELEASE] * 2, BUDGET.delta), "experiment 1": one}
    described = again.describe()
    assert (described["unit"], described["adjacency"], described["delta"]) == (
        "speaker",
        "add or remove one unit",
        1e-5,
    )
    assert described["left"] == pytest.approx(4.0 - again.spent())


def test_bytes_that_are_sent_again_cost_nothing_and_others_do(tmp_path):
    assert ledger(tmp_path).charge("one", 3, RELEASE, b"update")
    assert not ledger(tmp_path).charge("one", 3, RELEASE, b"update")
    spent = ledger(tmp_path).spent()
    assert ledger(tmp_path).charge("one", 3, RELEASE, b"update, trained again")
    assert ledger(tmp_path).spent() > spent


def test_a_payment_that_was_half_written_is_one_when_it_is_tried_again(tmp_path):
    of_site = ledger(tmp_path)
    shutil.rmtree(tmp_path / "site_b")
    with pytest.raises(FileNotFoundError):
        of_site.charge("one", 3, RELEASE, b"update")
    (tmp_path / "site_b").mkdir()
    assert of_site.charge("one", 3, RELEASE, b"update")
    assert len(lines(tmp_path)) == 2
    assert not of_site.charge("one", 3, RELEASE, b"update")
    assert json.loads((tmp_path / "site_b" / "witness.json").read_text())["lines"] == 2


def test_a_task_that_would_overspend_is_refused_before_it_starts_and_so_is_its_update(tmp_path, caplog):
    of_site = ledger(tmp_path)
    dear = Release(0.5, 0.5, 100)
    with pytest.raises(BudgetSpentError, match=r"^site_b's budget is spent$"):
        of_site.refuse_if_overspent(dear)
    assert "epsilon would be" in caplog.text
    before = lines(tmp_path)
    with pytest.raises(BudgetSpentError):
        of_site.charge("one", 0, dear, b"update")
    assert lines(tmp_path) == before
    of_site.refuse_if_overspent(RELEASE)


def test_two_envoys_of_a_corpus_spend_one_budget(tmp_path):
    one, other = ledger(tmp_path, "site_a"), ledger(tmp_path, "site_b")
    budget = epsilon([RELEASE] * 3, BUDGET.delta)
    one, other = (ledger(tmp_path, name, Budget(budget, BUDGET.delta)) for name in ("site_a", "site_b"))
    one.charge("one", 0, RELEASE, b"a0")
    other.charge("one", 0, RELEASE, b"b0")
    one.refuse_if_overspent(RELEASE)
    other.charge("one", 1, RELEASE, b"b1")
    # The other one was faster: the update that was trained meanwhile stays at the site.
    with pytest.raises(BudgetSpentError, match="site_a's budget is spent"):
        one.charge("one", 1, RELEASE, b"a1")


def test_a_ledger_from_an_old_backup_is_refused(tmp_path):
    path = tmp_path / "shared" / "ledger.jsonl"
    ledger(tmp_path).charge("one", 0, RELEASE, b"0")
    backup = path.read_bytes()
    ledger(tmp_path).charge("one", 1, RELEASE, b"1")
    newest = path.read_bytes()
    path.write_bytes(backup)
    with pytest.raises(PrivacyError, match="has 2 lines, and .* has seen line 3: it was restored from an old backup"):
        ledger(tmp_path)
    path.unlink()
    with pytest.raises(PrivacyError, match="has 0 lines"):
        ledger(tmp_path)
    path.write_bytes(newest)
    ledger(tmp_path).charge("one", 2, RELEASE, b"2")


def test_a_backup_that_was_written_on_is_refused_too(tmp_path):
    path = tmp_path / "shared" / "ledger.jsonl"
    ledger(tmp_path).charge("one", 0, RELEASE, b"0")
    backup = path.read_bytes()
    ledger(tmp_path).charge("one", 1, RELEASE, b"1")
    path.write_bytes(backup)
    for number in range(3):  # by an envoy that had not seen the newest
        ledger(tmp_path, "site_c").charge("two", number, RELEASE, b"c%d" % number)
    with pytest.raises(PrivacyError, match="restored from an old backup or replaced"):
        ledger(tmp_path)


@pytest.mark.parametrize("change", [("20", "10"), ("{", ""), ('"one"', '"two"')])
def test_a_line_that_was_changed_is_refused(tmp_path, change):
    for number in range(3):
        ledger(tmp_path).charge("one", number, RELEASE, bytes([number]))
    path = tmp_path / "shared" / "ledger.jsonl"
    for place in (2, 3):
        changed = lines(tmp_path)
        whole = path.read_bytes()
        changed[place] = changed[place].replace(*change, 1)
        path.write_text("\n".join(changed) + "\n")
        with pytest.raises(PrivacyError, match="does not follow the one before|from an old backup or replaced"):
            ledger(tmp_path)
        path.write_bytes(whole)


def test_the_ledger_of_another_corpus_or_unit_is_refused(tmp_path):
    ledger(tmp_path)
    with pytest.raises(PrivacyError, match="is the ledger of 'ward 7' by speaker, not of 'ward 7' by record"):
        ledger(tmp_path, account=Account("ward 7", "record"))


def test_a_ledger_of_a_later_version_is_refused(tmp_path):
    ledger(tmp_path)
    path = tmp_path / "shared" / "ledger.jsonl"
    path.write_text(json.dumps(json.loads(lines(tmp_path)[0]) | {"format": 2}) + "\n")
    (tmp_path / "site_b" / "witness.json").unlink()
    with pytest.raises(FormatError, match="has format 2"):
        ledger(tmp_path)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(updates=st.lists(st.integers(0, 4), min_size=1, max_size=6), cut=st.floats(0, 1))
def test_after_an_end_at_any_byte_all_that_was_paid_for_is_there_or_missed(updates, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    cheap = Release(50.0, 0.01, 1)
    for number in updates:
        ledger(folder).charge("one", 0, cheap, bytes([number]))
    path = folder / "shared" / "ledger.jsonl"
    whole = path.read_bytes()
    assert len(lines(folder)) == 1 + len(set(updates))
    # The process ended while it wrote one more: what is there of it does not count, and does not hurt.
    path.write_bytes(whole + whole.splitlines(keepends=True)[-1][: int(cut * 100)])
    again = ledger(folder)
    assert again.charge("one", 1, cheap, b"another")
    assert len(lines(folder)) == 2 + len(set(updates))
    # The disk lost something that was paid for: that is said.
    path.write_bytes(path.read_bytes()[: int(cut * (path.stat().st_size - 1))])
    with pytest.raises(PrivacyError):
        ledger(folder)


CHARGING = """
import sys
from pathlib import Path
from openfl_audio.privacy.accounting import Release
from openfl_audio.privacy.ledger import Account, Budget, Ledger
folder, site = Path(sys.argv[1]), sys.argv[2]
ledger = Ledger(folder / "shared" / "ledger.jsonl", Account("ward 7", "speaker"), Budget(1000.0, 1e-5), site,
                folder / site / "witness.json")
for number in range(10_000):
    ledger.charge("one", number, Release(20.0, 0.1, 1), f"{site} {number}".encode())
    assert "torch" not in sys.modules
    print(number, flush=True)
"""


@pytest.mark.process
def test_two_envoys_that_are_killed_lose_nothing_that_they_had_paid_for(tmp_path):
    command = [sys.executable, "-c", CHARGING, str(tmp_path)]
    envoys = [subprocess.Popen([*command, site], stdout=subprocess.PIPE, text=True) for site in ("site_a", "site_b")]
    try:
        for envoy in envoys:
            for _ in range(5):
                assert envoy.stdout.readline()
    finally:
        for envoy in envoys:
            os.kill(envoy.pid, signal.SIGKILL)
    paid = {"site_a": 5 + len(envoys[0].stdout.readlines()), "site_b": 5 + len(envoys[1].stdout.readlines())}
    for envoy in envoys:
        envoy.stdout.close()
        envoy.wait(timeout=30)
    of_site = ledger(tmp_path, "site_a", Budget(1000.0, 1e-5))
    entries = len(lines(tmp_path)) - 1
    assert entries >= sum(paid.values())
    assert of_site.spent() == pytest.approx(epsilon([Release(20.0, 0.1, entries)], 1e-5), rel=1e-6)
    for site, count in paid.items():  # each update that may have left is known, and so costs nothing more
        for number in range(count):
            assert not of_site.charge("one", number, Release(20.0, 0.1, 1), f"{site} {number}".encode())
