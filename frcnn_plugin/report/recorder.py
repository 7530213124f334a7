"""What a training notes for its report, in ``OUTPUT_DIR/run.json``, beside Detectron2's files."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from ..atomic_files import optional_output, reading_json, write_json
from ..errors import UserError
from ..four_step.hook import FourStepHook
from ..four_step.stages import ScheduledStage
from ..host import registered_hooks
from ..process import environment

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"


@dataclass
class Session:
    """One process that trained: a run that was resumed has several."""

    started: str  # time of the start, "2026-03-01 10:20 UTC"
    command: list[str]  # words of the command line
    first: int  # iteration it began with; more than 0 if it resumed
    environment: dict[str, str]  # what it ran on, name -> value
    # Number of a stage (0: joint training), as text -> seconds from the start to its end.
    ends: dict[str, float] = field(default_factory=dict)
    ended: float | None = None  # seconds to the last evaluation or an error; None: it was killed
    complete: bool = False  # whether it reached the last iteration

    @property
    def seconds(self) -> float:
        """How long it ran, as far as it was noted."""
        return self.ended or max(self.ends.values(), default=0.0)


@dataclass
class RunRecord:
    """All sessions of a run."""

    config: str  # the whole config, as YAML; config.yaml is rewritten by every evaluation
    plan: list[dict[str, str]]  # rows of the four-step plan, column -> text; else empty
    sessions: list[Session]  # in order of time

    @property
    def complete(self) -> bool:
        """Whether training came to its end."""
        return bool(self.sessions) and self.sessions[-1].complete

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``run.json``, whole or not at all."""
        write_json(Path(folder) / RUN_FILE, asdict(self))

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> RunRecord | None:
        """Read ``run.json``; None if there is none.

        Raises:
            UserError: the file is damaged or something else.
        """
        path = Path(folder) / RUN_FILE
        if not path.is_file():
            return None
        with reading_json(path, "record of a training", "; remove it") as content:
            content["sessions"] = [Session(**entry) for entry in content["sessions"]]
            return RunRecord(**content)


class RunRecorder(HookBase):
    """Keeps ``run.json`` up to date: at the start, where stages end, and at the end.

    For the main process, and the last hook: the end then comes after the last evaluation. Whatever
    fails here is a warning: no training ends because its report would lack something.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Prepare; nothing is written before training starts."""
        self._config = cfg.dump()
        self._device = cfg.MODEL.DEVICE
        self._whole = cfg.MODEL.PAPER_RCNN.PHASE == "joint"
        self._folder = Path(cfg.OUTPUT_DIR)
        self._begun = time.perf_counter()
        self._record: RunRecord | None = None
        self._stages: Sequence[ScheduledStage] = ()

    def before_train(self) -> None:
        """Begin a record, or continue that of the run that is resumed."""
        with optional_output(self._folder / RUN_FILE):
            hooks = registered_hooks(self.trainer)
            four_step = next((h for h in hooks if isinstance(h, FourStepHook)), None)
            self._stages = four_step.stages if four_step else ()
            self._whole &= not self._stages or self._stages[-1].completes
            self._session = Session(
                started=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
                command=list(sys.argv),
                first=self.trainer.start_iter,
                environment={**environment(), "device": self._device},
            )
            self._record = RunRecord(
                config=self._config,
                plan=four_step.plan if four_step else [],
                sessions=[*self._sessions_before(), self._session],
            )
            self._save()

    def _sessions_before(self) -> list[Session]:
        """Return those of the run that is resumed."""
        try:
            record = RunRecord.load(self._folder) if self.trainer.start_iter > 0 else None
        except UserError as error:
            logger.warning("%s; the report will lack the time before this", error)
            return []
        return record.sessions if record else []

    def after_step(self) -> None:
        """Note where a stage ends."""
        after = self.trainer.iter + 1
        stage = next((s.number for s in self._stages if s.end == after), 0)
        if self._record is not None and (stage or after == self.trainer.max_iter):
            self._session.ends[str(stage)] = self._seconds()
            self._save()

    def after_train(self) -> None:
        """Note the end; also called after an error."""
        if self._record is not None:  # else the error came before anything began
            self._session.ended = self._seconds()
            self._session.complete = self.trainer.iter >= self.trainer.max_iter
            self._save()
            if self._session.complete:
                logger.info("%s", self._what_now())

    def _what_now(self) -> str:
        """Say which checkpoint is the one to use, and how."""
        folder, final = self._folder, self._folder / "model_final.pth"
        lines = [f"training is finished: {final}"]
        use = final
        with suppress(UserError), reading_json(folder / "model_best.json", "best result") as best:
            if (folder / "model_best.pth").is_file():
                use = folder / "model_best.pth"
                # Detectron2 counts from 0, but notes the last evaluation with the number of all.
                after = min(int(best["iteration"]) + 1, self.trainer.max_iter)
                words = best["metric"], float(best["value"]), after
                lines.append("  best: {} ({} {:.1f} after iteration {:,})".format(use, *words))
        lines.append(f"  report: frcnn report {shlex.quote(str(folder))}")
        if self._whole:
            lines.append(f"  predict: frcnn predict --weights {shlex.quote(str(use))} IMAGES")
        return "\n".join(lines)

    def _save(self) -> None:
        with optional_output(self._folder / RUN_FILE):
            if self._record is not None:
                self._record.save(self._folder)

    def _seconds(self) -> float:
        return round(time.perf_counter() - self._begun, 3)
