"""Read audio: a file in, a mono float32 waveform out. A file that cannot be used raises, and never becomes silence.

What a header says of a file's length is checked, not believed: a recorder that writes into a pipe cannot know it.
torch and torchaudio are imported on the first file that needs resampling: the envoy reads headers and does without.
"""

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from shard_descriptors.common.errors import AudioError

AudioSource = str | os.PathLike[str] | bytes  # a path, or what a file holds


class EncodedAudio(bytes):
    """The content of a file that has had a name, which tells formats apart that have no signature."""

    suffix: str

    def __new__(cls, content: bytes, file_name: str = "") -> "EncodedAudio":
        """Take a format without a signature from the name; of audio without one, from its first bytes."""
        encoded = super().__new__(cls, content)
        encoded.suffix = Path(file_name).suffix.casefold() or _guess_suffix(content)
        return encoded


MAX_SAMPLES = 2**28  # of a mono waveform, 1 GiB as float32: 4.6 hours at 16 kHz
RATES = (1_000, 768_000)  # Hz; what claims another rate has a broken header
BLOCK_SAMPLES = 2**20  # decoded at a time, of all channels together
UNKNOWN_FRAMES = 2**36 - 1  # FLAC counts frames in 36 bits; 0 and all ones mean that the number is unknown

# Weights of torchaudio's kernel (outputs in a period times the inputs that they see): 18 MB. The largest of the usual
# rates, 11.025 to 16 kHz, has 0.3 million; 16,001 Hz has 256 million, which take seconds and gigabytes.
MAX_KERNEL_WEIGHTS = 2**22
# Formats that people's telephones and computers record in, and that libsndfile does not decode.
UNDECODABLE = {".m4a": "AAC", ".aac": "AAC", ".mp4": "AAC", ".wma": "WMA", ".amr": "AMR", ".3gp": "AMR"}
LOWPASS_WIDTH = 6  # zero crossings on each side, and the roll-off: torchaudio's defaults
ROLLOFF = 0.99


class Decoded(NamedTuple):
    """A file at its own rate.

    Attributes:
        waveform: float32, shape (samples,), the mean of the channels.
        sample_rate: in Hz.
        channels: that the file has.
    """

    waveform: np.ndarray
    sample_rate: int
    channels: int


def audio_problem(source: AudioSource, channel: int | None = None) -> str | None:
    """Return what the header shows to be wrong with a file, or None; nothing is decoded: a shard can be checked."""
    try:
        with _open(source) as opened:
            _check_channel(opened, channel)
            return None
    except AudioError as error:
        return str(error)


def duration_s(source: AudioSource) -> float:
    """Return the length of a file in seconds, from its header where that knows; otherwise the file is decoded.

    Raises:
        AudioError: as `decode`, without the file's name.
    """
    with _open(source) as opened:
        frames = len(_read_mono(opened)) if opened.frames is None else opened.frames
        return frames / opened.sound.samplerate


def read_waveform(
    source: AudioSource,
    sample_rate: int,
    name: str | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
    channel: int | None = None,
) -> np.ndarray:
    """Decode a file or a part of it: channels averaged to mono, other rates resampled (windowed sinc of torchaudio).

    Args:
        source: path of the file, or its bytes.
        sample_rate: wanted rate in Hz.
        name: what an error calls the file; by default its path.
        start_s: where the part begins, in seconds.
        end_s: where it ends; None is the end of the file, which a part that ends later is cut at.
        channel: the one that is heard, from 1; None is the mean of all.

    Returns:
        waveform, float32, shape (samples,), nominally in [-1, 1].

    Raises:
        AudioError: as `decode`.
    """
    decoded = decode(source, name, start_s, end_s, channel)
    return resample(decoded.waveform, decoded.sample_rate, sample_rate)


