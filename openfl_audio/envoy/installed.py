"""Tell an installed workload from another one: by each byte of its sources, and the parts of its objects."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from openfl_audio.protocol.plan import OBJECTS_FILE

# What the objects of an installed workload are made of.
PACKAGE = "workspaces"
PARTS = frozenset({"openfl_audio.node.model_interface:ModelInterface", "openfl_audio.training.adapters:Lora"})
OPTIMIZERS = "torch.optim."
TRAINS = re.compile(rf"{PACKAGE}\.\w+\.tasks:\w+")


def why_not_installed(workspace: Path) -> str:
    """Return why a submission, unpacked into `workspace`, is no installed workload; "" if it is one.

    Its sources have to be those that are installed here, byte by byte, and its objects made of them alone.
    """
    spec = find_spec(PACKAGE)
    roots = [Path(each).parent for each in spec.submodule_search_locations or ()] if spec else []
    for path in sorted(workspace.rglob("*.py")):
        name = path.relative_to(workspace)
        installed = [root / name for root in roots if name.parts[0] == PACKAGE]
        if not any(each.is_file() and each.read_bytes() == path.read_bytes() for each in installed):
            return f"'{name.as_posix()}' is not what is installed here"
    objects = json.loads((workspace / OBJECTS_FILE).read_bytes())
    for part in sorted(_names_in(objects)):
        if not (part in PARTS or part.startswith((f"{PACKAGE}.", OPTIMIZERS))):
            return f"'{part}' is no part of an installed workload"
    for task in objects["tasks"]:
        function = task["function"].get("name", "") if isinstance(task["function"], dict) else ""
        if task["contract"].get("optimizer") and not TRAINS.fullmatch(function):
            return f"the training task '{function}' is none of an installed workload"
    return ""


def _names_in(described: Any) -> set[str]:
    """Return the names of all that objects are built of."""
    if isinstance(described, list):
        return {name for each in described for name in _names_in(each)}
    if not isinstance(described, dict):
        return set()
    own = {described[key] for key in ("name", "call", "new") if isinstance(described.get(key), str)}
    return own | {name for each in described.values() for name in _names_in(each)}
