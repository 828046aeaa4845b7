"""Where everything lies in the folder of a run, for who writes it and for who only reads it."""

import re

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
LEFT_OUT = "left_out.jsonl"
EVALUATION = "eval.json"
LOCK = "lock"
TENSORBOARD = "tensorboard"
PICTURES = "pictures"
DRAWN = "drawn.json"
"""Beside the pictures of a modality: the step after which all of them were drawn."""

CHECKPOINTS = "checkpoints"
CHECKPOINT = re.compile(r"step-(\d{8,})")
"""The name of a checkpoint's folder in ``CHECKPOINTS``."""
MANIFEST = "manifest.json"
"""In a checkpoint that is complete."""


def checkpoint_name(step: int) -> str:
    """As ``CHECKPOINT`` reads it."""
    return f"step-{step:08d}"