def decode(
    source: AudioSource,
    name: str | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
    channel: int | None = None,
) -> Decoded:
    """Decode a file at its own rate, block by block, so that no header decides how much memory is taken.

    Raises:
        AudioError: not audio, empty, broken, cut short, longer than `MAX_SAMPLES`, or with NaN or infinite samples; or
            it ends before `start_s`.
    """
    try:
        with _open(source) as opened:
            sound = opened.sound
            _check_channel(opened, channel)
            if (start_s, end_s) == (0.0, None):
                return Decoded(_read_mono(opened, channel), sound.samplerate, sound.channels)
            return Decoded(_read_part(opened, start_s, end_s, channel), sound.samplerate, sound.channels)
    except AudioError as error:
        if name is None:
            name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
        raise AudioError(f"{name}: {error}") from error.__cause__


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample float32 (samples,) to float32 (ceil(samples * to_rate / from_rate),), as torchaudio does by default."""
    if from_rate == to_rate:
        return waveform
    if has_large_kernel(from_rate, to_rate):
        return resample_sparsely(waveform, from_rate, to_rate)
    import torch
    from torchaudio.functional import resample as resample_torch

    return resample_torch(torch.from_numpy(waveform), from_rate, to_rate).numpy()


def has_large_kernel(from_rate: int, to_rate: int) -> bool:
    """Tell whether torchaudio's kernel for two rates, a weight for each input of each output, is too large.

    >>> has_large_kernel(44_100, 16_000), has_large_kernel(44_099, 16_000)
    (False, True)
    """
    divisor = math.gcd(from_rate, to_rate)
    inputs, outputs = from_rate // divisor, to_rate // divisor
    seen = inputs + 2 * math.ceil(LOWPASS_WIDTH * inputs / (min(inputs, outputs) * ROLLOFF))
    return outputs * seen > MAX_KERNEL_WEIGHTS


def resample_sparsely(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample with torchaudio's filter, of which only the weights that are not zero are made and multiplied.

    Its kernel is a Hann-windowed sinc at distances that are multiples of 1 / (from_rate * to_rate); as a polyphase
    filter that takes 12 weights an output (more where the rate falls) and memory in proportion to the rates.
    """
    from scipy.signal import resample_poly

    divisor = math.gcd(from_rate, to_rate)
    inputs, outputs = from_rate // divisor, to_rate // divisor
    cutoff = min(inputs, outputs) * ROLLOFF
    half = math.floor(LOWPASS_WIDTH * inputs * outputs / cutoff)
    crossings = np.arange(-half, half + 1) * (cutoff / (inputs * outputs))
    weights = np.sinc(crossings) * np.cos(crossings * (np.pi / LOWPASS_WIDTH / 2)) ** 2 * (cutoff / inputs)
    # resample_poly multiplies the weights by the factor that the rate rises by.
    return resample_poly(waveform, outputs, inputs, window=weights / outputs).astype(np.float32)


class _Stream(soundfile.SoundFile):
    """A file that is read from its beginning to its end.

    soundfile seeks to where a read should have ended, which fails at the end of a file that is shorter than it says.
    """

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class _Opened:
    """A file whose header can be used.

    Attributes:
        frames: how many the header tells of; None: it does not know.
    """

    sound: _Stream
    frames: int | None


@contextmanager
def _open(source: AudioSource) -> Iterator[_Opened]:
    source, frames_known = _mend_length(source)
    try:
        sound = _Stream(io.BytesIO(source) if isinstance(source, bytes) else source)
    except soundfile.LibsndfileError as error:
        kind = UNDECODABLE.get(_suffix(source))
        if kind is not None:
            raise AudioError(
                f"is {kind}, which is not decoded here: convert it, as `ffmpeg -i FILE FILE.wav` does"
            ) from error
        raise AudioError(f"is not audio ({error.error_string})") from error
    with sound:
        # MP3 has no signature: libsndfile finds it in arbitrary bytes, such as UTF-16 text, so its name has to say it.
        if sound.format == "MP3" and _suffix(source) != ".mp3":
            raise AudioError("is not WAV, FLAC or OGG")
        if not RATES[0] <= sound.samplerate <= RATES[1]:
            raise AudioError(f"claims {sound.samplerate:,} Hz; recordings have {RATES[0]:,} to {RATES[1]:,} Hz")
        # The length of an MP3 is an estimate.
        frames_known = frames_known and sound.format != "MP3"
        frames = sound.frames if frames_known and sound.frames < UNKNOWN_FRAMES else None
        if frames == 0:
            raise AudioError("is empty (0 samples)")
        if frames is not None and frames > MAX_SAMPLES:
            raise AudioError(f"is too long ({frames:,} samples; {MAX_SAMPLES:,} are read at most)")
        yield _Opened(sound, frames)


def _check_channel(opened: _Opened, channel: int | None) -> None:
    if channel is not None and opened.sound.channels < channel:
        raise AudioError(f"has {opened.sound.channels} channels, and channel {channel} is wanted")


def _to_mono(block: np.ndarray, channel: int | None) -> np.ndarray:
    """Return (samples,) of a block (samples, channels): the mean, or one channel, from 1."""
    return block.mean(axis=1) if channel is None else block[:, channel - 1]


