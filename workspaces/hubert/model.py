"""HuBERT: torchaudio's model for pretraining, under the names that Transformers gives its weights.

What `save_model` writes is a folder of Transformers (`HubertModel.from_pretrained`), and `load_model` reads the same.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint
from torchaudio.models import hubert_pretrain_model
from torchaudio.models.wav2vec2.components import ConvLayerBlock, GradMultiply
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor
from transformers.utils.hub import cached_file

from openfl_audio.errors import SettingsError
from openfl_audio.node.pretrained import explain_missing_weights
from openfl_audio.training.half_precision import guard_grouped_convolutions

SAMPLE_RATE = 16_000
HOP_LENGTH = 320  # samples from one frame to the next, 20 ms
RECEPTIVE_FIELD = 400  # samples that one frame sees
LOGIT_TEMPERATURE = 0.1  # of the paper, equation 3
CONFIGS = Path(__file__).parent / "configs"


class Hubert(torch.nn.Module):
    """HuBERT (Hsu et al., arXiv 2106.07447): a convolutional extractor, then a transformer, at 50 frames a second.

    The modules are those of `torchaudio.models.hubert_pretrain_model`. Where clips of several lengths share a batch,
    the outputs of each are those it has alone; torchaudio's own forward lets the first normalisation and the masks
    see the padding.

    Attributes:
        config: of Transformers, with two keys more: `clusters`, 0 for a model without the head that predicts them, and
            `final_dim`, the width in which they are predicted.
        gradient_checkpointing: compute activations again in the backward pass, instead of keeping them.
        feature_grad_mult: scales the gradient that reaches the convolutions; 1 leaves it as it is.
        normalize: bring each clip to mean 0 and variance 1 first, as some published models want it.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        check_frames(config)
        pretraining = hubert_pretrain_model(**_torchaudio_arguments(config))
        self.config = config
        self.gradient_checkpointing = False
        self.feature_grad_mult = 1.0
        self.normalize = False
        self.feature_extractor = pretraining.wav2vec2.feature_extractor
        self.feature_projection = pretraining.wav2vec2.encoder.feature_projection
        self.encoder = guard_grouped_convolutions(pretraining.wav2vec2.encoder.transformer)
        self.masked_spec_embed = pretraining.mask_generator.mask_embedding
        if config.clusters:
            self.label_embeddings = pretraining.logit_generator.label_embeddings
            self.final_proj = pretraining.logit_generator.final_proj

    @property
    def has_head(self) -> bool:
        return bool(self.config.clusters)

    def extract_features(
        self, waveforms: torch.Tensor, lengths: torch.Tensor | None = None, num_layers: int | None = None
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Return the outputs of the first `num_layers` layers, or of all, as torchaudio's Wav2Vec2Model gives them.

        `waveforms` (batch, samples) with `lengths` in samples (batch,), or None where none is padded. Returns a tensor
        (batch, frames, width) a layer, and the frames of each clip (batch,), or None.
        """
        if num_layers is not None and not 0 < num_layers <= len(self.encoder.layers):
            raise ValueError(f"num_layers is {num_layers}: the model has layers 1 to {len(self.encoder.layers)}")
        features = self.convolve(waveforms, lengths)
        frames = None if lengths is None else count_frames(lengths)
        return self.encode(features, frames, num_layers=num_layers), frames

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Return the output of the transformer (batch, frames, width) for `waveforms` (batch, samples)."""
        return self.finish(self.extract_features(waveforms, lengths)[0])

    def convolve(self, waveforms: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Return features (batch, frames, channels) of `waveforms` (batch, samples) with `lengths` (batch,)."""
        clip_lengths = _list_if_padded(lengths, waveforms.shape[-1])
        if self.normalize:
            waveforms = _each(_standardize, waveforms, clip_lengths)
        x = waveforms[:, None]  # (batch, channels, samples)
        for block in self.feature_extractor.conv_layers:
            if clip_lengths is not None:
                clip_lengths = [(n - block.kernel_size) // block.stride + 1 for n in clip_lengths]
            x = self._run(_convolve_block, block, x, clip_lengths)
        x = x.transpose(1, 2)
        return GradMultiply.apply(x, self.feature_grad_mult) if self.feature_grad_mult != 1 else x

    def encode(
        self,
        features: torch.Tensor,
        frames: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        num_layers: int | None = None,
    ) -> list[torch.Tensor]:
        """Return the outputs (batch, frames, width) of the layers for `features` (batch, frames, channels).

        `frames` (batch,) are how many of each clip are real; those of `mask` (batch, frames) are hidden from the model.
        """
        x = self.feature_projection(features)
        if mask is not None:
            x = torch.where(mask[..., None], self.masked_spec_embed.to(x.dtype), x)
        attention_mask = None
        if frames is not None and _list_if_padded(frames, x.shape[1]):
            real = real_frames(frames, x.shape[1]).to(x.device)
            x = x.masked_fill(~real[..., None], 0.0)
            attention_mask = real[:, None, None].expand(-1, 1, x.shape[1], -1)
        x = self.encoder._preprocess(x)
        outputs = []
        for layer in self.encoder.layers[:num_layers]:
            if not (self.training and torch.rand(()).item() < self.encoder.layer_drop):
                x, _ = self._run(layer, x, attention_mask)
            outputs.append(x)
        return outputs

    def finish(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """Return the output of the transformer, from those of all its layers."""
        # layer_norm_first is of the transformer here: of its layers it is the opposite.
        return outputs[-1] if self.encoder.layer_norm_first else self.encoder.layer_norm(outputs[-1])

    def logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return logits (..., clusters) of `outputs` (..., width): cosines over a temperature, in [-10, 10].

        cos(A o_t, e_c) / 0.1, equation 3 of the paper. torchaudio gives the same numbers with the right cluster put
        first, by way of a copy of all embeddings for each frame.
        """
        predicted = self.final_proj(outputs)
        # Half a precision is too little for a logit of 10.
        with torch.autocast(predicted.device.type, enabled=False):
            embeddings = F.normalize(self.label_embeddings.float(), dim=-1)
            return F.normalize(predicted.float(), dim=-1) @ embeddings.T / LOGIT_TEMPERATURE

    def _run(self, function: Callable, *arguments: Any) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)


def training_flops(config: HubertConfig, num_samples: int) -> float:
    """Return the floating-point operations of a training step on a clip: of its convolutions and matrix products.

    A multiplication with its addition counts as two, and the backward pass as twice the forward one. Normalisations,
    softmax, the positional convolution and the head are left out: they are some per cent. What is computed again with
    gradient checkpointing does not count either.
    """
    products, channels, frames = 0.0, 1, num_samples
    for width, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
        products += frames * kernel * channels * width
        channels = width
    width = config.hidden_size
    a_layer = 4 * width**2 + 2 * width * config.intermediate_size + 2 * frames * width
    products += frames * (channels * width + config.num_hidden_layers * a_layer)
    return 3 * 2 * products


def create_hubert(config: str | Path, clusters: int, final_dim: int = 256, seed: int = 0, **sizes: int) -> Hubert:
    """Return a HuBERT from a random start, which depends on `seed`.

    `config` is a JSON file of Transformers' HubertConfig, in `configs/` or elsewhere; `sizes`, such as `hidden_size`,
    take the place of its values. Raises SettingsError if its convolutions do not give a frame of 400 samples every 320.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Hubert(read_config(config, clusters=clusters, final_dim=final_dim, **sizes))


def read_config(config: str | Path, **values: Any) -> HubertConfig:
    """Read the configuration in a JSON file: by a name in `configs/`, which travels along, or by its path."""
    return HubertConfig(**json.loads((CONFIGS / config).read_text(encoding="utf-8")) | values)


def load_config(name: str | Path) -> HubertConfig:
    """Read the configuration of a pretrained model, by folder or hub name.

    Raises PretrainedWeightsError if it cannot be had.
    """
    with explain_missing_weights(name):
        config = HubertConfig.from_pretrained(name)
    # Others' models have no head for clusters.
    config.clusters, config.final_dim = getattr(config, "clusters", 0), getattr(config, "final_dim", 256)
    return config


def load_model(name: str | Path) -> Hubert:
    """Load a model that `save_model` wrote, or any HubertModel of Transformers, by its folder or its name on the hub.

    In evaluation mode, on the CPU. Raises PretrainedWeightsError if the weights cannot be had.
    """
    config = load_config(name)
    with torch.random.fork_rng(devices=[]):
        model = Hubert(config)
    with explain_missing_weights(name):
        if config.clusters:
            weights = load_file(str(cached_file(str(name), "model.safetensors")))
        else:
            weights = HubertModel.from_pretrained(name).state_dict()
        model.normalize = Wav2Vec2FeatureExtractor.from_pretrained(name).do_normalize
    # A student has more, which served to learn from its teacher; a model that was never to be masked has no embedding.
    missing = set(model.load_state_dict(weights, strict=False).missing_keys) - {"masked_spec_embed"}
    if missing:
        raise SettingsError(f"the weights of '{name}' do not fit its config.json: without {sorted(missing)[:3]}")
    return model.eval()


def save_model(model: Hubert, folder: Path) -> None:
    """Write model.safetensors, config.json and preprocessor_config.json as Transformers has them, the weights last.

    Besides those of a HubertModel, the file has the weights of the head, which Transformers leaves aside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = ["HubertModel"]
    extractor = Wav2Vec2FeatureExtractor(
        sampling_rate=SAMPLE_RATE, do_normalize=model.normalize, return_attention_mask=True
    )
    # Not `files.replacing`: Transformers chooses the names of the files that it writes.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        model.config.save_pretrained(temporary)
        extractor.save_pretrained(temporary)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, Path(temporary) / "model.safetensors", metadata={"format": "pt"})
        for path in sorted(Path(temporary).iterdir()):
            path.rename(folder / path.name)


