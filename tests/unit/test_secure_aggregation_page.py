"""The table and the figures of docs/secure-aggregation.md."""

import re
from pathlib import Path

import pytest

from openfl_audio.cli.main import main
from openfl_audio.privacy.fixed_point import steps
from openfl_audio.protocol.secure_aggregation import (
    ALL_PAIRS,
    MOST_ENVOYS,
    SecureAggregation,
    colluders,
    describe,
    dropouts,
    neighbours,
    threshold,
)

PAGE = (Path(__file__).parents[2] / "docs" / "secure-aggregation.md").read_text()
ROW = r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$"


def test_table_says_what_the_protocol_bears():
    rows = [tuple(map(int, row)) for row in re.findall(ROW, PAGE, re.M)]
    assert [row[0] for row in rows] == [3, 4, 5, 7, 8, 10, 20, ALL_PAIRS, 60, 100, 200, MOST_ENVOYS]
    for envoys, *said in rows:
        assert said == [threshold(envoys), neighbours(envoys).drawn, dropouts(envoys), colluders(envoys)]


def test_help_of_the_demo_has_the_table_of_the_page(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    rows = re.findall(r"^ +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)$", capsys.readouterr().out, re.M)
    assert rows == re.findall(ROW, PAGE, re.M)


def test_numbers_of_masks_are_those_of_random_draws():
    said = re.search(r"of (\d+) envoys with (\d+) on average, of (\d+) with (\d+)", PAGE)
    assert said, "the page says with how many others an envoy has a mask"
    numbers = [int(number) for number in said.groups()]
    for envoys, masks in (numbers[:2], numbers[2:]):
        drawn = neighbours(envoys).drawn
        # Those that it has drawn, and of the others those that have drawn it.
        assert masks == round(drawn + (envoys - 1 - drawn) * drawn / (envoys - 1))


def test_submission_says_what_holds_for_its_envoys():
    assert describe(5) == (
        "secure aggregation takes 4 of 5 envoys at every stage of a round: 1 may be lost, and 2 may collude with the "
        "director"
    )
    assert describe(60) == (
        "secure aggregation takes 41 of 60 envoys at every stage of a round: 12 may be lost, and 12 may collude with "
        "the director; each shares its secrets with 25 others, and 14 shares give them back"
    )


def test_settings_and_their_defaults_are_on_the_page():
    table = dict(re.findall(r"^\| `(\w+)` \|.*\| `?([\w.]+)`? \|$", PAGE, re.M))
    fields = {name: field.default for name, field in SecureAggregation.model_fields.items()}
    assert table.keys() == fields.keys()
    assert {name: value for name, value in table.items() if name != "ranges"} == {
        name: str(int(value) if name == "stage_seconds" else value)
        for name, value in fields.items()
        if name != "ranges"
    }


def test_error_of_the_example_is_what_is_said():
    # Five sites of 500 clips with a range of 0.5 and 20 bits.
    assert 5 * 0.5 / steps(20) * 500 / (5 * 500) < 1e-6
