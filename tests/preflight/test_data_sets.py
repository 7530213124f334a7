"""Data sets, their folders and images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from detectron2.utils.logger import _LOG_COUNTER
from PIL import Image

from frcnn_plugin import get_config_file
from frcnn_plugin.data import SHAPE_CLASSES, register_from_config_entries, register_voc
from frcnn_plugin.preflight import Finding, data_sets, planned_run, preflight_without_config
from frcnn_plugin.preflight.data_sets import _check_test_masks, check_data, evenly
from frcnn_plugin.preflight.environment import suggest_folder
from tests.data.datasets.voc_folder import add_image, obj
from tests.preflight.conftest import only

VOC = get_config_file("faster_rcnn_vgg16_voc_joint.yaml")


def register(name: str, dicts: list[dict[str, Any]], classes: list[str]) -> None:
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(thing_classes=classes)


def one_object(shapes: Path, **changes: Any) -> list[dict[str, Any]]:
    """An image of the demo with one object."""
    image = next(iter(sorted((shapes / "JPEGImages").iterdir())))
    width, height = Image.open(image).size
    entry = {"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, **changes}
    return [
        {
            "file_name": str(image), "image_id": "1", "width": width, "height": height,
            "annotations": [entry],
        }
    ]  # fmt: skip


def trained_on(name: str, classes: int = 1, test: str = "()") -> list[str]:
    """Overrides for training on a set alone."""
    number = ["MODEL.ROI_HEADS.NUM_CLASSES", str(classes)]
    return ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", test, *number]


def errors(findings: list[Finding]) -> list[Finding]:
    return [f for f in findings if f.level == "error"]


def test_demo_is_fine(plan) -> None:
    findings = list(check_data(plan()))
    assert {f.level for f in findings} == {"ok"}
    assert findings[0].text.startswith("shapes_trainval: 6 images (")
    assert "6 images read" in findings[1].text
    assert findings[2].text.startswith("shapes_test: 3 images (")


def test_a_set_is_read_once(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    get = DatasetCatalog.get
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: names.append(name) or get(name))
    run = plan()
    list(check_data(run))
    assert run.size("shapes_test") == 3
    assert names == ["shapes_trainval", "shapes_test"]


def test_background_counted_as_a_class(find) -> None:
    """Four where there are three and background, in both sets."""
    first, second = find("MODEL.ROI_HEADS.NUM_CLASSES", "4")
    assert "has 3 classes (circle, square, triangle)" in first.sentence
    assert "Type: MODEL.ROI_HEADS.NUM_CLASSES 3 (background is not counted)" in first.sentence
    assert "'shapes_test' has 3 classes" in second.sentence


def test_wrong_class_order(find) -> None:
    classes = list(reversed(SHAPE_CLASSES))
    register_voc("turned", "demo_shapes", "test", classes)
    message = only(find("DATASETS.TEST", "('turned',)"), "data")
    assert "class 0 is 'circle' in the one and 'triangle' in the other" in message


def test_shared_images(find, shapes: Path) -> None:
    main = shapes / "ImageSets" / "Main"
    ids = (main / "trainval.txt").read_text().split()
    with (main / "test.txt").open("a") as file:
        file.write(f"{ids[2]}\n")
    message = only(find(), "data", "warning")
    assert "1 of the 4 images of shapes_test are also in shapes_trainval" in message
    assert f"({ids[2]}.jpg)" in message


def test_copies_of_trained_images(find, shapes: Path) -> None:
    """Under another name, in another folder; a file of the same size and middle is none."""
    images, main = shapes / "JPEGImages", shapes / "ImageSets" / "Main"
    trained = images / f"{(main / 'trainval.txt').read_text().split()[2]}.jpg"
    content = trained.read_bytes()
    tested = (main / "test.txt").read_text().split()
    assert content[14:16] == b"\0\1"  # the width of a pixel
    for name, data in zip(tested, (content, content[:15] + b"\2" + content[16:]), strict=False):
        (images / f"{name}.jpg").write_bytes(data)
        annotations = shapes / "Annotations"
        shutil.copy(annotations / f"{trained.stem}.xml", annotations / f"{name}.xml")
    findings = [f for f in find() if "which is trained on" in f.text]
    message = only(findings, "data", "warning")
    assert "1 of the 3 images of shapes_test are also in shapes_trainval" in message
    assert f"({tested[0]}.jpg, there as {trained.name})" in message


@pytest.mark.parametrize("box", [(50, 20, 50, 20), (50, 20, 50, 60), (50, 20, 90, 20)])
def test_boxes_of_one_pixel(find, shapes: Path, box: tuple[int, ...]) -> None:
    """As xmin = xmax in VOC's files; a side of two pixels is an object."""
    ids = (shapes / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    for name in ids[:4]:
        file = shapes / "Annotations" / f"{name}.xml"
        more = obj("circle", box if name in ids[:2] else (50, 20, 51, 21))
        file.write_text(file.read_text().replace("</annotation>", f"{more}</annotation>"))
    message = only(find(), "data", "warning")
    assert "shapes_trainval: 2 of " in message
    assert "boxes have a side of one pixel or less" in message
    assert all(f"{shapes}/JPEGImages/{name}.jpg" in message for name in ids[:2])
    assert "Correct the annotations, or delete these objects" in message


def test_boxes_that_are_there_twice(find, shapes: Path) -> None:
    """The same place in another image, or of another class, is no repetition."""
    ids = (shapes / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    box = (50, 20, 90, 60)
    for name, classes in zip(ids, (["circle"], ["circle", "square"], ["circle"] * 3), strict=False):
        file = shapes / "Annotations" / f"{name}.xml"
        more = "".join(obj(kind, box) for kind in classes)
        file.write_text(file.read_text().replace("</annotation>", f"{more}</annotation>"))
    message = only(find(), "data", "warning")
    assert "shapes_trainval: 2 of " in message
    assert "boxes have the class and place of another in their image" in message
    assert f"{ids[2]}.jpg" in message and f"{ids[1]}.jpg" not in message


def test_bad_boxes_of_the_loader(find, shapes: Path) -> None:
    _LOG_COUNTER.clear()  # the loader warns once per process
    name = (shapes / "ImageSets" / "Main" / "trainval.txt").read_text().split()[0]
    (shapes / "Annotations" / f"{name}.xml").write_text(
        f"<annotation>{obj('circle', (50, 20, 40, 60))}{obj('circle', (1, 1, 20, 20))}</annotation>"
    )
    message = only(find(), "data", "warning")
    assert "1 of 20 boxes are dropped" in message and "it has no width or height" in message


def test_warnings_before_an_error_are_told(find, shapes: Path) -> None:
    """They are the reason: no box can be read, so there are no objects."""
    _LOG_COUNTER.clear()
    for file in (shapes / "Annotations").iterdir():
        file.write_text(f"<annotation>{obj('circle', (50, 20, 40, 60))}</annotation>")
    findings = [f for f in find("DATASETS.TEST", "()") if "shapes_trainval" in f.text]
    assert [f.level for f in findings] == ["warning", "error"]
    assert "6 of 6 boxes are dropped" in findings[0].text
    assert "no objects" in findings[1].text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [5, 5, 5, 9]}, "1 of 1 boxes have no area"),
        ({"bbox": [0, 0, 9, float("nan")]}, "1 of 1 boxes have no area"),
        ({"bbox": [0, 0, 9999, 9]}, "1 of 1 boxes have a part outside their image"),
        ({"bbox": [5, 5, 0, 2], "bbox_mode": BoxMode.XYWH_ABS}, "1 of 1 boxes have no area"),
    ],
)
def test_bad_boxes(find, shapes: Path, changes: dict[str, Any], message: str) -> None:
    register("theirs", one_object(shapes, **changes), ["circle"])
    sentence = only(find(*trained_on("theirs"))[1:], "data", "warning")
    assert message in sentence and ".jpg" in sentence and "delete these objects" in sentence