def count_frames(num_samples: Any) -> Any:
    """Return the frames of clips with `num_samples`: a number, or an array or tensor of them."""
    return (num_samples - RECEPTIVE_FIELD) // HOP_LENGTH + 1


def real_frames(frames: torch.Tensor, longest: int) -> torch.Tensor:
    """Return which frames are not padding, bool (batch, longest), of clips with `frames` (batch,)."""
    return torch.arange(longest, device=frames.device) < frames[:, None]


def check_frames(config: HubertConfig) -> None:
    """Raise SettingsError unless a frame sees 400 samples, and the next one begins 320 later: targets are made so."""
    hop, field = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    if (hop, field) != (HOP_LENGTH, RECEPTIVE_FIELD):
        raise SettingsError(
            f"conv_kernel {list(config.conv_kernel)} and conv_stride {list(config.conv_stride)} give frames of {field} "
            f"samples every {hop}: they should have {RECEPTIVE_FIELD} every {HOP_LENGTH}"
        )


def _torchaudio_arguments(config: HubertConfig) -> dict[str, Any]:
    return {
        "extractor_mode": f"{config.feat_extract_norm}_norm",
        "extractor_conv_layer_config": list(zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)),
        "extractor_conv_bias": config.conv_bias,
        "encoder_embed_dim": config.hidden_size,
        "encoder_projection_dropout": config.feat_proj_dropout,
        "encoder_pos_conv_kernel": config.num_conv_pos_embeddings,
        "encoder_pos_conv_groups": config.num_conv_pos_embedding_groups,
        "encoder_num_layers": config.num_hidden_layers,
        "encoder_num_heads": config.num_attention_heads,
        "encoder_attention_dropout": config.attention_dropout,
        "encoder_ff_interm_features": config.intermediate_size,
        "encoder_ff_interm_dropout": config.activation_dropout,
        "encoder_dropout": config.hidden_dropout,
        "encoder_layer_norm_first": config.do_stable_layer_norm,
        "encoder_layer_drop": config.layerdrop,
        "num_classes": config.clusters,
        "final_dim": config.final_dim,
        "feature_grad_mult": None,
        # Only the embedding of torchaudio's mask generator is used: see masking.py.
        **dict.fromkeys(("mask_prob", "mask_other", "mask_channel_prob", "mask_channel_other"), 0.0),
        **dict.fromkeys(("mask_selection", "mask_channel_selection"), "static"),
        **dict.fromkeys(("mask_length", "mask_min_space", "mask_channel_length", "mask_channel_min_space"), 1),
        **dict.fromkeys(("no_mask_overlap", "no_mask_channel_overlap", "skip_masked", "skip_nomask"), False),
    }


