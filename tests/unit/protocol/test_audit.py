import json
from collections.abc import Callable
from pathlib import Path

import pytest

from openfl_audio.cli.main import main
from openfl_audio.errors import RecordError
from openfl_audio.protocol.audit import verify
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.certificates import Credentials, load_credentials
from openfl_audio.protocol.heads import HeadExchange, sign_head
from openfl_audio.protocol.record import EMPTY, NO_HASH, Head, Record, sha256_of

DIRECTOR, ENVOY = "director 'director'", "envoy 'site-a'"
UPDATE = {"experiment": "x", "bytes": 12, "tensors": 2, "names_sha256": "0" * 64}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder, director_hosts=["localhost"], envoys=["site-a", "site-b"])
    return folder


def exchange(
    director: HeadExchange, envoy: HeadExchange, of_director: Credentials | None, of_envoy: Credentials | None
) -> None:
    """Exchange heads, as director and envoy do once a round."""
    for exchange in (director, envoy):
        exchange.record.sync()
    theirs, certificate = envoy.own(of_envoy), of_envoy.certificate.decode() if of_envoy else ""
    director.take(ENVOY, theirs, certificate, None)
    answer = director.own(of_director)
    envoy.take(DIRECTOR, answer, answer.certificate, of_envoy.root if of_envoy else None)


def write_records(folder: Path, own: tuple[Credentials | None, ...], experiment: str = "x") -> tuple[Path, Path]:
    director, envoy = (HeadExchange(Record(folder / f"{owner[:5]}.jsonl", owner)) for owner in (DIRECTOR, ENVOY))
    director.record.append("submitted", experiment=experiment)
    for round_number in range(3):
        envoy.record.write("sent", round=round_number, **UPDATE | {"experiment": experiment})
        director.record.note("received", envoy="site-a", round=round_number, **UPDATE | {"experiment": experiment})
        exchange(director, envoy, *own)
    director.record.append("ended", experiment=experiment)
    exchange(director, envoy, *own)
    return director.record.path, envoy.record.path


@pytest.fixture
def records(tmp_path: Path, certificates: Path) -> tuple[Path, Path]:
    own = load_credentials(certificates, "director"), load_credentials(certificates, "site-a")
    return write_records(tmp_path, own)


def rechained(lines: list[bytes]) -> list[bytes]:
    """The lines with numbers and hashes made good, as somebody would who has the file."""
    made, before = [], NO_HASH
    for number, line in enumerate(lines, start=1):
        made.append(json.dumps(json.loads(line) | {"number": number, "before": before}).encode())
        before = sha256_of(made[-1])
    return made


def swap(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], lines[4], lines[3], *lines[5:]]


def change(lines: list[bytes]) -> list[bytes]:
    return [line.replace(b'"tensors": 2', b'"tensors": 3') for line in lines]


def test_records_that_nobody_touched_hold_on_both_sides(records, certificates):
    root = (certificates / "ca.crt").read_bytes()
    for file, other in (records, records[::-1]):
        verdict = verify(file, other, root)
        assert verdict.faults == []
        assert any("as " + str(other) + " knows them" in note for note in verdict.notes)
        assert verify(file).faults == []


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (
            lambda lines: [*lines[:2], lines[2].replace(b'"bytes": 12', b'"bytes": 13'), *lines[3:]],
            "line 3 was changed",
        ),
        (lambda lines: [*lines[:2], *lines[3:]], "line 3 is entry 4: entry 3 is missing before it"),
        (lambda lines: [*lines[:2], *lines[5:]], "line 3 is entry 6: entries 3 to 5 are missing before it"),
        (swap, "line 4 is entry 5, and entry 4 comes after it: out of order"),
        (lambda lines: [*lines[:2], lines[2].replace(b"12", b"13"), *lines[2:]], "line 3 was added: line 4 is entry 3"),
        (lambda lines: [*lines[:4], b"no entry", *lines[4:]], "line 5 is no entry"),
    ],
    ids=["changed", "lost", "several lost", "reordered", "added", "no entry"],
)
def test_the_chain_shows_what_became_of_a_line(records, tamper, sentence):
    file, _ = records
    file.write_bytes(b"\n".join(tamper(file.read_bytes().splitlines())) + b"\n")
    (fault,) = verify(file).faults
    assert sentence in fault


@pytest.mark.parametrize("side", [0, 1], ids=["director", "envoy"])
@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (lambda lines: lines[:-4], "the end is cut off: it has "),
        (lambda lines: rechained(change(lines)), "is not what it was, the record was rewritten "),
        (lambda lines: rechained([*lines[:2], *lines[3:]]), "is not what it was, the record was rewritten "),
        (
            lambda lines: rechained([lines[0], lines[1], lines[1], *lines[2:]]),
            "is not what it was, the record was rewr",
        ),
        (lambda lines: rechained(lines[:1]), "the end is cut off: it has 1 entries, and had "),
    ],
    ids=["cut", "rewritten from a line on", "rewritten without a line", "rewritten with a line", "begun anew"],
)
def test_the_other_side_shows_what_the_chain_does_not(records, certificates, side, tamper, sentence):
    file, other = records[side], records[1 - side]
    file.write_bytes(b"\n".join(tamper(file.read_bytes().splitlines())) + b"\n")
    assert verify(file).faults == []
    faults = verify(file, other, (certificates / "ca.crt").read_bytes()).faults
    assert sentence in faults[0]
    assert f"{other} has its head since" in faults[0]


