"""`python -m openfl_audio.page ORDER`: the process that serves the page; the director starts it."""

import sys

from openfl_audio.page.server import run
from openfl_audio.protocol.page import PageOrder

if __name__ == "__main__":
    run(PageOrder.model_validate_json(sys.argv[1]))
