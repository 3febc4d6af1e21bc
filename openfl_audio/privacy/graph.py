"""Graph of an attempt: who holds shares of whose secrets, and which two envoys have a mask in common.

Up to `ALL_PAIRS` participants all do, with all. Of more, each draws its neighbours, as in the protocol of Bell et al.
2020 against a malicious server (`protocol.neighbours` names the paper, and computes how many). All of them together fix
the graph: each gives its part with its signed keys, and everybody computes the whole, so nobody has to be told of it.

The neighbours of an envoy follow from its commitment alone, the digest of a fresh secret of its own. So neither the
director nor another envoy has any influence on the ones that an honest envoy draws, however many keys they see first,
hold back or make anew. A seed from the keys of all could be tried out by those who come last. Not prevented is this:

- A colluder can choose the ones that it draws. It exposes its own secrets by that. It has masks in common with honest
  envoys, but no shares of theirs, which go to the ones that they have drawn.
- A director knows the graph before it says who is lost. The number of neighbours is for the worst choice.
- A director can end an attempt whose graph it does not like, and the next one has another: the probability of 2^-40 is
  that of an attempt. It holds for colluders who are fixed before the draw.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence

from openfl_audio.errors import BelowThresholdError
from openfl_audio.privacy.transcript import Context, Keys
from openfl_audio.protocol.secure_aggregation import neighbours


class Graph:
    """The graph of the envoys whose keys are there.

    Attributes:
        shares: how many shares of a secret give it back.
    """

    def __init__(self, context: Context, roster: Iterable[Keys]) -> None:
        """Compute the graph from the keys of an attempt."""
        drawn, self.shares = neighbours(len(context.participants))
        commitments = {keys.envoy: keys.commitment for keys in roster}
        self._context = context
        self._holders = {
            envoy: {envoy, *draw(commitment, envoy, context.participants, drawn)} & commitments.keys()
            for envoy, commitment in commitments.items()
        }

    def holders(self, envoy: str) -> Collection[str]:
        """Return the envoys that hold shares of an envoy's secrets: itself, and those that it has drawn."""
        return self._holders[envoy]

    def have_mask(self, one: str, other: str) -> bool:
        """Tell whether two envoys have a mask in common: one of them has drawn the other."""
        return one != other and (other in self._holders[one] or one in self._holders[other])

    def check_holders(self, envoys: Iterable[str], there: Collection[str]) -> None:
        """Raise BelowThresholdError if `there` are too few holders of shares for the secrets of one of `envoys`."""
        there = {*there}
        for envoy in envoys:
            found = len(self._holders[envoy] & there)
            if found < self.shares:
                raise BelowThresholdError(
                    f"{self._context}: {found} holders of shares of envoy '{envoy}' are there, and there must be "
                    f"{self.shares}"
                )


def draw(commitment: str, envoy: str, participants: Sequence[str], number: int) -> list[str]:
    """Return the `number` other participants that the envoy with this commitment draws.

    They are those with the least digests of the commitment and their names, so every set of them is as likely.
    """

    def rank(other: str) -> bytes:
        return hashlib.sha256(f"openfl-audio neighbour\n{commitment}\n{other}\n".encode()).digest()

    others = [other for other in participants if other != envoy]
    return others if number >= len(others) else sorted(others, key=rank)[:number]
