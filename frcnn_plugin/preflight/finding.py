"""One line of a preflight: what was looked at, how it is, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]

MARKERS: dict[Level, str] = {"ok": "ok", "warning": "warn", "error": "FAIL"}
_COLOURS: dict[Level, str] = {"ok": "\033[32m", "warning": "\033[33m", "error": "\033[31m"}
_PLAIN = "\033[0m"
_SUBJECT_WIDTH = 11  # of "environment", the longest


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        level: "ok"; "warning": the run works but may not do what is wanted; "error": it would fail,
            or its result would be worthless.
        subject: group of the check: "environment", "data", "weights", "proposals", "schedule",
            "output", "disk" or "memory".
        text: what was found, without full stop; a list of missing files takes several lines.
        fix: what to do, best an override to type; "" if there is nothing to do, or `text` says it.
    """

    level: Level
    subject: str
    text: str
    fix: str = ""

    @property
    def sentence(self) -> str:
        """Text and fix."""
        return f"{self.text}. {self.fix}" if self.fix else self.text

    def line(self, *, colour: bool = False) -> str:
        """Return it for people: marker, subject, sentence; further lines of the text are indented.

        Args:
            colour: green, yellow or red marker, for terminals.
        """
        marker = f"{MARKERS[self.level]:4}"
        if colour:
            marker = f"{_COLOURS[self.level]}{marker}{_PLAIN}"
        sentence = self.sentence.replace("\n", "\n" + " " * (_SUBJECT_WIDTH + 10))
        return f"{marker}  {self.subject:{_SUBJECT_WIDTH}}  {sentence}"


def ok(subject: str, text: str) -> Finding:
    """Say that all is well."""
    return Finding("ok", subject, text)


def warning(subject: str, text: str, fix: str = "") -> Finding:
    """Say that the run works but may not do what is wanted."""
    return Finding("warning", subject, text, fix)


def error(subject: str, text: str, fix: str = "") -> Finding:
    """Say that the run would fail, or its result be worthless."""
    return Finding("error", subject, text, fix)


def count(findings: Iterable[Finding]) -> dict[Level, int]:
    """Count the findings of each level."""
    counts: dict[Level, int] = {"ok": 0, "warning": 0, "error": 0}
    for finding in findings:
        counts[finding.level] += 1
    return counts


def plural(number: int, noun: str) -> str:
    """Return ``"1 process"``, ``"2 processes"``."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"