def test_category_ids_of_numpy(find, shapes: Path) -> None:
    register("theirs", one_object(shapes, category_id=np.int64(0)), ["circle"])
    assert errors(find(*trained_on("theirs"))) == []


def test_category_ids_that_count_background(find, shapes: Path) -> None:
    register("theirs", one_object(shapes, category_id=1), ["circle"])
    findings = errors(find(*trained_on("theirs")))
    assert "category_id outside 0 to 0 (such as 1)" in only(findings, "data")


def test_class_without_objects(find, shapes: Path) -> None:
    register("theirs", one_object(shapes), list(SHAPE_CLASSES))
    findings = find(*trained_on("theirs", 3))
    assert "no object of 2 classes (square, triangle)" in findings[1].sentence


def test_classes_that_differ_in_capitals(find, shapes: Path) -> None:
    register("theirs", one_object(shapes), ["circle", "Circle ", "CIRCLE", "circles"])
    sentence = only(
        [f for f in find(*trained_on("theirs", 4)) if "capitals" in f.text], "data", "warning"
    )
    assert "the classes circle, Circle , CIRCLE differ" in sentence
    fix = "rename: {'Circle ': 'circle', 'CIRCLE': 'circle'}; and list only 'circle' in its classes"
    assert fix in sentence


def test_truncated_image(find, shapes: Path) -> None:
    name = (shapes / "ImageSets" / "Main" / "test.txt").read_text().split()[0]
    image = shapes / "JPEGImages" / f"{name}.jpg"
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    message = only(find(), "data")
    assert "shapes_test: 1 of 3 images looked at are bad" in message
    assert f"{image} cannot be read as an image (image file is truncated" in message
    assert "download them again" in message and "frcnn doctor --all" in message


