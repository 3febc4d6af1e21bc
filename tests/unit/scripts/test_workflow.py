"""The workflow of changes that are proposed: it runs what `.ci/run` runs, for each Python that the project is for."""

import re
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[3]
TARGET = re.compile(r"^ *make (\S+)", re.MULTILINE)


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def job() -> dict:
    [one] = yaml.safe_load(read(".github/workflows/check.yml"))["jobs"].values()
    return one


def targets_of_the_workflow() -> list[str]:
    return TARGET.findall("\n".join(step.get("run", "") for step in job()["steps"]))


def test_each_target_of_a_step_is_in_the_makefile():
    there = re.findall(r"^([\w-]+):(?!=)", read("Makefile"), re.MULTILINE)
    assert targets_of_the_workflow()
    assert [target for target in targets_of_the_workflow() if target not in there] == []


def test_it_makes_what_ci_makes_after_the_installation():
    assert targets_of_the_workflow() == ["install", *TARGET.findall(read(".ci/run"))]


def test_it_runs_for_each_python_that_the_project_names():
    named = re.findall(r"Python :: (3\.\d+)\"", read("pyproject.toml"))
    strategy = job()["strategy"]
    assert strategy["matrix"]["python"] == named == ["3.10", "3.11", "3.12"]
    [setup] = [step for step in job()["steps"] if step.get("uses", "").startswith("actions/setup-python@")]
    assert setup["with"]["python-version"] == "${{ matrix.python }}"


def test_every_step_runs_or_uses_something():
    assert all(("run" in step) != ("uses" in step) for step in job()["steps"])
