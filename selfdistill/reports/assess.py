"""What is judged of a run, and the verdict on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import Any

from selfdistill.config import DataConfig, GuardConfig
from selfdistill.health.bands import Band, bands
from selfdistill.health.figures import FIGURES, family_of
from selfdistill.health.verdict import Finding, Verdict, judge, judge_probes, verdict
from selfdistill.run_folder.files import section
from selfdistill.run_folder.record import Log, Record

_TOLERATED = 0.5
"""Share of data.max_bad_share, which stops a run, above which bad samples are worth a look."""


@dataclass(frozen=True)
class Group:
    """The figures of one modality, or of a run over several as a whole.

    Attributes:
        name: of the modality; empty: the whole run.
        log: its figures.
        bands: by name.
        findings: what is wrong.
    """

    name: str
    log: Log
    bands: Mapping[str, Band]
    findings: Sequence[Finding]

    def names(self) -> list[str]:
        """The figures, known ones first, each before those of its parts."""
        order = {key: number for number, key in enumerate(FIGURES)}

        def place(name: str) -> tuple[int, bool]:
            family, member = family_of(name)
            return order.get(family, len(order)), bool(member)

        return sorted(self.log.values, key=place)

    def families(self) -> list[list[str]]:
        """The same, those of several layers or parts together."""
        found: dict[tuple[str, bool], list[str]] = {}
        for name in self.names():
            family, member = family_of(name)
            found.setdefault((family, bool(member)), []).append(name)
        return list(found.values())

    def finding(self, key: str) -> Finding | None:
        return next((finding for finding in self.findings if finding.key == key), None)


def groups(record: Record) -> list[Group]:
    """The figures of a run with their bands; the modalities first, then the whole run."""
    parts = record.parts()
    found = []
    for name, log in record.logs().items():
        part = parts[name] if name else next(iter(parts.values()))
        guard = guard_of(part)
        its_bands = bands(log.steps, log.values, guard, _bad_per_step(part))
        findings = judge(log.steps, log.values, its_bands, guard)
        found.append(Group(name, log, its_bands, findings))
    return found


def guard_of(part: Mapping[str, Any]) -> GuardConfig:
    """The guard's settings in a plain config; what an older version lacks has its default."""
    known = {field.name for field in fields(GuardConfig)}
    given = section(part, "guard").items()
    return GuardConfig(**{k: v for k, v in given if k in known and type(v) in (int, float)})


def _bad_per_step(part: Mapping[str, Any]) -> float:
    data = section(part, "data")
    batch = section(part, "train").get("batch_size")
    share = data.get("max_bad_share", DataConfig.max_bad_share)
    if data.get("batch_length") or type(batch) is not int or type(share) not in (int, float):
        return inf  # it is not known how many were read
    return _TOLERATED * share * batch


def assess(record: Record, found: Sequence[Group]) -> Verdict:
    """The verdict on a run: on its figures and on its last evaluation."""
    several = len(record.parts()) > 1
    findings: dict[str, Finding] = {}
    for group in found:
        for finding in group.findings:
            prefix = f"{group.name}: " if several and group.name else ""
            # "too early" is said once, and not of each modality
            text = finding.text if finding.status == "early" else prefix + finding.text
            findings.setdefault(text, Finding(finding.status, text, finding.advice, finding.key))
    if record.rows and not any(band.stops for group in found for band in group.bands.values()):
        text = "none of the figures that show a collapse was logged"
        findings[text] = Finding("early", text, "An older version wrote this run.")
    for modality, part in record.parts().items():
        step = section(record.result, modality).get("step")  # an older version wrote none
        judged = (step if isinstance(step, int) else record.step) > guard_of(part).after_steps
        for number, (task, table) in enumerate(record.tasks(modality).items()):
            for finding in judge_probes(task, table, number == 0, judged):
                findings[finding.text] = finding
    return verdict(list(findings.values()))
