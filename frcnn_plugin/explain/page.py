"""The page: sentences of a language, with the numbers of the sections put in."""

from __future__ import annotations

import base64
import warnings
from pathlib import Path
from typing import Any

import yaml

from ..report.page import fill
from ..visualization.drawings.canvas import encode, resize
from ..visualization.drawings.palette import ImageArray
from .sections import SECTIONS, Section, Subject

LANGUAGES = ("en", "zh")
_HERE = Path(__file__).parent
_WIDEST = 1400  # pixels of a picture


def render(subject: Subject, language: str) -> str:
    """Return the page as text; it refers to nothing outside itself.

    The numbers are the same in all `LANGUAGES`; words inside the pictures are always English.
    """
    text, facts = (
        yaml.safe_load((_HERE / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in (language, "sections")
    )
    sections = []
    with warnings.catch_warnings():
        # Class names in letters that Matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        for name, build in SECTIONS.items():
            filled = _filled(build(subject, text["words"]), text["sections"][name])
            settings = [(key, _setting(subject.settings[key])) for key in facts[name]["keys"]]
            source = facts[name]["source"]
            sections.append({"name": name, "settings": settings, "source": source, **filled})
    kind, values = subject.weights
    return fill(
        "explain/page.html", text=text, language=language, sections=sections, shown=shown,
        good=kind == "detector",
        title=text["page"]["title"].format(name=subject.seen.image.name),
        weights=text["weights"][kind].format(**values),
    )  # fmt: skip


def _filled(section: Section, text: dict[str, Any]) -> dict[str, Any]:
    values = {name: shown(value) for name, value in section.values.items()}
    return {
        "title": text["head"][0],
        "paper": text["head"][1],
        "paragraphs": [text[name].format(**values) for name in section.paragraphs],
        "tables": [(text["tables"][name], rows) for name, rows in section.tables],
        "figures": [
            (_address(picture), text["figures"][name].format(**values))
            for name, picture in section.figures
        ],
    }


def shown(value: Any) -> str:
    """Write a number as people read it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float) and 0 < value < 1e-4:
        return "< 0.0001"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def _setting(value: Any) -> Any:
    text = str(value)
    return f"{value:.6g}" if isinstance(value, float) and len(text) > 8 else text


def _address(picture: ImageArray) -> str:
    height, width = picture.shape[:2]
    if width > _WIDEST:
        picture = resize(picture, (_WIDEST, round(height * _WIDEST / width)))
    return "data:image/jpeg;base64," + base64.b64encode(encode(picture, ".jpg", 80)).decode()
