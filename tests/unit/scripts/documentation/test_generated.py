"""Parts of the pages that are made from the code: that nothing of it is left out."""

import re
from pathlib import Path

import pytest
from docutils import nodes
from docutils.utils import new_document

import openfl_audio
from openfl_audio.experiments.workloads import workload_names
from openfl_audio.privacy.accounting import Release, epsilon
from openfl_audio.protocol.messages import UpdateMessage
from scripts import documentation
from scripts.documentation import MARKER, PARTS, escape_markup, find_unfilled, generate

DOCS = Path(__file__).parents[4] / "docs"


def test_each_part_is_on_one_page_and_each_page_names_parts_that_there_are():
    named = [found for page in DOCS.rglob("*.md") for found in MARKER.findall(page.read_text(encoding="utf-8"))]
    assert sorted(name for name, word in named if not word) == sorted(PARTS.keys() - {"modes"})
    assert sorted(word for name, word in named if name == "modes") == sorted(workload_names())


def test_the_api_has_each_public_name_once():
    names = re.findall(r"^\.\. auto(?:class|function):: .*\.(\w+)$", generate("api"), re.MULTILINE)
    assert sorted(names) == openfl_audio.__all__


def test_the_command_line_has_each_command_with_an_example_and_without_open_places():
    text = generate("commands")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    for command in ("openfl-audio data make fsd50k", "openfl-audio train", "openfl-audio check director"):
        assert command in headings
    assert len(headings) == len(set(headings)) == text.count("For example:")
    assert "%(" not in text


def test_the_settings_have_the_files_of_director_envoy_and_each_workload():
    text = generate("settings")
    assert "| `params.approval` | " in text
    assert "| `settings.listen_port` | the one port of the federation (50051) |" in text
    assert "## Workload `sound_events`" in text


def test_a_message_has_its_fields_with_type_and_meaning():
    text = generate("messages")
    section = text.split(f"## {UpdateMessage.__name__}\n")[1].split("\n## ")[0]
    assert "| `round` | `int` | required |" in section
    assert "| `memory_bytes` | `int` | `0` | the memory that the worker holds. |" in text


def test_the_calls_are_those_of_the_service():
    calls = re.findall(r"^\| `(\w+)` \| (\w+ to \w+) \| \S+", generate("calls"), re.MULTILINE)
    assert ("SendUpdate", "stream to stream") in calls
    assert len(calls) == 16


def test_epsilons_are_those_of_the_accountant():
    header, _, row = [line.strip("| ").split(" | ") for line in generate("epsilons").splitlines()]
    costs = dict(zip(header, row, strict=True))
    assert costs["5"] == f"{epsilon([Release(5, 1, 50)], 1e-5):.1f}" == "7.1"


def test_bytes_of_adapters_are_those_of_their_layers():
    rows = [line.strip("| ").split(" | ") for line in generate("adapter_bytes").splitlines()]
    [base] = [row for row in rows if row[0] == "wav2vec2-base"]
    layers = 12 * 2  # projections to queries and values of 768 units
    head = 29 * (768 + 1)  # English letters, and what CTC needs besides
    both, one = layers * 2 * 8 * 768, layers * 8 * 768
    residual = layers * 768 * 768
    sent = [f"{4 * (factors + head) / 1e6:.2f}" for factors in (both, one)]
    assert base[2:] == [*sent, f"{sent[0]} up, {4 * (both + head + residual) / 1e6:.1f} down"]


def test_a_part_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="no generated part 'apis': it should be adapter_bytes, api, benchmarks"):
        generate("apis")


def test_a_place_that_was_not_filled_is_told_unless_it_is_code(monkeypatch):
    told = []
    monkeypatch.setattr(documentation.logger, "warning", lambda message, text, **where: told.append(text))
    page = new_document("page")
    page += nodes.paragraph("", "seconds {{ result.a.b")
    page += nodes.paragraph("", "", nodes.literal("", "{{ result.NAME.key }}"))
    find_unfilled(None, page)
    assert told == ["seconds {{ result.a.b"]


def test_what_is_no_markup_in_a_docstring_is_escaped():
    lines = ["clipped to |x| * 2 of `*args` and name_", ">>> a * b_", "snake_case stays"]
    escape_markup(None, "class", "A", None, None, lines)
    assert lines == [r"clipped to \|x\| \* 2 of `*args` and name\_", ">>> a * b_", "snake_case stays"]
