"""One line of a preflight: what was looked at, in what state it is, what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]

# By level: the marker, and the code of its colour on a terminal.
_MARKERS: dict[Level, tuple[str, int]] = {
    "ok": ("ok  ", 32),
    "warning": ("warn", 33),
    "error": ("FAIL", 31),
}
_SUBJECT_WIDTH = 11  # of "environment", the longest


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        level: "ok"; "warning": the run works but may not do what is wanted; "error": it would fail,
            or its result would be worthless.
        subject: group of the check, such as "data" or "weights".
        text: what was found, without a full stop; a list of missing files takes several lines.
        fix: what to do, preferably an override to type; "" if nothing, or if `text` says it.
    """

    level: Level
    subject: str
    text: str
    fix: str = ""

    @property
    def sentence(self) -> str:
        """The text and the fix."""
        return f"{self.text}. {self.fix}" if self.fix else self.text

    def line(self, *, colour: bool = False) -> str:
        """Return what people read: marker (green, yellow or red on request), subject, sentence."""
        marker, code = _MARKERS[self.level]
        if colour:
            marker = f"\033[{code}m{marker}\033[0m"
        sentence = self.sentence.replace("\n", "\n" + " " * (_SUBJECT_WIDTH + 10))
        return f"{marker}  {self.subject:{_SUBJECT_WIDTH}}  {sentence}"


@dataclass(frozen=True)
class Subject:
    """Makes findings on a subject."""

    name: str

    def ok(self, text: str) -> Finding:
        """Say that all is well."""
        return Finding("ok", self.name, text)

    def warning(self, text: str, fix: str = "") -> Finding:
        """Say that the run works but may not do what is wanted."""
        return Finding("warning", self.name, text, fix)

    def error(self, text: str, fix: str = "") -> Finding:
        """Say that the run would fail, or that its result would be worthless."""
        return Finding("error", self.name, text, fix)


def count(findings: Iterable[Finding]) -> dict[Level, int]:
    """Count the findings of each level."""
    counted = Counter(finding.level for finding in findings)
    return {level: counted[level] for level in _MARKERS}


def plural(number: int, noun: str) -> str:
    """Return ``"1 process"``, ``"2 processes"``."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"