def _read_mono(opened: _Opened, channel: int | None = None) -> np.ndarray:
    sound = opened.sound
    # libsndfile's own way from 16 bits to float32 takes five times as long and gives the same.
    is_plain = (sound.subtype, sound.channels) == ("PCM_16", 1)
    at_a_time = max(1, BLOCK_SAMPLES // sound.channels)
    blocks: list[np.ndarray] = []
    samples = 0
    while True:
        try:
            block = sound.read(at_a_time, dtype="int16" if is_plain else "float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"cannot be decoded ({error.error_string})") from error
        mono = block[:, 0] * np.float32(2**-15) if is_plain else _to_mono(block, channel)
        if not np.isfinite(mono).all():
            raise AudioError("has samples that are NaN or infinite")
        blocks.append(mono)
        samples += len(mono)
        if samples > MAX_SAMPLES:
            raise AudioError(f"is too long (more than {MAX_SAMPLES:,} samples)")
        if len(block) < at_a_time:
            break
    if samples == 0:
        raise AudioError("is empty (0 samples)")
    if opened.frames is not None and samples < opened.frames:
        raise AudioError(f"is cut short: its header tells of {opened.frames:,} samples, and {samples:,} are there")
    return np.concatenate(blocks) if len(blocks) > 1 else blocks[0]


def _read_part(opened: _Opened, start_s: float, end_s: float | None, channel: int | None) -> np.ndarray:
    """Return a part of a file, mono; of one that cannot be sought in, what is before the part is decoded as well."""
    rate = opened.sound.samplerate
    first = round(start_s * rate)
    if end_s is None or opened.frames is None:
        part = _read_mono(opened, channel)[first : None if end_s is None else round(end_s * rate)]
    else:
        if first >= opened.frames:
            raise AudioError(f"ends after {opened.frames / rate:.3f} s, before its part from {start_s:g} s on")
        try:
            opened.sound.seek(first)
            block = opened.sound.read(round(end_s * rate) - first, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"cannot be decoded ({error.error_string})") from error
        part = _to_mono(block, channel)
        if not np.isfinite(part).all():
            raise AudioError("has samples that are NaN or infinite")
    if len(part) == 0:
        raise AudioError(f"has nothing from {start_s:g} s on")
    return part


def _suffix(source: AudioSource) -> str:
    return getattr(source, "suffix", "") if isinstance(source, bytes) else Path(source).suffix.casefold()


def _guess_suffix(content: bytes) -> str:
    """Return the suffix of an MP3 (an ID3 tag, or the sync bits of a frame of layer III) or of an MP4, "" of others."""
    if content[:3] == b"ID3" or (content[:1] == b"\xff" and content[1:2] in (b"\xfb", b"\xfa", b"\xf3", b"\xf2")):
        return ".mp3"
    return ".m4a" if content[4:8] == b"ftyp" else ""


def _mend_length(source: AudioSource) -> tuple[AudioSource, bool]:
    """Return a source that libsndfile can read to its end, and whether its header knows its length.

    A WAV file that was written into a pipe says 0 or about 2 or 4 GB; libsndfile takes the 0 at its word.
    """
    try:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        if size == 0:
            raise AudioError("is empty (0 bytes)")
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            head = file.read(12)
            if head[:4] == b"fLaC":
                return source, _flac_frames(file.read(26 - len(head))) != 0
            if head[:4] != b"RIFF" or head[8:] != b"WAVE" or (found := _find_data(file)) is None:
                return source, True
            begin, told = found
            there = size - begin
            if told == 0 and there and not _is_chunk(file.read(8), there):
                if there > 4 * MAX_SAMPLES:
                    raise AudioError(f"is too long ({there:,} bytes, and its header does not say how many it has)")
                file.seek(0)
                content = bytearray(file.read())
                content[begin - 4 : begin] = b"\xff" * 4
                return bytes(content), False
            if told >= 0x7FFF_0000:
                return source, False
            file.seek(begin + told + told % 2)
            if told > there:
                raise AudioError(
                    f"is cut short: its header tells of {told:,} bytes of samples, and {there:,} are there"
                )
            if there - told > told and not _is_chunk(file.read(8), there - told):
                raise AudioError(f"has a wrong header: it tells of {told:,} bytes of samples, and {there:,} are there")
    except OSError as error:
        raise AudioError(f"cannot be read ({error.strerror})") from error
    return source, True


def _flac_frames(stream_info: bytes) -> int:
    """Return the last 36 bits of bytes 18 to 26 of a FLAC file, given from byte 12 on."""
    return int.from_bytes(stream_info[6:14], "big") & UNKNOWN_FRAMES


def _find_data(file: io.BufferedIOBase | io.BytesIO) -> tuple[int, int] | None:
    """Seek to where the samples of a WAV file begin; return where, and how many bytes the header says they have."""
    while len(chunk := file.read(8)) == 8:
        told = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            return file.tell(), told
        file.seek(told + told % 2, io.SEEK_CUR)
    return None


def _is_chunk(head: bytes, there: int) -> bool:
    """Tell whether 8 bytes begin a chunk that ends within the `there` bytes of the file."""
    return (
        len(head) == 8
        and head[:4].isascii()
        and head[:4].decode().isprintable()
        and (int.from_bytes(head[4:], "little") <= there - 8)
    )
