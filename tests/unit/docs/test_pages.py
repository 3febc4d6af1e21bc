"""Pages of docs/ and the README: their snippets run, and what they quote is in the code."""

import re
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest

from openfl_audio.privacy import clipping
from openfl_audio.protocol import rules

REPOSITORY = Path(__file__).parents[3]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
TROUBLESHOOTING = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
WORKLOADS = [page for page in sorted((REPOSITORY / "docs" / "workloads").glob("*.md")) if page.stem != "README"]
MESSAGES = re.findall(r"^\| `(.+?)` \|", TROUBLESHOOTING, re.MULTILINE)


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(encoding="utf-8"), re.DOTALL)


def join_strings(source: str) -> str:
    """Return a source in which texts that are written one after the other are one."""
    return re.sub(r'"\s*\n\s*f?"', "", source)


@pytest.fixture(scope="module")
def sources() -> str:
    folders = ("openfl_audio", "shard_descriptors", "workspaces")
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    return "\n".join(join_strings(path.read_text(encoding="utf-8")) for path in files)


@pytest.mark.parametrize("page", WORKLOADS, ids=lambda page: page.stem)
def test_a_page_of_a_workload_has_the_headings_of_the_others(page):
    headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[:6] == ["Implemented", "Data", "Hardware", "Command", "Expected result", "Known limits"]


def test_the_readme_is_one_screen():
    assert len(README.encode()) < 6 * 1024


def test_the_readme_has_twelve_lines_of_python():
    [block] = python_blocks("README.md")
    assert len(block.splitlines()) == 12
    compile(block, "README.md", "exec")


def test_the_readme_shows_what_the_demo_printed():
    page = (REPOSITORY / "docs" / "tutorials" / "first-run.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    assert len(shown.splitlines()) == 8
    assert [line for line in shown.splitlines() if line not in page] == []


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_troubleshooting_is_in_the_code(message, sources):
    # In the code the three dots are what is filled in, on the same line.
    pattern = r"[^\n]{0,120}?".join(re.escape(part) for part in message.split("..."))
    assert re.search(pattern, sources), message


def test_there_are_messages_of_each_kind():
    assert len(MESSAGES) > 20


def test_the_rule_of_the_page_works_and_can_be_named():
    rule, union, test = python_blocks("docs/contributing/aggregation-rule.md")
    names = dict(vars(rules))
    exec(rule + union + test, names)
    names["test_the_middle_of_the_extremes_is_taken"]()
    slices = iter([np.zeros(3, np.float32), np.ones(3, np.float32)])
    assert names["MidRange"]().combine(slices, [1, 5], np.zeros(3)).tolist() == [0.5, 0.5, 0.5]
    page = set(re.findall(r"\w+", union.partition("[")[2].partition(",")[0]))
    code = set(re.findall(r"\w+", Path(rules.__file__).read_text().split("Rule = Annotated[")[1].partition(",")[0]))
    assert page == code | {"MidRange"}


def test_the_mechanism_of_the_page_keeps_its_promise():
    literal, function, test = python_blocks("docs/contributing/privacy-mechanism.md")
    names = dict(vars(clipping)) | {"Literal": Literal}
    exec(literal + function + test, names)
    names["test_the_squares_of_the_bounds_add_up"]()
    assert set(get_args(names["Clipping"])) == {*get_args(clipping.Clipping), "per_root"}
