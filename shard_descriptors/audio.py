"""Read audio: a file in, a mono float32 waveform out. A file that cannot be used raises, and never becomes silence.

torch and torchaudio are imported on the first file that needs resampling: the envoy reads headers and does without.
"""

import io
import os
from pathlib import Path

import numpy as np
import soundfile

from shard_descriptors.errors import AudioError

AudioSource = str | os.PathLike[str] | bytes  # a path, or what a file holds


def audio_problem(source: AudioSource) -> str | None:
    """What the header shows to be wrong with a file, or None. Decodes nothing, so a whole shard can be checked."""
    try:
        with _open(source):
            return None
    except AudioError as error:
        return str(error)


def read_waveform(source: AudioSource, sample_rate: int, name: str | None = None) -> np.ndarray:
    """Decode a file: channels averaged to mono, other rates resampled (windowed sinc of torchaudio).

    Args:
        source: path of the file, or its bytes.
        sample_rate: wanted rate in Hz.
        name: what an error calls the file; by default its path.

    Returns:
        waveform, float32, shape (samples,), nominally in [-1, 1].

    Raises:
        AudioError: not audio, empty, broken, or with NaN or infinite samples.
    """
    try:
        waveform, file_rate = _decode(source)
    except AudioError as error:
        if name is None:
            name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
        raise AudioError(f"{name}: {error}") from error.__cause__
    return waveform if file_rate == sample_rate else _resample(waveform, file_rate, sample_rate)


def _open(source: AudioSource) -> soundfile.SoundFile:
    try:
        size_bytes = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    except OSError as error:
        raise AudioError(f"cannot be read ({error.strerror})") from error
    if size_bytes == 0:
        raise AudioError("is empty (0 bytes)")
    try:
        sound = soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"is not audio ({error.error_string})") from error
    # MP3 has no signature: libsndfile finds it in arbitrary bytes, such as UTF-16 text. No corpus of ours uses it.
    if sound.format == "MP3":
        sound.close()
        raise AudioError("is not WAV, FLAC or OGG")
    if sound.frames == 0:
        sound.close()
        raise AudioError("is empty (0 samples)")
    return sound


def _decode(source: AudioSource) -> tuple[np.ndarray, int]:
    with _open(source) as sound:
        try:
            frames = sound.read(dtype="float32", always_2d=True)  # [samples, channels]
        except soundfile.LibsndfileError as error:
            raise AudioError(f"cannot be decoded ({error.error_string})") from error
        if not np.isfinite(frames).all():
            raise AudioError("has samples that are NaN or infinite")
        return frames.mean(axis=1), sound.samplerate  # [samples]


def _resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    import torch
    from torchaudio.functional import resample

    return resample(torch.from_numpy(waveform), from_rate, to_rate).numpy()
