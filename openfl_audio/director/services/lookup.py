"""Lookup of a call's experiment, which may refuse the call."""

import grpc

from openfl_audio.director.authorization import Caller, Context, Gate, refuse
from openfl_audio.director.director import Director
from openfl_audio.director.experiment import Experiment
from openfl_audio.protocol.certificates import USER


async def find_envoys_experiment(director: Director, context: Context, experiment: str, envoy: str) -> Experiment:
    """Return the experiment of an envoy's call; end the call if it is not one of that envoy."""
    found = director.experiments.get(experiment)
    if found is None or envoy not in found.envoys:
        await refuse(context, grpc.StatusCode.NOT_FOUND, f"envoy '{envoy}' has no experiment '{experiment[:80]}'")
    return found


async def find_persons_experiment(director: Director, gate: Gate, context: Context, experiment: str) -> Experiment:
    """Return the experiment of a call; end the call if it is one of another user."""
    await find_caller(director, gate, context, experiment)
    unusable = director.unusable.get(experiment)
    if unusable is not None:
        sentence = f"experiment '{experiment}' cannot be taken up: {unusable.reason}"
        await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, sentence)
    return director.experiments[experiment]


async def find_caller(director: Director, gate: Gate, context: Context, experiment: str) -> Caller:
    """Return who makes a call about an experiment; end the call if there is none, or it is one of another user."""
    caller = await gate.person(context)
    found = director.experiments.get(experiment) or director.unusable.get(experiment)
    if found is None or not caller.sees(found.owner):
        who = f"{caller} has" if caller.role == USER else "there is"
        await refuse(context, grpc.StatusCode.NOT_FOUND, f"{who} no experiment '{experiment[:80]}'")
    return caller
