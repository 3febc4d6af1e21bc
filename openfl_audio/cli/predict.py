"""`openfl-audio predict`, `enhance` and `onnx`: exported models at work, and for other runtimes."""

from pathlib import Path
from typing import ClassVar

from openfl_audio.cli.options import Command, argument, option
from openfl_audio.cli.train import use_one_thread

MODEL = "folder of an exported model, such as RUN/model, or a hub name"
TRUST = "run code that comes with the model and is none of this project's"


class Predict(Command):
    """Tell what a model hears in recordings.

    A classifier prints labels and scores, a speech recogniser the text. Recordings may have any sample rate. Keyword
    spotters hear the first second, as they are trained on clips of one second.
    """

    example: ClassVar[str] = "openfl-audio predict runs/simulated/model yes.wav no.flac --top 3"

    model: str = argument(MODEL)
    files: list[Path] = argument("recordings: WAV, FLAC or OGG", metavar="FILE")
    top: int = option("labels that are shown", 5, ge=1)
    json_: bool = option("print a line of JSON a file, with all scores", False)
    trust_code: bool = option(TRUST, False)

    def run(self) -> None:
        use_one_thread()
        from openfl_audio.experiments.prediction import as_json, predict, shown

        for heard in predict(self.model, self.files, self.trust_code):
            print(as_json(heard) if self.json_ else shown(heard, self.top), flush=True)


class Enhance(Command):
    """Take the noise out of a recording of speech.

    The result is mono, float32, at the sample rate of the model.
    """

    example: ClassVar[str] = "openfl-audio enhance runs/enhancement/model noisy.wav clean.wav"

    model: str = argument(MODEL)
    recording: Path = argument("a recording of speech: WAV, FLAC or OGG", metavar="IN")
    out: Path = argument("the WAV file that is written", metavar="OUT")
    trust_code: bool = option(TRUST, False)

    def run(self) -> None:
        use_one_thread()
        from openfl_audio.experiments.prediction import enhance

        enhance(self.model, self.recording, self.out, self.trust_code)
        print(f"{self.out} has the speech of {self.recording}")


class Onnx(Command):
    """Write a classifier as a file of ONNX.

    Keyword spotters take the output of their feature extractor, taggers of sound events patches of log-mel frames. The
    result has logits.
    """

    example: ClassVar[str] = "openfl-audio onnx runs/simulated/model keywords.onnx"

    model: str = argument(MODEL)
    out: Path = argument("the file that is written", metavar="OUT")
    trust_code: bool = option(TRUST, False)

    def run(self) -> None:
        use_one_thread()
        from openfl_audio.experiments.onnx import write_onnx

        name, shape = write_onnx(self.model, self.out, self.trust_code)
        print(f"{self.out} takes {name} ({', '.join(map(str, shape))})")
