"""The probes that are run on one labelled set and one source of features."""

from collections.abc import Mapping
from dataclasses import dataclass

from selfdistill.probes.classify import Probes, Score
from selfdistill.probes.features import Features


@dataclass(frozen=True)
class Panel:
    """Which probes, and their settings.

    Attributes:
        seed: of all chance.
        linear: whether there is a linear probe.
        few_shot_labels: of each class; 0: no few-shot probe.
        few_shot_draws: of these.
        neighbours: the numbers of the nearest-neighbour probes by the probes' names.
        every_layer: also test the layers that are not chosen.
    """

    seed: int
    linear: bool
    few_shot_labels: int
    few_shot_draws: int
    neighbours: Mapping[str, int]
    every_layer: bool = False

    def __call__(self, train: Features, test: Features) -> dict[str, Score]:
        """The scores by probe: ``linear``, ``few_shot``, and the names of ``neighbours``."""
        probes = Probes(train, test, self.seed, self.every_layer)
        found = {}
        if self.linear:
            found["linear"] = probes.linear()
        if self.few_shot_labels:
            found["few_shot"] = probes.few_shot(self.few_shot_labels, self.few_shot_draws)
        if self.neighbours:
            by_number = probes.nearest(sorted(set(self.neighbours.values())))
            found |= {name: by_number[k] for name, k in self.neighbours.items()}
        return found
