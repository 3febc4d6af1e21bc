"""`python -m openfl_audio.cli` is the command openfl-audio."""

import sys

from openfl_audio.cli.main import main

sys.exit(main())
