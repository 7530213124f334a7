"""The head of the report: what was trained, on what, how far, how well."""

from __future__ import annotations

from dataclasses import dataclass

from .folder import RunFolder
from .steps import Timing, total_seconds


@dataclass(frozen=True)
class Headline:
    """The number that counts.

    Attributes:
        name: what it is, such as "AP50".
        value: in percent.
        of: what it is of.
    """

    name: str
    value: float
    of: str


def title_of(run: RunFolder) -> str:
    """Such as "Faster R-CNN, VGG16, in four steps"."""
    if not run.config:
        return f"Training in {run.path.name or run.path}"
    backbone = str(run.config.get("MODEL.BACKBONE.NAME", ""))
    if run.config.get("FOUR_STEP.ENABLED"):
        numbers = [step.number for step in run.steps]
        if numbers == [1, 2, 3, 4]:
            return f"Faster R-CNN, {backbone}, in four steps"
        words = " to ".join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1])))
        return f"Faster R-CNN, {backbone}, step {words} of 4"
    kind = {"rpn": "Region proposal network", "fast_rcnn": "Fast R-CNN"}
    phase = run.config.get("MODEL.PAPER_RCNN.PHASE")
    return f"{kind.get(str(phase), 'Faster R-CNN')}, {backbone}, trained jointly".replace(
        ", trained jointly", "" if phase in kind else ", trained jointly"
    )


def status_of(run: RunFolder) -> str:
    """How far the run came, as a sentence without a full stop."""
    if run.finished:
        return "finished"
    done = run.metrics.done
    if not done:
        return "nothing logged yet"
    end = f" of {run.steps[-1].end:,}" if run.steps else ""
    step = next((s for s in run.steps if s.first < done <= s.end and s.number), None)
    where = f"{done:,}{end} iterations" + (f", in step {step.number} of 4" if step else "")
    last = run.record.sessions[-1] if run.record and run.record.sessions else None
    if last is not None and last.ended is not None:
        return f"stopped by an error after {where}"
    return f"interrupted, or still running: {where}"


def headlines(run: RunFolder) -> list[Headline]:
    """Per test set the best that is known: AP50, else recall. From ``metrics.json``, else files."""
    found = []
    names = run.config.get("DATASETS.TEST") or []
    for name in names:
        # The set's name stands in the key where there are several.
        prefix = f"{name}/" if len(names) > 1 else ""
        headline = _from_metrics(run, prefix, name)
        if headline is not None:
            found.append(headline)
    if not found:
        found = [
            Headline("AP50", item.results["AP50"], item.dataset)
            for item in run.evaluations
            if "AP50" in item.results
        ]
    return found


def data_of(run: RunFolder) -> dict[str, str]:
    """Training and test sets, in words."""
    sizes = {item.dataset: item.num_images for item in run.evaluations}
    sizes |= {c.dataset: c.num_images for by_step in run.recalls.values() for c in by_step.values()}
    words = {}
    for what, key in (("trained on", "DATASETS.TRAIN"), ("tested on", "DATASETS.TEST")):
        names = run.config.get(key) or []
        parts = [f"{n} ({sizes[n]:,} images)" if n in sizes else str(n) for n in names]
        if run.config:
            words[what] = ", ".join(parts) or "nothing"
    return words


def duration_of(run: RunFolder, timings: list[Timing]) -> str:
    """Such as "3 min 57 s"; "" if not known."""
    seconds = total_seconds(timings, run.record)
    return "" if seconds is None else duration(seconds)


def eta_of(run: RunFolder) -> str:
    """Time to the end of training as the host estimated it last; "" if finished or not known."""
    eta = run.metrics.series("eta_seconds")
    return "" if run.finished or not eta else duration(eta[-1][1])


def duration(seconds: float) -> str:
    """Two units of time: "2 d 3 h", "1 h 5 min", "3 min 57 s", "6.2 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, small, small_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // small} {small_name}"
    return f"{whole} s"


def _from_metrics(run: RunFolder, prefix: str, name: str) -> Headline | None:
    results = run.metrics.results
    places = [("", "")] + [(f"stage{k}/", f", after step {k} of 4") for k in (4, 2)]
    for stage, words in places:
        value = results.get(f"{stage}{prefix}bbox/AP50")
        if value is not None:
            return Headline("AP50", value, name + words)
    for stage, words in [("", "")] + [(f"stage{k}/", f", after step {k} of 4") for k in (3, 1)]:
        start = f"{stage}{prefix}proposals/R@0.5@"
        counts = sorted(int(k.removeprefix(start)) for k in results if k.startswith(start))
        if counts:
            count = 300 if 300 in counts else counts[-1]
            return Headline(
                f"recall of {count} proposals at IoU .5", results[f"{start}{count}"], name + words
            )
    return None
