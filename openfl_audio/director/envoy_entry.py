"""The entry of an envoy in the director's list of all."""

import time
from dataclasses import dataclass, field

from openfl.protocols import director_pb2

from openfl_audio.director.experiment import Experiment
from openfl_audio.director.notification import Changes
from openfl_audio.protocol.shard_sizes import Sizes


@dataclass
class EnvoyEntry:
    """One registered envoy.

    Attributes:
        shard_info: what the envoy says of its shard.
        corpus: the corpus that it serves.
        instance: tells a restarted envoy from a second one of the same name.
        peer: where it called from.
        sizes: the sizes of its shard.
        last_seen: when an envoy of OpenFL last called, in seconds of the clock.
        attending: whether an envoy of this project is there: it has a call open for as long as it is.
        experiment: the experiment that it works on.
        changes: notified when what it has to do changes.
        since: when it came or went away, in seconds of the clock.
        versions: its versions of Python and libraries, by name.
        certificate_expires: when its certificate expires, in seconds of the clock; None without TLS.
        last_error: the last line of why an experiment last failed on it.
    """

    shard_info: director_pb2.ShardInfo
    corpus: str
    instance: str
    peer: str
    sizes: Sizes
    last_seen: float = field(default_factory=time.time)
    attending: bool = False
    experiment: Experiment | None = None
    changes: Changes = field(default_factory=Changes)
    since: float = field(default_factory=time.time)
    versions: dict[str, str] = field(default_factory=dict)
    certificate_expires: float | None = None
    last_error: str = ""

    def work_on(self, experiment: Experiment | None) -> None:
        """Let the envoy work on `experiment`, or on none."""
        if experiment is not self.experiment:
            self.experiment = experiment
            self.changes.notify()
