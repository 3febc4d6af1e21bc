"""How a call finds its experiment, or is refused."""

import grpc

from openfl_audio.director.authorization import Context, Gate, refuse
from openfl_audio.director.director import Director
from openfl_audio.director.experiment import Experiment


async def find_envoys_experiment(director: Director, context: Context, experiment: str, envoy: str) -> Experiment:
    """Return the experiment of an envoy's call; end the call if it is not one of that envoy."""
    found = director.experiments.get(experiment)
    if found is None or envoy not in found.envoys:
        await refuse(context, grpc.StatusCode.NOT_FOUND, f"envoy '{envoy}' has no experiment '{experiment[:80]}'")
    return found


async def find_users_experiment(director: Director, gate: Gate, context: Context, experiment: str) -> Experiment:
    """Return the experiment of a user's call; end the call if it is not one of the calling user."""
    user = await gate.user(context)
    found = director.experiments.get(experiment)
    unusable = director.unusable.get(experiment)
    if unusable is not None and unusable.owner in ("", user):
        sentence = f"experiment '{experiment}' cannot be taken up: {unusable.reason}"
        await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, sentence)
    if found is None or found.owner != user:
        await refuse(context, grpc.StatusCode.NOT_FOUND, f"user '{user}' has no experiment '{experiment[:80]}'")
    return found
