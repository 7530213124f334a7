"""The page of a generated image: complete, the same in both languages, with the model's numbers."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from frcnn_plugin.cli import explain as command
from frcnn_plugin.explain import LANGUAGES, Subject, render
from frcnn_plugin.explain.page import shown
from frcnn_plugin.explain.sections import SECTIONS
from frcnn_plugin.visualization.inspection import InspectedImage
from tests.cli.conftest import frcnn
from tests.small_demo import DEMO, SMALL
from tests.test_docs import config, keys

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "frcnn_plugin" / "explain"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Subject, Path]]:
    """What the command puts on the page of a generated image, and where the image is."""
    subjects: list[Subject] = []

    def keep(subject: Subject, language: str) -> str:
        subjects.append(subject)
        return ""

    folder = tmp_path_factory.mktemp("explain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "render", keep)
        patch.setattr(command, "_DEMO_ITERATIONS", 1)
        patch.setattr(command, "tune_process", lambda: None)
        frcnn("explain", "--demo", "--output", folder / "page.html", *SMALL)
    yield subjects[0], folder


@pytest.fixture(scope="module")
def pages(made: tuple[Subject, Path]) -> dict[str, str]:
    return {language: render(made[0], language) for language in LANGUAGES}


def words(page: str) -> str:
    """What a reader sees of the page, without pictures."""
    body = page[page.index("<body>") :]
    return unescape(re.sub(r"<[^>]*>", " ", re.sub(r'(src|alt|href|id)="[^"]*"', "", body)))


def split(page: str) -> dict[str, str]:
    found = re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL)
    return {name: words("<body>" + text) for name, text in found}


def test_twelve_sections_in_the_order_of_the_method(pages: dict[str, str]) -> None:
    for page in pages.values():
        sections = split(page)
        assert list(sections) == list(SECTIONS) and len(sections) == 12
        for number, text in enumerate(sections.values(), start=1):
            assert text.strip().startswith(f"{number}. ")
            assert "{" not in text and "}" not in text


def test_numbers_are_the_same_in_both_languages(pages: dict[str, str]) -> None:
    english, chinese = (split(pages[language]) for language in LANGUAGES)
    for name, text in english.items():
        one, other = (Counter(re.findall(r"\d+(?:[.,]\d+)*", t)) for t in (text, chinese[name]))
        assert one == other, name
        assert sum(one.values()) > 5 or name in ("maps", "pooling")


def test_both_languages_have_the_same_names() -> None:
    def names(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: names(value) for key, value in node.items()}
        if isinstance(node, list):
            return len(node)
        return sorted(set(re.findall(r"{\w*}", node)))

    texts = [yaml.safe_load((FOLDER / f"{x}.yaml").read_text("utf-8")) for x in LANGUAGES]
    assert names(texts[0]) == names(texts[1])
    assert set(texts[0]["sections"]) == set(SECTIONS)
    assert not re.search(r"[a-z]{3,} [a-z]{3,} [a-z]{3,}", yaml.dump(texts[1], allow_unicode=True))


@pytest.mark.parametrize(
    "value, text",
    [
        (21546, "21,546"),
        (0.00151234, "0.001512"),
        (3.056e-9, "< 0.0001"),
        (0.0, "0"),
        (26941.3, "26,941"),
        (999.96, "1000"),
        ("a", "a"),
    ],
)
def test_numbers_are_written_as_people_do(value: Any, text: str) -> None:
    assert shown(value) == text


def test_keys_and_files_exist() -> None:
    facts = yaml.safe_load((FOLDER / "sections.yaml").read_text("utf-8"))
    assert list(facts) == list(SECTIONS)
    for entry in facts.values():
        assert set(entry["keys"]) <= keys(config())
        for source in entry["source"].split(", "):
            assert (ROOT / source).exists(), source


def test_page_needs_nothing_else(pages: dict[str, str]) -> None:
    for page in pages.values():
        assert len(page) < 5e6
        assert "<script" not in page and "http://" not in page and "https://" not in page
        sources = re.findall(r'<img src="([^"]*)"', page)
        assert len(sources) > 15
        for source in sources:
            kind, data = source.split(",", 1)
            assert kind == "data:image/jpeg;base64"
            pixels = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
            assert pixels.shape[1] <= 1400 and pixels.std() > 1


def test_numbers_are_the_model_s(made: tuple[Subject, Path], pages: dict[str, str]) -> None:
    subject, text = made[0], {k: re.sub(r"\s+", " ", v) for k, v in split(pages["en"]).items()}
    seen, step = subject.seen, subject.step
    assert step is not None and step.targets is not None
    rows, columns, per_cell = seen.grid
    total = rows * columns * per_cell
    assert f"{columns} x {rows} x 9 = {total:,} in all. Inside the image lie " in text["anchors"]
    assert f" {int(seen.inside.sum()):,}, which training uses" in text["anchors"]
    assert f"{int((step.sampled == 1).sum())} positive +" in text["anchors"]
    assert "sees 196 x 196 pixels; after the RPN's 3x3 convolution it is 228" in text["network"]
    assert f"L_reg, with N_cls = {int((step.sampled >= 0).sum())}," in text["rpn"]
    assert f"the class part is {step.losses['loss_rpn_cls']:.4g}," in text["rpn"]
    assert f"the best {len(seen.proposals)} of those are the proposals" in text["proposals"]
    assert f"loss_cls {step.losses['loss_cls']:.4f}" in text["head"]
    assert f"{len(step.rois)} RoIs train the head" in text["head"]
    assert f"are kept: {len(seen.detections)}." in text["detections"]
    assert "was trained for 1 iterations on this one picture" in pages["en"]


def test_without_objects_and_with_odd_names(made: tuple[Subject, Path]) -> None:
    subject, _ = made
    record = {k: v for k, v in subject.record.items() if k != "annotations"}
    image = InspectedImage(record, lambda _: subject.seen.image.item)
    truth, trained = subject.pictures.objects_of(image)
    assert not trained.names
    names = ["<b>1</b>", "<b>2</b>", "<b>3</b>"]
    alone = replace(subject, record=record, step=None, truth=truth, trained=trained, names=names)
    page = render(alone, "en")
    assert "&lt;b&gt;" in page and "<b>" not in page
    text = split(page)
    assert "No objects are known" in text["image"]
    assert "positive" not in text["anchors"] and "t*" not in text["rpn"].split("in the paper")[0]
    assert "RoIs train the head" not in text["head"] and "Right" not in text["detections"]


def test_demo_has_objects_to_show(made: tuple[Subject, Path]) -> None:
    subject, folder = made
    assert (
        len(subject.trained.names) >= 2 and (folder / "page_demo/Annotations/000001.xml").is_file()
    )
    assert DEMO.endswith(command._DEMO.removeprefix("frcnn://"))


def test_settings_are_rounded_and_can_be_typed(pages: dict[str, str]) -> None:
    assert "MODEL.RPN.SMOOTH_L1_BETA 0.111111<" in pages["en"]
    assert "MODEL.RPN.PRE_NMS_TOPK_TEST 6000<" in pages["en"]  # no comma, unlike the sentences
    assert "MODEL.RPN.MIN_SIZE_IMAGE 8.0<" in pages["en"]  # the command wants the point
    assert "0.1111111" not in pages["en"]


def test_pixels_that_are_not_divided_are_not_said_to_be(made: tuple[Subject, Path]) -> None:
    subject, text = made[0], {}
    for std in (1.0, 57.375):
        settings = {**subject.settings, "MODEL.PIXEL_STD": [std] * 3}
        text[std] = split(render(replace(subject, settings=settings), "en"))["image"]
    assert "divided by" not in text[1.0]
    assert "What is left is divided by 57.375, 57.375, 57.375." in text[57.375]


def test_formula_has_brackets_only_where_needed(made: tuple[Subject, Path]) -> None:
    subject = made[0]
    assert subject.seen.pairs is not None
    for front, term in ((2.5, "- 2.500)) ="), (-2.5, "- (-2.500))) =")):
        seen = replace(subject.seen, pairs=torch.full_like(subject.seen.pairs, front))
        assert term in split(render(replace(subject, seen=seen), "en"))["rpn"]


def test_whitened_targets_are_not_said_to_be_multiplied(made: tuple[Subject, Path]) -> None:
    subject = made[0]
    statistics = subject.model.roi_heads.box_predictor.target_statistics
    before = split(render(subject, "en"))["head"]
    assert "both multiplied by 10, 10, 5, 5 (zeros in v" in before
    statistics.std.fill_(0.5)
    after = split(render(subject, "en"))["head"]
    statistics.std.fill_(1.0)
    assert "both less the mean of the training set" in after and "multiplied" not in after


def test_times_are_compared_with_what_the_paper_ran(pages: dict[str, str]) -> None:
    text = re.sub(r"\s+", " ", split(pages["en"])["time"])
    assert "There the last map has 512 channels and the shorter side 600 pixels; here " in text
    ratio = re.search(r"this is (\S+) times", text)
    assert ratio and len(ratio[1].replace(".", "").strip("0,")) <= 2


def test_image_that_is_not_resized(made: tuple[Subject, Path]) -> None:
    settings = {**made[0].settings, "INPUT.MIN_SIZE_TEST": 0}
    text = split(render(replace(made[0], settings=settings), "en"))["image"]
    assert "the network sees it as it is" in text and "shorter side" not in text


def test_network_without_conv5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_DEMO_ITERATIONS", 1)
    monkeypatch.setattr(command, "tune_process", lambda: None)
    parts = ("PAPER_VGG.OUT_FEATURES", "RPN.IN_FEATURES", "ROI_HEADS.IN_FEATURES")
    words = [word for part in parts for word in (f"MODEL.{part}", "['conv4']")]
    frcnn("explain", "--demo", "--output", tmp_path / "page.html", *SMALL, *words)
    text = split((tmp_path / "page.html").read_text("utf-8"))["after"]
    assert "(conv1, conv3)" in text and "conv5" not in text
