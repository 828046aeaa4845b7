"""Audio bytes to normalised waveforms, random crops, and span masks."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import soundfile
import torch

from selfdistill.config import RunConfig
from selfdistill.data.pipeline import InputPipeline, padded
from selfdistill.errors import BadSample
from selfdistill.masking import clone_keys, painted_spans, span_masks
from selfdistill.modalities.audio.encoder import frame_count, receptive_field
from selfdistill.modalities.audio.partial_reads import check_read_whole
from selfdistill.modalities.audio.resampling import resample
from selfdistill.modalities.audio.spectrogram import log_mel
from selfdistill.types import Batch, Masks

MAX_VALUES = 2**27
"""Values over all channels that are read of a clip, 2.3 hours at 16 kHz; the rest of a longer one
is never used. Headers may announce any length."""
EXTENSIONS = ("flac", "wav", "ogg", "opus", "mp3")
MIN_RATE, MAX_RATE = 1_000, 400_000
_UNKNOWN = 2**63 - 1
"""Frames that libsndfile tells of a FLAC whose length is not in its header."""


def shortest_clip(conv_layers: Sequence[Sequence[int]]) -> int:
    """Samples that give two frames, one to mask and one to see."""
    return receptive_field(conv_layers) + math.prod(layer[2] for layer in conv_layers)


def seconds(sample: Mapping[str, bytes]) -> float:
    """Length of a clip as its header says.

    Raises:
        BadSample: it is no audio, or the header does not say.
    """
    with _opened(sample) as file:
        return _frames(file) / file.samplerate


def told(error: Exception) -> str:
    """What an error of soundfile says, without the file, which shows as an address in memory."""
    return str(getattr(error, "error_string", error))


@contextmanager
def _opened(sample: Mapping[str, bytes]) -> Iterator[soundfile.SoundFile]:
    """A clip; ``BadSample`` where it cannot be opened, or be read in the block."""
    data = next(sample[e] for e in EXTENSIONS if e in sample)
    if not data:
        raise BadSample("empty audio")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            check_read_whole(data, file)
            yield file
    except RuntimeError as error:
        raise BadSample("undecodable audio", told(error)) from error


def _frames(file: soundfile.SoundFile) -> int:
    frames: int = file.frames
    if frames == _UNKNOWN:  # soundfile cannot read it to its end
        raise BadSample("FLAC without its length, as written to a pipe; write it to a file")
    return frames


class AudioPipeline(InputPipeline):
    """Examples are float32 [L] at ``input.sampling_rate``, one channel."""

    extensions = EXTENSIONS
    baseline_name = "mean and deviation of log-mel over time"

    def __init__(self, config: RunConfig) -> None:
        self.config = config.input
        self.mask = config.mask
        self.conv_layers = config.encoder.conv_layers
        self.longest = self.config.max_seconds
        rate = self.config.sampling_rate
        shortest = shortest_clip(self.conv_layers)
        self.min_samples = max(int(self.config.min_seconds * rate), shortest)
        self.max_samples = int(self.config.max_seconds * rate)

    def decode(self, sample: Mapping[str, bytes]) -> np.ndarray:
        """float32 [L], mixed down and resampled, not yet cropped or normalised."""
        with _opened(sample) as file:
            rate, most = file.samplerate, min(_frames(file), MAX_VALUES // file.channels)
            waveform = file.read(most, dtype="float32", always_2d=True)
        mono = waveform[:, 0] if waveform.shape[1] == 1 else waveform.mean(axis=1)
        if not MIN_RATE <= rate <= MAX_RATE:
            raise BadSample(f"sampling rate outside {MIN_RATE} to {MAX_RATE} Hz", f"{rate} Hz")
        if rate != self.config.sampling_rate:
            if not self.config.resample:
                raise BadSample(
                    "sampling rate differs from input.sampling_rate and input.resample is off",
                    f"{rate} Hz",
                )
            mono = resample(mono, rate, self.config.sampling_rate)
        if not np.isfinite(mono).all():
            raise BadSample("audio with NaN or infinity")
        if len(mono) < self.min_samples:
            rate = self.config.sampling_rate
            raise BadSample(
                "audio shorter than the feature encoder or input.min_seconds needs",
                f"{len(mono) / rate:.4g} seconds, at least {self.min_samples / rate:.4g} needed",
            )
        return mono.astype(np.float32, copy=False)

    def augment(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        start = int(rng.integers(max(len(raw) - self.max_samples, 0) + 1))
        return self._normalise(raw[start : start + self.max_samples])

    def plain(self, raw: np.ndarray) -> np.ndarray:
        return self._normalise(raw[: self.max_samples])

    def is_cropped(self, raw: np.ndarray) -> bool:
        return len(raw) > self.max_samples

    def _normalise(self, waveform: np.ndarray) -> np.ndarray:
        if not self.config.normalize:
            return waveform
        # in one array of float64, because fresh memory costs more than the sums do; float32 would
        # overflow on clips of unbounded floats
        wide = waveform.astype(np.float64)
        mean = wide.mean()
        wide -= mean
        wide *= wide
        deviation = np.sqrt(wide.mean() + 1e-7)  # silence stays silence
        np.subtract(waveform, mean, out=wide, dtype=np.float64)
        return np.divide(wide, deviation, out=np.empty_like(waveform), casting="same_kind")

    def collate(
        self, examples: Sequence[np.ndarray], mask_keys: np.ndarray | None, keys: Sequence[str] = ()
    ) -> Batch:
        inputs, lengths = padded(examples)
        has_padding = bool((lengths < lengths.max()).any())
        masks = None if mask_keys is None else self._masks(lengths, mask_keys)
        return Batch(
            torch.from_numpy(inputs),
            torch.from_numpy(lengths) if has_padding else None,
            masks,
            keys=keys,
        )

    def _masks(self, lengths: np.ndarray, keys: np.ndarray) -> Masks:
        mask = self.mask
        frames = np.array([frame_count(int(n), self.conv_layers) for n in lengths])
        frames = frames.repeat(mask.num_masks)
        keys, total = clone_keys(keys, mask.num_masks), int(frames.max())
        if mask.kind == "painted":
            masked = painted_spans(
                keys,
                frames,
                total,
                prob=mask.mask_prob,
                length=mask.mask_length,
                adjust=mask.mask_prob_adjust,
            )
        else:
            masked = span_masks(
                keys,
                frames,
                total,
                prob=mask.mask_prob,
                length=mask.mask_length,
                equal_counts=mask.equal_counts,
            )
        return Masks.from_bool(masked, np.arange(total) < frames[:, None])

    def baseline(self, example: np.ndarray) -> np.ndarray:
        """Mean and deviation over time of the log-mel spectrogram, [80]."""
        bands = log_mel(example, self.config.sampling_rate)
        return np.concatenate([bands.mean(axis=0), bands.std(axis=0)]).astype(np.float32)
