"""A keyword model as a folder that Transformers' Auto classes load."""

from pathlib import Path

from transformers import FeatureExtractionMixin, Wav2Vec2FeatureExtractor

from openfl_audio.training.export import add_code
from workspaces.keyword_spotting import modeling_upstream_keywords, modeling_whisper_keywords
from workspaces.keyword_spotting.model import SAMPLE_RATE, EncoderModel
from workspaces.keyword_spotting.ssl_features import UpstreamForKeywords
from workspaces.keyword_spotting.whisper import create_log_mel


def save_keywords(model: EncoderModel, folder: Path) -> None:
    """Write weights, configuration, feature extractor and code of a model into `folder`.

    `create_whisper`, and `from_pretrained` of the model's own class, read it as well.
    """
    model.save_pretrained(folder)  # type: ignore[operator]  # of PreTrainedModel, its second base
    upstream = isinstance(model, UpstreamForKeywords)
    extractor: FeatureExtractionMixin
    if upstream and model.config.upstream is not None:
        extractor = Wav2Vec2FeatureExtractor(sampling_rate=SAMPLE_RATE, do_normalize=False)
    else:
        extractor = create_log_mel(model.input_shape[0], model.frames)
    extractor.save_pretrained(folder)
    module = modeling_upstream_keywords if upstream else modeling_whisper_keywords
    kind = "UpstreamKeywords" if upstream else "WhisperKeywords"
    name = module.__name__.rpartition(".")[2]
    classes = {
        "AutoConfig": f"{name}.{kind}Config",
        "AutoModelForAudioClassification": f"{name}.{kind}ForAudioClassification",
    }
    add_code(folder, [Path(str(module.__file__))], model.config.model_type, classes)
