"""Reference of the public names of `openfl_audio`, from their docstrings."""

import openfl_audio

# A heading, and the modules of the engine whose public names are below it.
SECTIONS = {
    "The interactive API": ("notebook.",),
    "What runs at the sites": ("node.",),
    "Rounds, participation and aggregation": ("protocol.",),
    "Simulations": ("simulation.",),
    "Privacy": ("privacy.",),
    "Workloads": ("training.", "files", "errors"),
    "Further names": ("",),
}


def api() -> str:
    """Return a directive for each public name, below the first heading that has its module."""
    left = dict(openfl_audio._MODULE_OF)
    parts = []
    for heading, modules in SECTIONS.items():
        beginnings = tuple(f"openfl_audio.{module}" for module in modules)
        names = [name for name, module in left.items() if module.startswith(beginnings)]
        if names:
            parts += [f"## {heading}", *(_directive(name, left.pop(name)) for name in sorted(names))]
    return "\n\n".join(parts)


def _directive(name: str, module: str) -> str:
    kind = "class" if isinstance(getattr(openfl_audio, name), type) else "function"
    return f"```{{eval-rst}}\n.. auto{kind}:: {module}.{name}\n```"
