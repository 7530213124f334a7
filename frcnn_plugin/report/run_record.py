"""What a training leaves for its report beside the host's files: ``OUTPUT_DIR/run.json``.

A leaf, because training writes it and the report reads it.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..atomic_files import write_text
from ..errors import UserError

RUN_FILE = "run.json"


@dataclass
class Span:
    """Uninterrupted iterations of one step.

    Attributes:
        step: 1 to 4; 0 for joint training.
        first: number of its first iteration.
        begins: seconds since the session started, in front of the first iteration.
        ends: seconds behind the last iteration; None if the session ended before.
    """

    step: int
    first: int
    begins: float
    ends: float | None = None


@dataclass
class Session:
    """One process that trained: a run that was resumed has several.

    Attributes:
        started: time of the start, ISO 8601 in UTC.
        command: words of the command line.
        first: iteration it began with; more than 0 if it resumed.
        environment: what it ran on, name -> value.
        spans: what it trained.
        ended: seconds since the start when training and the last evaluation were done, or an
            error came; None if the process was killed.
        complete: whether it reached the last iteration.
    """

    started: str
    command: list[str]
    first: int
    environment: dict[str, str]
    spans: list[Span] = field(default_factory=list)
    ended: float | None = None
    complete: bool = False


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
        """Writes ``run.json``, whole or not at all."""
        path = Path(folder) / RUN_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(self), indent=1))

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> "RunRecord | None":
        """Reads ``run.json``; None if there is none.

        Raises:
            UserError: the file is damaged or something else.
        """
        path = Path(folder) / RUN_FILE
        if not path.is_file():
            return None
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            content["sessions"] = [
                Session(**{**entry, "spans": [Span(**span) for span in entry["spans"]]})
                for entry in content["sessions"]
            ]
            return RunRecord(**content)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is no record of a training ({error}); remove it") from error