def test_a_made_up_head_does_not_hold(records, certificates):
    # An accusation has to have the signature of the other side.
    director, envoy = records
    lines = director.read_bytes().splitlines()
    made_up = [
        json.dumps(json.loads(line) | {"sha256": "f" * 64}).encode() if b'"event": "head"' in line else line
        for line in lines
    ]
    director.write_bytes(b"\n".join(rechained(made_up)) + b"\n")
    faults = verify(envoy, director, (certificates / "ca.crt").read_bytes()).faults
    assert all("the signature of head" in fault and "does not hold" in fault for fault in faults[:3])
    assert f"{director}, line " in faults[0]


def test_a_head_of_another_authority_does_not_hold(records, tmp_path):
    write_certificates(tmp_path / "others", envoys=["site-a"])
    faults = verify(records[1], records[0], (tmp_path / "others" / "ca.crt").read_bytes()).faults
    assert "the certificate of envoy 'site-a' is not signed by this authority" in faults[0]


def test_without_tls_heads_are_unsigned_and_that_is_said(tmp_path):
    file, other = write_records(tmp_path, (None, None))
    verdict = verify(file, other)
    assert verdict.faults == []
    assert any("4 heads are unsigned, as TLS was off" in note for note in verdict.notes)


def test_an_update_that_was_received_otherwise_than_it_was_sent_is_a_fault(tmp_path, certificates):
    own = load_credentials(certificates, "director"), load_credentials(certificates, "site-a")
    director, envoy = write_records(tmp_path, own)
    Record(envoy, ENVOY).append("sent", round=3, **UPDATE)
    Record(director, DIRECTOR).append("received", envoy="site-a", round=3, **UPDATE | {"tensors": 3})
    Record(director, DIRECTOR).append("received", envoy="site-a", round=4, **UPDATE)
    faults = verify(director, envoy).faults
    assert "update of envoy 'site-a' for round 3 of 'x' is not what the envoy has recorded" in faults[0]
    assert "for round 4 of 'x' was never sent: the envoy has no entry of it" in faults[1]


def test_records_that_have_nothing_of_each_other_are_not_called_good(records, tmp_path):
    Record(tmp_path / "b.jsonl", "envoy 'site-b'").append("envoy_started")
    assert "has no head of the record of envoy 'site-a'" in verify(records[1], tmp_path / "b.jsonl").faults[0]


def test_a_head_is_taken_only_with_the_signature_of_its_owner(tmp_path, certificates):
    director = HeadExchange(Record(tmp_path / "record.jsonl", DIRECTOR))
    a, b = load_credentials(certificates, "site-a"), load_credentials(certificates, "site-b")
    head = Head(3, "a" * 64)
    director.take(ENVOY, sign_head(ENVOY, head, a), a.certificate.decode(), None)
    with pytest.raises(RecordError, match="is signed by envoy 'site-b'"):
        director.take(ENVOY, sign_head(ENVOY, head, b), b.certificate.decode(), None)
    signed = sign_head(ENVOY, head, a).model_copy(update={"number": 4})
    with pytest.raises(RecordError, match="the signature of head 4 .* does not hold"):
        director.take(ENVOY, signed, a.certificate.decode(), None)
    with pytest.raises(RecordError, match="does not hold"):  # an envoy with TLS takes no unsigned head
        director.take(ENVOY, sign_head(ENVOY, head, None), "", a.root)


def test_a_head_that_goes_back_is_said_at_once(tmp_path, certificates):
    director = HeadExchange(Record(tmp_path / "record.jsonl", DIRECTOR))
    a = load_credentials(certificates, "site-a")
    for head in (Head(3, "a" * 64), EMPTY):
        director.take(ENVOY, sign_head(ENVOY, head, a), a.certificate.decode(), None)
    assert '"event": "head_went_back", "of": "envoy \'site-a\'", "had": 3, "has": 0' in director.record.path.read_text()


def test_of_many_heads_in_a_moment_the_first_and_the_newest_are_kept(tmp_path, certificates):
    director = HeadExchange(Record(tmp_path / "record.jsonl", DIRECTOR), pause_seconds=3600)
    a = load_credentials(certificates, "site-a")

    def kept() -> list[tuple[str, int]]:
        found = map(json.loads, director.record.path.read_text().splitlines())
        return [(e["event"], e.get("entry", e.get("has"))) for e in found if e["event"] in ("head", "head_went_back")]

    for number in [*range(1, 21), 2, 1, 7]:
        signed = sign_head(ENVOY, Head(number, f"{number:064x}"), a)
        director.take(ENVOY, signed, a.certificate.decode(), None)
    director.keep_waiting()
    assert kept() == [("head", 1)]
    director.keep_waiting(at_once=True)
    assert kept() == [("head", 1), ("head_went_back", 2), ("head", 7)]
    director.keep_waiting(at_once=True)
    assert len(kept()) == 3


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*words: object) -> tuple[int, str]:
        status = main([*map(str, words)])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def test_the_commands_check_and_show_a_record(records, certificates, run, tmp_path):
    director, envoy = records
    status, said = run("audit", "verify", director, "--against", envoy, "--ca", certificates / "ca.crt")
    assert (status, said.splitlines()[-1]) == (0, "the chain holds, and agrees with the other side")
    assert "neither a cut end nor a rewrite can be seen" in run("audit", "verify", director)[1]
    assert run("audit", "verify", tmp_path / "none")[0] == 1
    shown = run("audit", "show", director, "--experiment", "x")[1].splitlines()
    assert [line.split()[2] for line in shown] == ["submitted", "received", "received", "received", "ended"]
    entries = run("audit", "show", director, "--json")[1]
    assert entries == director.read_text()
    director.write_bytes(b"".join(director.read_bytes().splitlines(keepends=True)[:-3]))
    status, said = run("audit", "verify", director, "--against", envoy)
    assert status == 1
    assert "fault: the end is cut off" in said
