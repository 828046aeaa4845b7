"""Feature encoders over the shared blocks: what pretraining makes and everybody else uses."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from selfdistill.config import RunConfig
from selfdistill.modalities.base import FeatureEncoder, load_modality
from selfdistill.models.block import Block, BlockOutput
from selfdistill.models.initialise import initialise_blocks_
from selfdistill.models.trunk import Trunk, run_blocks
from selfdistill.types import Tokens, after_prefix, take


class Backbone(nn.Module):
    """Encoder of one modality over the shared blocks."""

    def __init__(self, encoder: FeatureEncoder, trunk: Trunk) -> None:
        super().__init__()
        self.encoder = encoder
        self.trunk = trunk

    @property
    def depth(self) -> int:
        """Number of blocks, the modality's own and the shared ones."""
        return len(self.encoder.prenet) + len(self.trunk.blocks)

    def forward(self, tokens: Tokens, wanted: Tensor | None = None) -> Tensor:
        """Contextual vectors of located tokens [B, T, D].

        Args:
            tokens: as ``encoder.enter`` takes them.
            wanted: int64 [B, N], the only tokens that are wanted of these; the last block computes
                no others. None: all.

        Returns:
            [B, P + T, D], or [B, P + N, D].
        """
        entered, own = self.encoder.enter(tokens), len(self.encoder.prenet)
        places = None if wanted is None else after_prefix(wanted, self.encoder.num_prefix_tokens)
        x, ran = entered.x, 0
        for output in self.run(entered, places):
            x, ran = output.x, ran + 1
        if places is not None and ran == own:  # all shared blocks were left out
            x = take(x, places)
        return self.trunk.norm(x)

    def run(self, tokens: Tokens, places: Tensor | None = None) -> Iterator[BlockOutput]:
        """Each block's output, the modality's own and then the shared ones, on entered tokens
        [B, P + T, D]; the last one's at ``places`` [B, P + N] only."""
        own, where = self.encoder.prenet, tokens.places
        # blocks add to x; half precision would lose what is multiplied by a small layer scale
        x = tokens.x.to(torch.promote_types(tokens.x.dtype, torch.float32))
        if where is None:
            length = x.shape[1] - self.encoder.num_prefix_tokens
            where = torch.arange(length, device=x.device)[None]
        biases = self.encoder.attention_biases(where)
        several = len(biases) > 1
        mine, shared = (biases[: len(own)], biases[len(own) :]) if several else (biases, biases)
        for output in run_blocks(own, x, tokens.padding, mine):
            yield output
            x = output.x
        yield from self.trunk.layers(x, tokens.padding, shared, places)

    def layers(self, tokens: Tokens) -> Iterator[BlockOutput]:
        """Each shared block's output on unmasked local features, without prefix tokens."""
        prefix, own = self.encoder.num_prefix_tokens, len(self.encoder.prenet)
        outputs = self.run(self.encoder.contextualise(tokens))
        for number, (x, ffn) in enumerate(outputs):
            if number >= own:
                yield BlockOutput(x[:, prefix:], ffn[:, prefix:])

    @torch.no_grad()
    def hidden_states(
        self, inputs: Tensor, lengths: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Features to read out.

        Args:
            inputs, lengths: as in ``Batch``.

        Returns:
            One tensor [B, T, D] more than there are blocks, without prefix tokens (index 0 the
            blocks' input, i the output of block i), and the padding bool [B, T] or None.
        """
        prefix = self.encoder.num_prefix_tokens
        local = self.encoder.embed(inputs, lengths)
        tokens = self.encoder.contextualise(local)
        states = [tokens.x, *(output.x for output in self.run(tokens))]
        return [x[:, prefix:] for x in states], local.padding


class Backbones(nn.Module):
    """The encoders of all modalities of a run over one trunk.

    Args:
        encoders: by the modalities' short names.
        trunk: shared.
    """

    def __init__(self, encoders: Mapping[str, FeatureEncoder], trunk: Trunk) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.trunk = trunk

    def encoder(self, name: str) -> FeatureEncoder:
        """That of one modality."""
        encoder = self.encoders[name]
        assert isinstance(encoder, FeatureEncoder)
        return encoder

    def __getitem__(self, name: str) -> Backbone:
        """The backbone of one modality; its parameters are the ones here."""
        return Backbone(self.encoder(name), self.trunk)


def build_backbones(config: RunConfig) -> Backbones:
    """The backbones of a run, with fresh weights drawn from torch's global generator."""
    encoders = {name: _build_encoder(part) for name, part in config.parts().items()}
    return Backbones(encoders, Trunk(config.model))


def untrained_backbones(config: RunConfig) -> Backbones:
    """The backbones of a run as its seed makes them before the first step, of all its modalities:
    what each of them draws depends on those before it."""
    # weights are drawn on the CPU; left to itself, torch would wake every GPU of the machine
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return build_backbones(config)


def build_backbone(config: RunConfig) -> Backbone:
    """The backbone of a run over one modality, with fresh weights."""
    (name,) = config.parts()
    return build_backbones(config)[name]


def _build_encoder(config: RunConfig) -> FeatureEncoder:
    encoder = load_modality(config.modality).build_encoder(config)
    encoder.prenet.extend(Block(config.model) for _ in range(config.encoder.prenet_depth))
    initialise_blocks_(encoder.prenet, config.model)
    return encoder
