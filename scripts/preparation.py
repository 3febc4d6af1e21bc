"""How the commands that prepare a corpus end."""

import sys
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool

from shard_descriptors.common.errors import CorpusError


def run_preparation(prepare: Callable[[], Iterable[str]]) -> int:
    """Print the sentences that `prepare` returns, or the one that says why it could not. Returns the exit status."""
    try:
        print("\n".join(prepare()))
    except CorpusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, BrokenProcessPool) as error:
        print(f"error: stopped ({error}); the same command goes on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command goes on.", file=sys.stderr)
        return 130
    return 0
