"""`openfl-audio demo`: a federation on this machine, from the recordings to a model."""

import os
from pathlib import Path
from typing import ClassVar, Literal

from openfl_audio.cli.options import Command, option


class Demo(Command):
    """Show a federation of three envoys on this machine.

    Director and envoys train a model over TLS. The demo makes a synthetic corpus, unless --data names a folder with the
    published one, and certificates, and executes the notebook of the workload. An earlier run in the same folder is
    kept under another name.

    With --secure the updates are summed in secret. What a federation of n envoys bears, of which t have to be there at
    every stage of a round, and each shares secrets with k others:

          n   t   k   dropouts survived   colluders borne
          3   3   2                   0                 1
          4   3   3                   1                 1
          5   4   4                   1                 2
          7   5   6                   2                 2
          8   6   7                   2                 3
         10   7   9                   3                 3
         20  14  19                   6                 7
         50  34  49                  16                17
         60  41  25                  12                12
        100  67  40                  20                20
        200 134  63                  40                40
       1000 667  99                 200               200
    """

    example: ClassVar[str] = "openfl-audio demo --workload whisper --data data/speech_commands"

    workload: Literal["wav2vec2", "whisper", "fsd50k", "librifsd50k", "librispeech", "recognition", "own_data"] = (
        option("what is trained", "wav2vec2")
    )
    data: Path | None = option(
        "a corpus in its published layout, in place of one that is made; for librifsd50k, a folder with LibriSpeech "
        "and FSD50K",
        None,
    )
    out: Path = option("folder of the run", Path("runs/demo"))
    secure: bool = option("sum updates in secret: the director sees none (wav2vec2)", False)
    privacy: Literal["record"] | None = option(
        "train a head on frozen features with differential privacy of each recording, in place of a workload", None
    )
    keep: bool = option("leave director and envoys running, to look and play", False)
    stop: bool = option("only end the director and the envoys that an earlier demo in this folder has left", False)

    def run(self) -> None:
        # Three envoys on a small machine: threads beyond the cores would only wait for each other.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        if self.stop:
            from openfl_audio.experiments.local_federation import stop_left_over

            print(f"ended {stop_left_over(self.out.resolve())} processes of {self.out}")
            return
        from openfl_audio.testing.demo import PRIVATE, report, run_demo

        workload = PRIVATE if self.privacy else self.workload
        report(workload, run_demo(workload, self.data, self.out, keep=self.keep, secure=self.secure), self.out)
