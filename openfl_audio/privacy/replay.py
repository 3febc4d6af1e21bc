"""Proofs in a director's record that rounds were secure: the signed agreements on survivors, checked again."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from openfl_audio.errors import SecureAggregationError
from openfl_audio.privacy.graph import Graph
from openfl_audio.privacy.transcript import (
    Agreement,
    Context,
    Keys,
    check_signature,
    roster_digest,
    survivors_statement,
)
from openfl_audio.protocol.codec import describe_faults
from openfl_audio.protocol.messages import SecureSum

SECURE_SUM = "secure_sum"


def entry_of_sum(
    context: Context, roster: Iterable[Keys], sharers: list[str], survivors: list[str], signed: Iterable[Agreement]
) -> dict[str, Any]:
    """Return the fields of a record's entry about a secure round: all that its signatures are over."""
    return {
        "context": context.model_dump(),
        "keys": [keys.model_dump() for keys in roster],
        "sharers": sharers,
        "survivors": survivors,
        "signatures": {agreement.envoy: agreement.signature for agreement in signed},
    }


def replay(entry: Mapping[str, Any]) -> SecureSum:
    """Return the secure sum that an entry is about.

    Raises SecureAggregationError unless enough envoys have signed it, and enough shares were held by those in the sum.
    Whether certificates are an authority's is for those to check who have its own.
    """
    try:
        context = Context.model_validate(entry["context"])
        roster = {keys["envoy"]: Keys.model_validate(keys) for keys in entry["keys"]}
        sharers, survivors, signatures = list(entry["sharers"]), list(entry["survivors"]), dict(entry["signatures"])
    except (KeyError, TypeError, ValidationError) as error:
        fault = describe_faults(error) if isinstance(error, ValidationError) else repr(error)
        raise SecureAggregationError(f"an entry is none of a secure sum: {fault}") from None
    if not {*signatures} <= {*survivors} <= {*sharers} <= {*roster} or len(signatures) < context.threshold:
        raise SecureAggregationError(
            f"{context}: {len(signatures)} survivors have signed, and {context.threshold} have to"
        )
    statement = survivors_statement(roster_digest(context, roster.values()), sharers, survivors)
    for envoy, signature in signatures.items():
        check_signature(envoy, roster[envoy].certificate, signature, statement)
    for keys in roster.values():
        check_signature(keys.envoy, keys.certificate, keys.signature, keys.statement(context))
    Graph(context, roster.values()).check_holders(sharers, survivors)
    return SecureSum(
        envoys=survivors,
        of=len(context.participants),
        threshold=context.threshold,
        attempt=context.attempt,
        approving=sum(roster[envoy].approves for envoy in survivors),
    )


def secure_rounds(entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, SecureSum | str]]:
    """Yield the rounds that entries of a record say were secure: each with its sum, or why that does not hold."""
    for entry in entries:
        if entry["event"] == SECURE_SUM:
            try:
                yield entry["round"], replay(entry)
            except SecureAggregationError as error:
                yield entry["round"], str(error)
