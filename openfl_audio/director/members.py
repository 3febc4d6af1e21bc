"""The envoys that a new experiment is for."""

from collections.abc import Mapping

from openfl_audio.director.envoy_entry import EnvoyEntry
from openfl_audio.errors import SubmissionError
from openfl_audio.protocol.plan import ExperimentPlan
from openfl_audio.protocol.rounds import Progress, Rounds


def choose_members(plan: ExperimentPlan, online: Mapping[str, str]) -> list[str]:
    """Return the envoys of a new experiment. Raises SubmissionError if they are not there, or too few.

    `online` are the corpora of the envoys that are online, by name.
    """
    members = _named(plan, plan.envoys, online) if plan.envoys is not None else _of_corpus(plan, online)
    _check(plan, members)
    return members


def check_can_mask(members: Mapping[str, EnvoyEntry]) -> None:
    """Raise SubmissionError unless all members can take part in secure aggregation: with TLS, and of this project."""
    if plain := sorted(name for name, entry in members.items() if entry.certificate_expires is None):
        raise SubmissionError(
            f"secure aggregation needs TLS, by whose certificates keys are signed, and {plain} have none"
        )
    if upstream := sorted(name for name, entry in members.items() if not entry.versions):
        raise SubmissionError(f"envoys {upstream} are OpenFL's own, which cannot mask their updates: leave them out")


def _named(plan: ExperimentPlan, envoys: list[str], online: Mapping[str, str]) -> list[str]:
    absent = [name for name in envoys if name not in online]
    if absent:
        raise SubmissionError(f"envoys {absent} are not online (online: {list(online)})")
    others = {name: online[name] for name in envoys if plan.corpus not in (None, online[name])}
    if others:
        raise SubmissionError(f"the experiment is for the corpus '{plan.corpus}', but envoys serve {others}")
    return envoys


def _of_corpus(plan: ExperimentPlan, online: Mapping[str, str]) -> list[str]:
    members = [name for name, corpus in online.items() if plan.corpus in (None, corpus)]
    corpora = sorted({online[name] for name in members})
    if not members:
        wanted = "" if plan.corpus is None else f" of the corpus '{plan.corpus}'"
        raise SubmissionError(f"no envoy{wanted} is online (online: {dict(online)})")
    if len(corpora) > 1:
        raise SubmissionError(f"the envoys serve several corpora, {corpora}: name one, or name the envoys")
    return members


def _check(plan: ExperimentPlan, members: list[str]) -> None:
    unknown = [name for name in plan.participation.evaluators if name not in members]
    if unknown:
        raise SubmissionError(f"evaluators {unknown} are not among the experiment's envoys {members}")
    if plan.envoys is None and plan.participation.lacking(members):
        return  # more are to come
    rounds = Rounds(plan, Progress())
    if not rounds.can_reach_quorum(members):
        raise SubmissionError(
            f"of the envoys {members}, {len(rounds.contributors(members))} can contribute to a round, fewer than "
            f"its quorum of {rounds.quorum}: name more envoys, or fewer evaluators"
        )
    try:
        rounds.check_members(members)
        plan.check()
    except ValueError as error:
        raise SubmissionError(f"of the envoys {members}: {error}") from None
