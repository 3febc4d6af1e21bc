"""Extension of Sphinx for the pages in docs/: parts that are made from the code, and results that need a file.

A comment `<!-- generated: NAME -->` on a page is replaced by what the function NAME in `PARTS` returns, as Markdown.
A word after NAME is given to it.
"""

import re
from collections.abc import Callable
from typing import Any

from docutils import nodes  # type: ignore[import-untyped]
from sphinx.application import Sphinx
from sphinx.util import logging

from scripts.documentation.api import api
from scripts.documentation.commands import commands
from scripts.documentation.computed import adapter_bytes, epsilons
from scripts.documentation.protocol import calls, messages
from scripts.documentation.results import (
    benchmarks,
    cohorts,
    hubert_iterations,
    modes,
    privacy_accuracy,
    typed_results,
)
from scripts.documentation.run_files import run_files, train_files
from scripts.documentation.settings import settings

# Characters that reStructuredText takes for markup, and code, which it does not look into.
MARKUP = re.compile(r"(`[^`]*`|^ *>>>.*)|([*|]|_(?=\W|$))")
MARKER = re.compile(r"^<!-- generated: (\S+)(?: (\S+))? -->$", re.MULTILINE)
PARTS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        adapter_bytes,
        api,
        benchmarks,
        calls,
        cohorts,
        commands,
        epsilons,
        hubert_iterations,
        messages,
        modes,
        privacy_accuracy,
        run_files,
        settings,
        train_files,
    )
}

logger = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the extension."""
    app.connect("source-read", read_page)
    app.connect("doctree-read", find_unfilled)
    app.connect("autodoc-process-docstring", escape_markup, priority=0)  # before napoleon writes markup of its own
    return {"version": "1", "parallel_read_safe": True}


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Warn of results on a page that no file has, and put its generated parts in their places."""
    for line, result in typed_results(source[0]):
        logger.warning(
            "%r is a typed result: benchmarks/results/NAME.json should have it, and {{ result.NAME.key }} show it",
            result,
            location=(page, line),
        )
    source[0] = MARKER.sub(lambda marker: generate(*filter(None, marker.groups())), source[0])


def find_unfilled(app: Sphinx, page: nodes.document) -> None:
    """Warn of a place for a result that was not filled, as one is whose cell of a table ends at a bar in it."""
    for text in page.findall(nodes.Text):
        if "{{" in text and not isinstance(text.parent, nodes.literal | nodes.literal_block):
            logger.warning("%r is not filled: no bar may be in it", str(text), location=text.parent)


def escape_markup(app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Escape what is no markup in a docstring, such as the bars of |x|; code in backticks stays as it is."""
    lines[:] = [MARKUP.sub(lambda found: found[1] or f"\\{found[2]}", line) for line in lines]


def generate(name: str, *words: str) -> str:
    """Return a generated part; `words` are given to its function. Raises ValueError if there is none of this name."""
    if name not in PARTS:
        raise ValueError(f"there is no generated part {name!r}: it should be {', '.join(sorted(PARTS))}")
    return PARTS[name](*words)