def test_all_images_are_read(find, plan, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = (shapes / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    image = shapes / "JPEGImages" / f"{names[3]}.jpg"
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    monkeypatch.setattr(data_sets, "_SAMPLE", 2)
    assert find() == []
    message = only(find(every_image=True), "data")
    assert "1 of 6 images" in message and names[3] in message and "--all" not in message


@pytest.mark.parametrize("harm", [Path.unlink, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("kind", ["root", "xml", "json", "python"])
def test_an_image_without_a_header(find, shapes: Path, kind: str, harm: Any) -> None:
    """It ends the run before it starts; with ON_BAD_IMAGE skip it is a warning."""
    root = shapes.parent / "own"
    for name in "abc":
        add_image(root, name, obj("cat"))
    files = [root / "JPEGImages" / f"{name}.jpg" for name in "abc"]
    entry: dict[str, Any] = {"name": "own", "root": str(root), "split": "train", "classes": ["cat"]}
    if kind == "xml":
        del entry["root"], entry["split"]
        entry |= {"xml": str(root / "Annotations"), "images": str(root / "JPEGImages")}
    if kind == "json":
        numbers = range(3)
        content = {
            "images": [{"id": i, "file_name": files[i].name} for i in numbers],
            "annotations": [
                {"id": i, "image_id": i, "bbox": [10, 20, 40, 40], "category_id": 1}
                for i in numbers
            ],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (root / "own.json").write_text(json.dumps(content))
        entry = {"name": "own", "json": str(root / "own.json"), "images": str(root / "JPEGImages")}
    if kind == "python":
        (one,) = one_object(shapes)
        one |= {"width": 100, "height": 80}
        dicts = [{**one, "file_name": str(file), "image_id": file.stem} for file in files]
        register("own", dicts, ["cat"])
    else:
        register_from_config_entries([entry])
    harm(files[1])
    for mode, level in (("stop", "error"), ("skip", "warning")):
        findings = find(*trained_on("own"), "DATALOADER.ON_BAD_IMAGE", mode)
        assert {f.level for f in findings if str(files[1]) in f.sentence} == {level}
        assert len(errors(findings)) == (mode == "stop")
        _LOG_COUNTER.clear()
    for file in files:
        file.unlink(missing_ok=True)
    (found,) = errors(find(*trained_on("own"), "DATALOADER.ON_BAD_IMAGE", "skip"))
    assert "3 of 3" in found.text or "none of its 3" in found.text


@pytest.mark.parametrize("which", ["TRAIN", "TEST"])
def test_an_image_that_resizing_leaves_nothing_of(find, shapes: Path, which: str) -> None:
    (one,) = one_object(shapes)
    file = shapes / "thin.png"
    Image.new("RGB", (2, 5000)).save(file)
    thin = {
        **one,
        "file_name": str(file),
        "image_id": "2",
        "width": 2,
        "height": 5000,
        "annotations": [],
    }
    register("thin", [one, thin], ["circle"])
    register("good", [one], ["circle"])
    names = {"TRAIN": "good", "TEST": "good", which: "thin"}
    opts = trained_on(names["TRAIN"], test=f"('{names['TEST']}',)")
    for mode, level in (("stop", "error"), ("skip", "warning")):
        findings = find(*opts, "DATALOADER.ON_BAD_IMAGE", mode)
        (found,) = [f for f in findings if str(file) in f.sentence]
        assert found.level == level
        assert "thin: 1 of 2 images are so narrow that INPUT.MIN_SIZE_*" in found.sentence
        assert f"{file}: 2 x 5000 pixels. Leave them out" in found.sentence
    wide = ["INPUT.MAX_SIZE_TRAIN", "5000", "INPUT.MAX_SIZE_TEST", "5000"]
    assert not [f for f in find(*opts, *wide) if str(file) in f.sentence]


def coco(folder: Path, images: int) -> None:
    """A COCO-format set whose images do not exist."""
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in range(images)
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "bbox": [0, 0, 9, 9], "category_id": 1, "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "images").mkdir()
    (folder / "cats.json").write_text(json.dumps(content))
    register_coco_instances("cats", {}, str(folder / "cats.json"), str(folder / "images"))


def test_missing_images_of_coco(find, shapes: Path, tmp_path: Path) -> None:
    coco(tmp_path, 7)
    message = only(errors(find(*trained_on("cats"))), "data")
    assert "none of its 7 images is in" in message and "2.jpg" in message


def test_missing_images_of_other_code(find, shapes: Path) -> None:
    (one,) = one_object(shapes)
    dicts = [{**one, "file_name": f"/data/{i}.jpg", "image_id": i} for i in range(7)]
    register("theirs", dicts, ["circle"])
    message = only(find(*trained_on("theirs"))[1:], "data")
    assert "theirs: 7 of 7 image files are missing:\n/data/0.jpg\n" in message
    assert "/data/4.jpg\nand 2 more. Copy them there, or correct image_root" in message


def test_large_json_files_are_left_alone(
    plan, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coco(tmp_path, 1)
    MetadataCatalog.get("cats").thing_classes = ["cat"]
    monkeypatch.setattr(planned_run, "_MOST_JSON_BYTES", 10)
    run = plan(*trained_on("cats"))
    assert "not loaded for this check (--all)" in list(check_data(run))[-1].text
    assert run.size("cats") == 0
    assert plan(*trained_on("cats"), every_image=True).is_quick("cats")


def test_damaged_json(find, shapes: Path, tmp_path: Path) -> None:
    coco(tmp_path, 1)
    MetadataCatalog.get("cats").thing_classes = ["cat"]  # as of Detectron2's own sets
    (tmp_path / "cats.json").write_text('{"images": [')
    findings = errors(find(*trained_on("cats")))
    assert "cats cannot be loaded (JSONDecodeError" in only(findings, "data")


# ---- folders -------------------------------------------------------------------------------


def voc2007(folder: Path) -> Path:
    for split in ("trainval", "test"):
        add_image(folder / "VOC2007", f"{split}1", obj("cat"), split=split)
    return folder


@pytest.mark.parametrize(
    ("there", "given", "wanted"),
    [
        ("VOCdevkit", "VOCdevkit/VOC2007", "VOCdevkit"),
        ("VOCdevkit", "VOCdevkit/VOC2007/JPEGImages", "VOCdevkit"),
        ("data/VOCdevkit", "", "data/VOCdevkit"),
        ("archive/VOCtrainval_06-Nov-2007/VOCdevkit", "archive", None),
    ],
)
def test_voc_path_one_level_off(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    find,
    there: str,
    given: str,
    wanted: str | None,
) -> None:
    voc2007(tmp_path / there)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / given))
    fix = f"export DETECTRON2_DATASETS={tmp_path / (wanted or there)}"
    findings = find("MODEL.ROI_HEADS.NUM_CLASSES", "20", config=VOC)
    first = next(f for f in findings if f.subject == "data")
    assert first.level == "error" and first.fix == f"It seems to be one level off: {fix}"
    assert first.text.startswith("voc07_trainval: missing") and "\n" not in first.text
    (without_config,) = [f for f in preflight_without_config() if f.subject == "data"]
    assert fix in without_config.fix


def test_root_of_a_users_set_one_level_off(find, shapes: Path, tmp_path: Path) -> None:
    register_voc("mine", tmp_path / "demo_shapes" / "JPEGImages", "test", SHAPE_CLASSES)
    message = only(find("DATASETS.TEST", "('mine',)"), "data")
    assert message.endswith(f"It seems to be one level off: root: {shapes}")


def test_no_suggestion_without_reason(shapes: Path, tmp_path: Path) -> None:
    register_voc("fine", shapes, "test", SHAPE_CLASSES)
    register_voc("nowhere", "/nothing/at/all", "no_such_split", SHAPE_CLASSES)
    assert suggest_folder("fine") == suggest_folder("nowhere") == suggest_folder("unknown") == ""


def test_two_sets_missing_for_one_reason(find) -> None:
    findings = find("MODEL.ROI_HEADS.NUM_CLASSES", "20", config=VOC)
    first, second = (f.text for f in findings if f.subject == "data")
    assert "VOCtrainval_06-Nov-2007.tar" in first and "make demo" in first
    assert second.endswith("VOC2007 (as above)")


@pytest.mark.parametrize("lists", ["ImageSets/Main", "imagesets/main"])
def test_what_is_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: str) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    main = tmp_path / "VOC2012" / lists
    main.mkdir(parents=True)
    (main / "trainval.txt").write_text("".join(f"{i}\n" for i in range(11540)))
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").touch()
    (good,) = (f for f in preflight_without_config() if f.subject == "data")
    assert "voc12_trainval (11540 images), instances_val2017.json" in good.text


def test_sample_is_even() -> None:
    assert evenly(range(10), 4) == [0, 3, 6, 9]
    assert evenly(range(3), 4) == [0, 1, 2]
    assert evenly([], 4) == []


def test_test_set_with_other_classes(find, shapes: Path) -> None:
    """With a map the class lists may differ, if each class of the test set has a counterpart."""
    register("trained", one_object(shapes), ["cat", "dog"])
    register("tested", one_object(shapes), ["feline"])
    words = trained_on("trained", 2, "('tested',)")
    assert "NUM_CLASSES is 2" in errors(find(*words))[0].text
    mapped = [*words, "DATASETS.CLASS_MAP", "[['cat', 'feline']]"]
    assert not [f for f in errors(find(*mapped)) if f.subject == "data"]


@pytest.mark.parametrize("removed", [0, 1, None])
@pytest.mark.parametrize("without", [{}, {"segmentation": []}])
@pytest.mark.parametrize("largest", [2**20, 10])
@pytest.mark.parametrize("detectron2s", [False, True])
def test_objects_of_a_test_set_without_masks(
    plan, shapes: Path, monkeypatch: pytest.MonkeyPatch, removed: int | None,
    without: dict[str, Any], largest: int, detectron2s: bool,
) -> None:  # fmt: skip
    """COCO's metric would end the run on the first one, after the training."""
    monkeypatch.setattr(planned_run, "_MOST_JSON_BYTES", largest)
    path = shapes / "COCO" / "test.json"
    content = json.loads(path.read_text())
    objects = content["annotations"]
    for entry in objects[:removed]:
        del entry["segmentation"]
        entry |= without
    path.write_text(json.dumps(content))
    name = "shapes_masks_test"
    run = plan(config=get_config_file("demo/vgg16_shapes_mask.yaml"))
    if detectron2s:
        name, known = "theirs", {"thing_classes": list(SHAPE_CLASSES)}
        register_coco_instances(name, known, str(path), str(shapes / "JPEGImages"))
    count = len(objects) if removed is None else removed
    found = [f.text for f in _check_test_masks(run, name)]
    text = f"{count} of {len(objects)} objects of {name} have no segmentation"
    assert [text in f for f in found] == [True] * bool(count)


def test_masks_of_a_test_set_are_checked_before_the_run(find, shapes: Path) -> None:
    path = shapes / "COCO" / "test.json"
    path.write_text(path.read_text().replace('"segmentation"', '"outline"'))
    message = only(find(config=get_config_file("demo/vgg16_shapes_mask.yaml")), "data")
    assert "objects of shapes_masks_test have no segmentation" in message
