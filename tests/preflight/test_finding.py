"""How findings read."""

from __future__ import annotations

from frcnn_plugin.preflight.finding import Finding, Subject, count, plural


def test_a_finding_is_one_line_with_the_fix() -> None:
    finding = Subject("disk").error("full", "Free some")
    assert finding.line() == "FAIL  disk         full. Free some"
    assert Subject("disk").warning("tight").line() == "warn  disk         tight"
    assert Subject("environment").ok("fine").line() == "ok    environment  fine"


def test_colour_is_around_the_marker_only() -> None:
    assert Subject("disk").ok("x").line(colour=True) == "\033[32mok  \033[0m  disk         x"
    assert Subject("disk").warning("x").line(colour=True).startswith("\033[33mwarn\033[0m  disk")
    assert Subject("disk").error("x").line(colour=True).startswith("\033[31mFAIL\033[0m  disk")


def test_further_lines_are_below_the_text() -> None:
    first, second = Subject("data").error("missing\nb.jpg").line().split("\n")
    assert second.index("b.jpg") == first.index("missing") + 2


def test_counts() -> None:
    findings: list[Finding] = [Subject("a").ok(""), Subject("a").warning(""), Subject("a").ok("")]
    assert count(findings) == {"ok": 2, "warning": 1, "error": 0}


def test_plural() -> None:
    assert [plural(n, "process") for n in (1, 2)] == ["1 process", "2 processes"]
    assert plural(1000, "image") == "1,000 images"
