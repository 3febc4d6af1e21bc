"""The text of a review: what an experiment would run at a site, what would leave it, and what is new in it."""

import difflib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openfl_audio.envoy.approval import SHOWN_DIGITS, Approvals, Decision, Waiting
from openfl_audio.envoy.settings import EnvoySettings
from openfl_audio.errors import PrivacyError
from openfl_audio.privacy.accounting import privacy_of
from openfl_audio.protocol.bundle import Bundle, read_bundle, read_files
from openfl_audio.protocol.plan import AUTHOR_FILE, MODEL_FILE, OBJECTS_FILE, PUBLIC_PLAN_FILE, ExperimentPlan

# What may leave inside of a round, by the envoy's setting `reports`.
REPORTS = {
    "nothing": "nothing",
    "steps": "the task, its step, and the memory that it holds",
    "losses": "the task, its step, the memory that it holds, and losses that it reports",
    "logs": "the task, its step, the memory that it holds, losses that it reports, and all that it prints",
}
TENSORS_SHOWN = 20
SCAN_SECONDS = 120.0
# They are shown in words of their own.
NOT_AS_FILES = frozenset({OBJECTS_FILE, PUBLIC_PLAN_FILE, MODEL_FILE, AUTHOR_FILE})


def review(approvals: Approvals, settings: EnvoySettings, found: Waiting | Decision) -> Iterator[str]:
    """Yield the lines of a review of what waits, or of what was decided of.

    Raises ArchiveError if the files that were shown are not there any more, or cannot be read.
    """
    folder = approvals.files_of(found.sha256)
    bundle = read_bundle(folder)
    before = approvals.last_approved(found.name, found.user, found.sha256)
    yield from _head(found, bundle)
    yield from _section("What leaves this site", _what_leaves(bundle, settings))
    if before is not None:
        title = f"Differences to '{before.name}' ({before.sha256[:SHOWN_DIGITS]}), approved before"
        yield from _section(title, _differences(approvals.files_of(before.sha256), folder))
    yield from _section("Objects", describe_objects(json.loads((folder / OBJECTS_FILE).read_text(encoding="utf-8"))))
    yield from _section("Plan", _plan_lines(bundle.plan))
    for name, content in read_files(folder).items():
        if name not in NOT_AS_FILES:
            yield from _section(name, shown_lines(content))
    yield from _section("Advice of scanners", scan(folder))


def _head(found: Waiting | Decision, bundle: Bundle) -> Iterator[str]:
    state = "waits for a decision"
    if isinstance(found, Decision):
        state = f"{found.decision} by {found.by}" + (f": {found.reason}" if found.reason else "")
        by = f"'{found.user}'"
    else:
        by = f"'{found.user}', {'signed with that certificate' if found.signed else 'without a signature'}"
    yield f"experiment '{found.name}' of {by}: {state}"
    yield f"SHA-256 {found.sha256}, {found.rounds} rounds"


def _section(title: str, lines: Iterator[str]) -> Iterator[str]:
    yield ""
    yield f"== {title}"
    yield from lines


def _what_leaves(bundle: Bundle, settings: EnvoySettings) -> Iterator[str]:
    plan, tensors = bundle.plan, bundle.model.tensors
    yield f"after training, in each of {plan.rounds} rounds: {len(tensors)} tensors, {bundle.model.n_bytes:,} bytes"
    for name, (dtype, shape) in [*tensors.items()][:TENSORS_SHOWN]:
        yield f"  {name} {dtype} {shape}"
    if len(tensors) > TENSORS_SHOWN:
        yield f"  and {len(tensors) - TENSORS_SHOWN} more"
    named = {*plan.best.models.values()}
    known = sorted({metric for metric, _ in named} | plan.metric_bounds.keys() | plan.mean_over.keys())
    yield f"metrics that the tasks return, a number each; named in the plan: {', '.join(known)}"
    yield "number of clips of each task"
    yield from _what_is_private(plan)
    yield f"while a task runs: {REPORTS[settings.reports]} (setting reports: {settings.reports})"


def _what_is_private(plan: ExperimentPlan) -> Iterator[str]:
    """Yield what is protected, and what that costs; nothing without differential privacy."""
    level = plan.privacy
    if level is None:
        return
    told = (
        f"differential privacy of each {level.unit}: noise_multiplier {level.noise_multiplier:g}, clip {level.clip:g}"
    )
    try:
        spent = privacy_of(plan, {"": plan.rounds})
    except PrivacyError as error:
        yield f"{told}; {error}"
        return
    if spent is not None:
        yield f"{told}, epsilon {spent['epsilon']['']:.3g} at a delta of {level.delta:g} after all rounds"
        yield f"  of data that differ by: {spent['adjacency']}; trusted for it: {spent['trust']}"


