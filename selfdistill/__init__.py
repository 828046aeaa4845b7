"""Self-supervised pretraining by self-distillation (data2vec) for audio, images and text."""

__version__ = "0.1.0"
