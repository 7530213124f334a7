"""Proposal files of detectors that train on given proposals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..data.proposals.checks import check_proposals
from ..errors import UserError
from .finding import Finding, error, ok
from .planned_run import PlannedRun

_SUBJECT = "proposals"


def check_proposal_files(run: PlannedRun) -> Iterator[Finding]:
    """Compare proposal files with their data sets."""
    # The host opens them with plain pickle, and says little if they are of another data set.
    cfg = run.cfg
    if not cfg.MODEL.LOAD_PROPOSALS:
        return
    yield from _check(run, "TRAIN", run.train, cfg.DATASETS.PROPOSAL_FILES_TRAIN)
    yield from _check(run, "TEST", run.test, cfg.DATASETS.PROPOSAL_FILES_TEST)


def _check(
    run: PlannedRun, which: str, names: Sequence[str], files: Sequence[str]
) -> Iterator[Finding]:
    if not names:
        return
    if len(names) != len(files):
        yield error(
            _SUBJECT,
            f"MODEL.LOAD_PROPOSALS is True, but DATASETS.{which} has {len(names)} data sets and "
            f"DATASETS.PROPOSAL_FILES_{which} {len(files)} files: give one file per data set",
        )
        return
    for name, file in zip(names, files, strict=True):
        try:
            proposals = check_proposals(file, run.load(name), name)
        except UserError as e:
            yield error(_SUBJECT, str(e))
            continue
        boxes = sum(len(logits) for logits in proposals.logits)
        yield ok(
            _SUBJECT,
            f"{file}: all {len(proposals.ids):,} images of {name}, "
            f"{boxes / max(1, len(proposals.ids)):.0f} boxes per image",
        )
