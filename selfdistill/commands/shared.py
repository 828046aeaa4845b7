"""What several commands have in common."""

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

MODEL = "a run, a checkpoint, a folder of transformers, or USER/NAME on the Hub"
MODALITY = "whose encoder, of a run over several modalities"
