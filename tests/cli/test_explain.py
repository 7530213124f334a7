"""`frcnn explain`: boxes, weights, mistakes. What is on the page: tests/explain."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from frcnn_plugin.cli import explain
from frcnn_plugin.data import SHAPE_CLASSES
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.errors import UserError
from frcnn_plugin.explain import Subject
from tests.cli.conftest import frcnn
from tests.small_demo import DEMO, SMALL

CONFIG = ("--config-file", DEMO, *SMALL)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_voc(tmp_path_factory.mktemp("data") / "shapes", 2, 0, seed=4)


@pytest.fixture(scope="module")
def image(data: Path) -> Path:
    return data / "JPEGImages" / "000001.jpg"


@pytest.fixture(scope="module")
def xml(data: Path) -> Path:
    return data / "Annotations" / "000001.xml"


@pytest.fixture
def subjects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Subject]]:
    """What goes to the page, which is not drawn."""
    found: list[Subject] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(explain, "tune_process", lambda: None)
    monkeypatch.setattr(explain, "render", lambda subject, _: found.append(subject) or "page")
    yield found


def size_of(xml: Path) -> tuple[int, int]:
    size = ET.parse(xml).find("size")
    return int(size.findtext("width")), int(size.findtext("height"))


def test_boxes_of_text_and_xml_are_the_same(xml: Path, tmp_path: Path) -> None:
    size = size_of(xml)
    from_xml = explain.read_boxes(xml, size, SHAPE_CLASSES)
    assert len(from_xml) >= 2
    lines = [
        ",".join(map(str, a["bbox"])) + f", {SHAPE_CLASSES[a['category_id']]}\n" for a in from_xml
    ]
    (tmp_path / "boxes.txt").write_text("\n".join(lines))
    from_text = explain.read_boxes(tmp_path / "boxes.txt", size, SHAPE_CLASSES)
    plain = [{**a, "difficult": 0, "iscrowd": 0} for a in from_xml]
    assert from_text == plain


@pytest.mark.parametrize(
    "line, problem",
    [
        ("1,2,3,circle", r"line 1: '1,2,3,circle' is not x1,y1,x2,y2,class"),
        (
            "1,2,3,4,heart",
            r"line 1: 'heart' is none of the config's classes, circle, square, triangle: name",
        ),
        (
            "1,2,3000,4,circle",
            r"line 1: it leaves the image \(the image has \d+ x \d+ pixels\): give this",
        ),
        ("900,900,950,950,circle", r"line 1: it lies outside the image \(the image has"),
        ("5,5,5,9,circle", r"line 1: it has no width or height"),
        ("nan,5,9,9,circle", r"line 1: a coordinate is missing or not a finite number"),
    ],
)
def test_bad_lines(xml: Path, tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "boxes.txt"
    path.write_text(line)
    with pytest.raises(UserError, match=problem):
        explain.read_boxes(path, size_of(xml), SHAPE_CLASSES)


def test_boxes_of_another_image(xml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("000001", "other"):
        explain.read_boxes(xml, size_of(xml), SHAPE_CLASSES, name)
    assert capsys.readouterr().err == f"warning: --boxes {xml} names the image 000001.jpg\n"
    width, height = size_of(xml)
    with pytest.raises(
        UserError, match=rf"is for {width} x {height} pixels, but the image has {width + 1} x"
    ):
        explain.read_boxes(xml, (width + 1, height), SHAPE_CLASSES)


def test_weights_are_what_the_page_says(
    image: Path, xml: Path, subjects: list[Subject], weights: Path, tmp_path: Path
) -> None:
    model = build_model(setup_cfg(DEMO, SMALL))
    state = {f"backbone.{k}": v + 1 for k, v in model.backbone.state_dict().items()}
    torch.save({"model": state}, tmp_path / "backbone.pth")
    frcnn("explain", image, *CONFIG)
    frcnn("explain", image, *CONFIG, "--weights", tmp_path / "backbone.pth")
    frcnn("explain", image, *CONFIG, "--weights", weights, "--boxes", xml)
    assert [s.weights[0] for s in subjects] == ["random", "backbone", "detector"]
    assert [s.step is not None for s in subjects] == [False, False, True]
    bias = "backbone.conv1.conv1_1.bias"
    given = [state[bias], torch.load(weights, weights_only=True)["model"][bias]]
    for subject, expected in zip(subjects[1:], given, strict=True):
        assert torch.equal(subject.model.state_dict()[bias], expected)
    # Random weights are the same each time.
    frcnn("explain", image, *CONFIG)
    assert torch.equal(subjects[0].seen.logits, subjects[-1].seen.logits)
    assert (tmp_path / "explain.html").read_text() == "page"


def test_training_size_is_that_of_testing(image: Path, subjects: list[Subject]) -> None:
    frcnn("explain", image, *CONFIG, "INPUT.MIN_SIZE_TEST", "128", "INPUT.MIN_SIZE_TRAIN", "(64,)")
    assert min(subjects[0].seen.image.size) == 128


@pytest.mark.parametrize(
    "words, problem",
    [
        ((), "name one image (there are 0), or let --demo draw one"),
        (("IMAGE", "IMAGE"), "name one image (there are 2)"),
        (("--demo", "IMAGE"), "--demo makes its own image"),
        (("--demo", "--boxes", "XML"), "--demo makes its own image"),
        (("XML",), "cannot be read as an image"),
        (("IMAGE", "--output", "IMAGE"), "is read, too"),
        (("--demo", "--output", "a.png"), "--output a.png is to be an HTML page: name it a.html"),
        (("IMAGE", "--boxes", "none.txt", *CONFIG), "none.txt cannot be read (No such file"),
        (("IMAGE", "--config-file", "frcnn://fast_rcnn_vgg16_voc.yaml", *SMALL), "given its prop"),
        (("IMAGE", "--config-file", "frcnn://demo/vgg16_shapes_fpn.yaml", *SMALL), "NAME VGG16 or"),
    ],
)
def test_mistakes(
    fails: Callable[..., str], image: Path, xml: Path, subjects: list, words: tuple, problem: str
) -> None:
    places = {"IMAGE": image, "XML": xml}
    assert problem in fails("explain", *(places.get(word, word) for word in words))
    assert not subjects and not list(Path().glob("*.html"))


def test_demo_learns_its_picture(subjects: list[Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    for iterations in (1, 12):
        monkeypatch.setattr(explain, "_DEMO_ITERATIONS", iterations)
        frcnn("explain", "--demo", *SMALL)
    before, after = (sum(s.step.losses.values()) for s in subjects if s.step)
    assert after < before and not subjects[1].model.training
    assert subjects[1].weights == ("demo", {"weights": "", "iterations": 12})


def test_demo_leaves_nothing_after_a_mistake(
    fails: Callable[..., str], subjects: list[Subject], tmp_path: Path
) -> None:
    assert "there is no key MODEL.NO" in fails("explain", "--demo", "MODEL.NO", "3")
    assert not list(tmp_path.iterdir())


def test_names_that_only_a_coco_file_has(
    data: Path, xml: Path, image: Path, subjects: list[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And masks, which boxes lack."""
    mask = "frcnn://demo/vgg16_shapes_mask.yaml"
    entry = [{
        "name": "shapes_of_explain", "json": str(data / "COCO" / "trainval.json"),
        "images": str(data / "JPEGImages"),
    }]  # fmt: skip
    words = ("DATASETS.REGISTER", str(entry), "DATASETS.TRAIN", "('shapes_of_explain',)")
    frcnn("explain", image, "--boxes", xml, "--config-file", mask, *SMALL, *words)
    assert tuple(subjects[0].names) == SHAPE_CLASSES
    assert subjects[0].step and subjects[0].step.rois is not None
