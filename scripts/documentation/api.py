"""Reference of the public names of `openfl_audio`, from their docstrings."""

import openfl_audio

# A heading, and the modules of the engine whose public names are below it.
SECTIONS = {
    "The interactive API": ("notebook.",),
    "What runs at the sites": ("node.",),
    "Rounds, participation and aggregation": ("protocol.",),
    "Simulations": ("simulation.",),
    "Workloads": ("training.", "files", "errors"),
}


def api() -> str:
    """Return a directive for each public name, below the heading of its module.

    Raises ValueError if a public name is below no heading.
    """
    left = dict(openfl_audio._MODULE_OF)
    parts = []
    for heading, modules in SECTIONS.items():
        beginnings = tuple(f"openfl_audio.{module}" for module in modules)
        names = [name for name, module in left.items() if module.startswith(beginnings)]
        parts += [f"## {heading}", *(_directive(name, left.pop(name)) for name in sorted(names))]
    if left:
        raise ValueError(f"the API page has no heading for {', '.join(left)}")
    return "\n\n".join(parts)


def _directive(name: str, module: str) -> str:
    kind = "class" if isinstance(getattr(openfl_audio, name), type) else "function"
    return f"```{{eval-rst}}\n.. auto{kind}:: {module}.{name}\n```"
