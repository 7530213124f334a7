"""What a training notes for its report, in ``OUTPUT_DIR/run.json``, beside Detectron2's files."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
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
    """One process that trained: a run that was resumed has several.

    Attributes:
        started: time of the start, ISO 8601 in UTC.
        command: words of the command line.
        first: iteration it began with; more than 0 if it resumed.
        environment: what it ran on, name -> value.
        ends: number of a stage (0: joint training) -> seconds since the start after its last
            iteration, for those that it brought to their end.
        ended: seconds since the start when training and the last evaluation were done, or an
            error came; None if the process was killed.
        complete: whether it reached the last iteration.
    """

    started: str
    command: list[str]
    first: int
    environment: dict[str, str]
    ends: dict[str, float] = field(default_factory=dict)  # a key in JSON is text
    ended: float | None = None
    complete: bool = False

    @property
    def seconds(self) -> float:
        """How long it ran, as far as it was noted."""
        return self.ended or max(self.ends.values(), default=0.0)


@dataclass
class RunRecord:
    """All sessions of a run.

    Attributes:
        config_file: the YAML it was started with; "" for none.
        config: the whole config, as YAML. config.yaml is rewritten by every evaluation.
        plan: rows of the four-step plan, column -> text; empty for joint training.
        metrics_start: size in bytes of metrics.json when the run began: what is before it is from
            a run that this one replaced.
        sessions: in order of time.
    """

    config_file: str
    config: str
    plan: list[dict[str, str]]
    metrics_start: int
    sessions: list[Session] = field(default_factory=list)

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

    def __init__(
        self, cfg: CfgNode, config_file: str = "", command: Sequence[str] | None = None
    ) -> None:
        """Prepare; nothing is written before training starts.

        Args:
            cfg: config of the run.
            config_file: the YAML it was started with; "" for none.
            command: words of the command line; those of this process if None.
        """
        self._cfg = cfg.clone()
        self._config_file = config_file
        self._command = list(sys.argv if command is None else command)
        self._begun = time.perf_counter()
        self._folder = Path(cfg.OUTPUT_DIR)
        self._record: RunRecord | None = None
        self._stages: Sequence[ScheduledStage] = ()

    def before_train(self) -> None:
        """Begin a record, or go on with that of the run that is resumed."""
        with optional_output(self._folder / RUN_FILE):
            hooks = registered_hooks(self.trainer)
            four_step = next((h for h in hooks if isinstance(h, FourStepHook)), None)
            self._stages = four_step.stages if four_step else ()
            record = self._load() or self._new()
            # A resumed run may go on beyond the stage that it was to stop after.
            record.config = self._cfg.dump()
            record.plan = four_step.plan if four_step else []
            self._session = Session(
                started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                command=self._command,
                first=self.trainer.start_iter,
                environment={**environment(), "device": self._cfg.MODEL.DEVICE},
            )
            record.sessions.append(self._session)
            self._record = record
            self._save()

    def _load(self) -> RunRecord | None:
        """Return the record of the run that is resumed; None if this is no such run."""
        try:
            return RunRecord.load(self._folder) if self.trainer.start_iter > 0 else None
        except UserError as error:
            logger.warning("%s; the report will lack the time before this", error)
            return None

    def _new(self) -> RunRecord:
        metrics = self._folder / "metrics.json"
        # What a run logged that is resumed without its record is its own.
        replaces = self.trainer.start_iter == 0 and metrics.is_file()
        file = self._config_file and os.path.abspath(self._config_file)
        return RunRecord(file, "", [], metrics.stat().st_size if replaces else 0)

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

    def _save(self) -> None:
        with optional_output(self._folder / RUN_FILE):
            if self._record is not None:
                self._record.save(self._folder)

    def _seconds(self) -> float:
        return round(time.perf_counter() - self._begun, 3)