def _plan_lines(plan: ExperimentPlan) -> Iterator[str]:
    content = plan.model_dump(mode="json", exclude={"federation_uuid", "untrained"})
    for key, each in content.items():
        yield f"{key}: {json.dumps(each)}"


def _differences(before: Path, after: Path) -> Iterator[str]:
    old, new = read_files(before), read_files(after)
    same = True
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            same = False
            was, now = ([*shown_lines(files[name])] if name in files else [] for files in (old, new))
            yield from difflib.unified_diff(was, now, f"before/{name}", f"now/{name}", lineterm="")
    if same:
        yield "none in the files"


def shown_lines(content: bytes) -> Iterator[str]:
    """Yield the lines of a file; what is no text is only described."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        yield f"({len(content):,} bytes that are no text)"
        return
    for line in text.split("\n"):
        yield show_characters(line)


def show_characters(line: str) -> str:
    r"""Return a line in which nothing steers the terminal or hides.

    >>> show_characters("a\x1b[2Kb")
    'a\\x1b[2Kb'
    """
    return "".join(each if each.isprintable() or each == "\t" else ascii(each)[1:-1] for each in line)


def describe_objects(content: dict[str, Any]) -> Iterator[str]:
    """Yield an experiment's objects as they would stand in Python."""
    yield f"model = {describe(content['model'])}"
    yield f"data = {describe(content['data'])}"
    for task in content["tasks"]:
        contract = ", ".join(f"{key}={each!r}" for key, each in task["contract"].items())
        yield f"task {describe(task['function'])} with {contract}, and {describe(task['settings'])}"


def describe(value: Any) -> str:
    """Return a JSON value of `openfl_audio.node.objects` as it would stand in Python.

    >>> describe({"partial": {"name": "torch.optim.sgd:SGD"}, "args": [], "kwargs": {"lr": 0.1}})
    'partial(torch.optim.sgd.SGD, lr=0.1)'
    """
    if isinstance(value, list):
        return f"[{', '.join(map(describe, value))}]"
    if not isinstance(value, dict):
        return show_characters(repr(value))
    if "name" in value:
        return _name(value["name"])
    if "partial" in value:
        arguments = [describe(value["partial"]), *_arguments(value)]
        return f"partial({', '.join(arguments)})"
    if "dict" in value:
        return f"{{{', '.join(f'{describe(key)}: {describe(each)}' for key, each in value['dict'])}}}"
    if "array" in value:
        kind = "tensor" if value.get("torch") else "array"
        return f"{kind}({value['array']}, {value['shape']}, base64={value['base64']!r:.60})"
    if "call" in value or "new" in value:
        return _describe_object(value)
    for kind in ("tuple", "set", "frozenset"):
        if kind in value:
            return f"{kind}({describe(value[kind])})"
    if "method" in value:
        return f"{describe(value['of'])}.{value['method']}"
    return show_characters(json.dumps(value))


def _describe_object(value: dict[str, Any]) -> str:
    """Describe what a call makes, and what becomes of it: nothing of that is left out."""
    arguments = [*_arguments(value)]
    state = value.get("state")
    if isinstance(state, dict) and "dict" in state:
        arguments += [f"{_key(key)}={describe(each)}" for key, each in state["dict"]]
    elif state is not None:
        arguments.append(f"state={describe(state)}")
    arguments += [describe(each) for each in value.get("items", ())]
    arguments += [f"{describe(key)}: {describe(each)}" for key, each in value.get("pairs", ())]
    return f"{_name(value.get('call') or value['new'])}({', '.join(arguments)})"


def _arguments(value: dict[str, Any]) -> Iterator[str]:
    yield from map(describe, value.get("args", ()))
    yield from (f"{show_characters(key)}={describe(each)}" for key, each in value.get("kwargs", {}).items())


def _key(key: Any) -> str:
    return show_characters(key) if isinstance(key, str) else describe(key)


def _name(name: Any) -> str:
    return show_characters(str(name)).replace(":", ".")


def scan(folder: Path) -> Iterator[str]:
    """Yield what bandit says of the sources and picklescan of other files, where they are installed.

    They are advice: what they do not find may be there all the same.
    """
    yield from _run("bandit", ["-q", "-r", str(folder), "-f", "txt"])
    yield from _run("picklescan", ["-p", str(folder), "-g"])


def _run(module: str, arguments: list[str]) -> Iterator[str]:
    if importlib.util.find_spec(module) is None:
        yield f"{module} is not installed (pip install 'openfl-audio[review]')"
        return
    command = [sys.executable, "-m", module, *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=SCAN_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        yield f"{module} took longer than {SCAN_SECONDS:.0f} s"
        return
    lines = [line for line in shown_lines(ended.stdout) if line.strip()]
    yield f"{module}:"
    yield from lines or ["no findings"]
