"""Log-mel spectrogram: the raw baseline of the probes."""

import numpy as np

TOGETHER = 4096
"""Windows that are taken at once: those of an hour are gigabytes."""


def mel_filters(rate: int, bins: int, bands: int) -> np.ndarray:
    """Triangular filters [bins, bands] evenly spaced on the mel scale (HTK formula)."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)  # Hz
    hertz = np.linspace(0, rate / 2, bins)[:, None]
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(rising, falling), 0, None)


def log_mel(waveform: np.ndarray, rate: int, bands: int = 40) -> np.ndarray:
    """Log energies of windows of 25 ms every 10 ms.

    Args:
        waveform: float [L].
        rate: samples per second.

    Returns:
        float64 [frames, bands], at least one frame.
    """
    window, hop = rate // 40, rate // 100
    waveform = np.pad(waveform, (0, max(0, window - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(waveform, window)[::hop]
    size = max(512, 1 << (window - 1).bit_length())
    shape, filters = np.hanning(window), mel_filters(rate, size // 2 + 1, bands)
    found = []
    for first in range(0, len(frames), TOGETHER):
        power = np.abs(np.fft.rfft(frames[first : first + TOGETHER] * shape, n=size)) ** 2
        found.append(np.log(power @ filters + 1e-6))
    return np.concatenate(found)