def _convolve_block(block: ConvLayerBlock, x: torch.Tensor, lengths: list[int] | None) -> torch.Tensor:
    if lengths is None or not isinstance(block.layer_norm, torch.nn.GroupNorm):
        return block(x, None)[0]
    # It takes mean and variance over time: each clip by itself, so that its padding has no part in them.
    return F.gelu(_each(block.layer_norm, block.conv(x), lengths))


def _each(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, lengths: list[int] | None) -> torch.Tensor:
    """Apply `function` to every clip in `x` (batch, ..., time) without its padding, which becomes zeros."""
    if lengths is None:
        return function(x)
    clips = [F.pad(function(clip[None, ..., :n]), (0, x.shape[-1] - n)) for clip, n in zip(x, lengths, strict=True)]
    return torch.cat(clips)


def _standardize(waveforms: torch.Tensor) -> torch.Tensor:
    # As Wav2Vec2FeatureExtractor does it.
    variance, mean = torch.var_mean(waveforms, dim=-1, correction=0, keepdim=True)
    return (waveforms - mean) / torch.sqrt(variance + 1e-7)


def _list_if_padded(lengths: torch.Tensor | None, longest: int) -> list[int] | None:
    """Return the lengths, or None where nothing is padded: attention without a mask is quicker."""
    values = None if lengths is None else lengths.tolist()
    return None if values is None or min(values) == longest else values
