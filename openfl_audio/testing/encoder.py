"""A small speech model that others have trained, for heads on its features where no hub can be reached."""

from pathlib import Path

from transformers import AutoModelForAudioClassification

from openfl_audio.config import load_settings
from openfl_audio.experiments.run import run
from openfl_audio.experiments.workloads import find_file, find_workload
from openfl_audio.testing.corpora.speech_commands import make_speech_commands
from workspaces.keyword_spotting_wav2vec2.model import create_feature_extractor


def train_encoder(folder: Path, n_speakers: int, rounds: int, seed: int) -> None:
    """Train the small Wav2Vec2 on words of synthetic speakers, as public data, and keep it in `folder`.

    It is kept without its head. `seed` is that of the corpus: of another one, speakers are others. The corpus and the
    run are beside `folder`: what was interrupted goes on.
    """
    if (folder / "preprocessor_config.json").exists():
        return
    corpus, out = (folder.with_name(f"{folder.name}-{what}") for what in ("words", "training"))
    make_speech_commands(corpus, n_speakers=n_speakers, seed=seed)
    workload = find_workload("keyword_spotting_wav2vec2")
    settings = load_settings(find_file(workload, "small.yaml"), workload.config_class, {"rounds": rounds})
    run(workload, settings, "centralized", corpus, out)
    AutoModelForAudioClassification.from_pretrained(str(out / "model")).base_model.save_pretrained(folder)
    create_feature_extractor().save_pretrained(folder)
