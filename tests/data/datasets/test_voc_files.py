import logging

import pytest
from detectron2.data import DatasetMapper
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.structures import BoxMode

from frcnn_plugin.data import VOC_CLASSES, load_voc_instances
from frcnn_plugin.errors import UserError

from .voc_folder import SIZE, add_image, add_line, obj, write_image

CLASSES = ("cat", "dog")


def test_boxes_are_continuous_and_dicts_complete(tmp_path):
    # Boxes are continuous: (xmin - 1, ymin - 1, xmax, ymax). A box over the whole 100x80 image.
    add_image(tmp_path, "000001", obj("dog", (1, 1, 100, 80)), obj("cat", (11, 21, 50, 60)))
    (item,) = load_voc_instances(tmp_path, "train", CLASSES, strict=True)
    assert item["image_id"] == "000001" and type(item["image_id"]) is str
    assert item["file_name"] == str(tmp_path / "JPEGImages" / "000001.jpg")
    assert (item["width"], item["height"]) == (100, 80)
    assert item["annotations"] == [
        {
            "category_id": 1, "bbox": [0.0, 0.0, 100.0, 80.0], "bbox_mode": BoxMode.XYXY_ABS,
            "difficult": 0, "iscrowd": 0,
        },
        {
            "category_id": 0, "bbox": [10.0, 20.0, 50.0, 60.0], "bbox_mode": BoxMode.XYXY_ABS,
            "difficult": 0, "iscrowd": 0,
        },
    ]  # fmt: skip


# As in VOC's person layout; the part comes before the object's own box.
PART = (
    "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax>"
    "</bndbox></part>"
)


@pytest.mark.parametrize(
    ("text", "size", "box"),
    [
        (obj("cat", (11.5, 21.25, "50.0", " 60.75 ")), "", [10.5, 20.25, 50.0, 60.75]),
        (obj("cat", extra=PART), SIZE, [10.0, 20.0, 50.0, 60.0]),
        (obj("cat", (5, 5, 5, 9)), SIZE, [4, 4, 5, 9]),  # one pixel wide
        (obj("cat", (1, 1, 100, 80)), SIZE, [0, 0, 100, 80]),  # touches all borders
        # Swapped, as some tools do: a wrong tag does not cost boxes.
        (
            obj("cat", (60, 10, 95, 70)),
            "<size><width>80</width><height>100</height></size>",
            [59.0, 9.0, 95.0, 70.0],
        ),
        ("", "<size><width>0</width><height>0</height></size>", None),
        ("", "<size/>", None),
        ("", "<size><width/></size>", None),
    ],
)
def test_objects_and_sizes_that_are_fine(tmp_path, text, size, box):
    add_image(tmp_path, "a", text, size=size)
    (item,) = load_voc_instances(tmp_path, "train", CLASSES, strict=True)
    assert (item["width"], item["height"]) == (100, 80)  # from the image, if need be
    assert [obj["bbox"] for obj in item["annotations"]] == ([] if box is None else [box])
    assert all(obj["difficult"] == 0 for obj in item["annotations"])


@pytest.mark.parametrize(
    ("text", "difficult"),
    [("1", 1), ("0", 0), ("True", 1), ("Unspecified", 0), ("", 0), (" 1 ", 1)],
)
def test_difficult_tag(tmp_path, text, difficult):
    add_image(tmp_path, "a", obj("cat", extra=f"<difficult>{text}</difficult>"))
    (item,) = load_voc_instances(tmp_path, "train", CLASSES)
    assert item["annotations"][0]["difficult"] == difficult
    assert item["annotations"][0]["iscrowd"] == difficult
    (item,) = load_voc_instances(tmp_path, "train", CLASSES, use_difficult=True)
    assert item["annotations"][0]["difficult"] == difficult
    assert item["annotations"][0]["iscrowd"] == 0


def test_training_leaves_difficult_objects_out(tmp_path):
    # Excluded by all originals (point 15 of docs/faithfulness.md). No code of ours is involved, so
    # it is tested through Detectron2's mapper and filter.
    difficult = "<difficult>1</difficult>"
    add_image(tmp_path, "a", obj("cat"), obj("dog", (1, 1, 30, 30), extra=difficult))
    add_image(tmp_path, "b", obj("dog", extra=difficult))
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")
    dicts = load_voc_instances(tmp_path, "train", CLASSES)
    assert mapper(dicts[0])["instances"].gt_classes.tolist() == [0]
    assert [d["image_id"] for d in filter_images_with_only_crowd_annotations(dicts)] == ["a"]
    dicts = load_voc_instances(tmp_path, "train", CLASSES, use_difficult=True)
    assert mapper(dicts[0])["instances"].gt_classes.tolist() == [0, 1]


def test_image_extensions_and_filename_tag(tmp_path):
    add_image(tmp_path, "a", suffix=".png")
    add_image(tmp_path, "b", suffix=".JPEG")
    add_image(tmp_path, "c", suffix=".png")
    write_image(tmp_path / "JPEGImages" / "c.jpg")
    add_image(tmp_path, "d", filename="frame_d.jpg")
    (tmp_path / "JPEGImages" / "d.jpg").rename(tmp_path / "JPEGImages" / "frame_d.jpg")
    add_image(tmp_path, "night/e")
    files = [item["file_name"] for item in load_voc_instances(tmp_path, "train", CLASSES)]
    names = ["a.png", "b.JPEG", "c.jpg", "frame_d.jpg", "night/e.jpg"]
    assert files == [str(tmp_path / "JPEGImages" / name) for name in names]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("000005 -1\n\n000007  1\n \n", ["000005", "000007"]),  # as in VOC's cat_trainval.txt
        ("img\nframe 1\nframe 2\n", ["img", "frame 1", "frame 2"]),
        ("000007.jpg\n", ["000007"]),
    ],
)
def test_image_ids(tmp_path, text, ids):
    for image_id in ids:
        add_image(tmp_path, image_id, split="all")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(text)
    found = load_voc_instances(tmp_path, "train", CLASSES)
    assert [item["image_id"] for item in found] == ids


def test_repeated_ids(tmp_path, caplog):
    for _ in range(2):
        add_image(tmp_path, "000005")
    add_image(tmp_path, "000007")
    found = load_voc_instances(tmp_path, "train", CLASSES)
    assert [item["image_id"] for item in found] == ["000005", "000007"]
    assert "train.txt: 1 image ids occur more than once (000005); each is taken" in caplog.text


def test_unknown_class_is_reported_with_file_and_number(tmp_path):
    add_image(tmp_path, "000122", obj("cat"), obj("Dog"))
    add_image(tmp_path, "000123", obj("Dog"), obj("cow"))
    with pytest.raises(UserError) as caught:
        load_voc_instances(tmp_path, "train", CLASSES)
    message = str(caught.value)
    assert message.startswith(
        "000122.xml: object 2 has class 'Dog'; known classes: cat, dog (names are case-sensitive)"
    )
    assert "Dog (2x), cow (1x)" in message


def test_object_without_a_name(tmp_path):
    add_image(tmp_path, "a", obj("  "))
    with pytest.raises(UserError, match=r"a\.xml: object 1 has no <name>"):
        load_voc_instances(tmp_path, "train", CLASSES)


BAD_BOXES = [
    ((120, 30, 50, 60), "it has no width or height", "xmin 120, ymin 30, xmax 50, ymax 60"),
    ((10, 61, 50, 60), "it has no width or height", "xmin 10, ymin 61, xmax 50, ymax 60"),
    ((10, 30, 160, 60), "it leaves the image", "xmin 10, ymin 30, xmax 160, ymax 60"),
    ((-4, 30, 50, 60), "it leaves the image", "xmin -4, ymin 30, xmax 50, ymax 60"),
    (("nan", 30, 50, 60), "not a finite number", "xmin nan, ymin 30, xmax 50, ymax 60"),
    (("", 30, 50, "inf"), "not a finite number", "xmin missing, ymin 30, xmax 50, ymax inf"),
]


@pytest.mark.parametrize(("box", "problem", "values"), BAD_BOXES)
def test_bad_box_strict(tmp_path, box, problem, values):
    add_image(tmp_path, "000123", obj("dog"), obj("cat", box))
    with pytest.raises(UserError) as caught:
        load_voc_instances(tmp_path, "train", CLASSES, strict=True)
    message = str(caught.value)
    assert message.startswith("000123.xml: object 2 'cat': ")
    assert problem in message and f"({values}; image 100x80)" in message


def test_bad_boxes_are_dropped_with_one_warning(tmp_path, caplog):
    add_image(tmp_path, "000001", obj("dog"), *(obj("cat", box) for box, _, _ in BAD_BOXES))
    add_image(tmp_path, "000002", "<object><name>cat</name></object>")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):  # loaded for the check, for training and for evaluation
            dicts = load_voc_instances(tmp_path, "train", CLASSES, name=f"set of {tmp_path}")
    # Two of the bad ones have a part inside.
    boxes = [[obj["bbox"] for obj in item["annotations"]] for item in dicts]
    assert boxes == [[[10, 20, 50, 60], [9, 29, 100, 60], [0, 29, 50, 60]], []]
    (record,) = caplog.records
    message = record.getMessage()
    assert f"set of {tmp_path}: 5 of 8 boxes are dropped: 000001.xml: object 2 'cat': " in message
    assert "; 2 of 8 boxes leave their image and are clipped: 000001.xml: object 4" in message
    assert message.count("000001.xml") == 5 and message.count(", ...") == 1


def test_one_pixel_of_overhang_is_clipped(tmp_path, caplog):
    # What a writer that counts from 0 produces at the left and top border.
    add_image(tmp_path, f"zero_{tmp_path.name}", obj("cat", (0, 0, 50, 60)))
    with caplog.at_level(logging.WARNING):
        (item,) = load_voc_instances(tmp_path, "train", CLASSES)
    assert item["annotations"][0]["bbox"] == [0.0, 0.0, 50.0, 60.0]
    assert "1 of 1 boxes leave their image and are clipped" in caplog.text
    assert "1 boxes have an xmin or ymin of 0, but VOC counts from 1: if these" in caplog.text
    with pytest.raises(UserError, match="it leaves the image"):
        load_voc_instances(tmp_path, "train", CLASSES, strict=True)


def test_sizes_are_those_of_the_images(tmp_path):
    for name in "ab":
        add_image(tmp_path, name, obj("cat"))
    write_image(tmp_path / "JPEGImages" / "b.jpg", (200, 160))
    expected = r"mine: 1 of 2 images are not of the size .*: b\.jpg is 200x160, its annotation says"
    with pytest.raises(UserError, match=expected):
        load_voc_instances(tmp_path, "train", CLASSES, name="mine")


def test_objects_in_other_elements_are_warned_of(tmp_path, caplog):
    add_image(tmp_path, "a", f"<objects>{obj('cat')}</objects>")
    load_voc_instances(tmp_path, "train", CLASSES, name=f"set of {tmp_path}")
    assert "1 XML files have objects inside other elements, which are not read" in caplog.text


def test_missing_xml_of_some_images(tmp_path):
    add_image(tmp_path, "a")
    write_image(tmp_path / "JPEGImages" / "b.jpg")
    add_line(tmp_path, "b")
    with pytest.raises(UserError, match=r"1 of 2 images have no annotation file: missing .*b\.xml"):
        load_voc_instances(tmp_path, "train", CLASSES)


def test_split_without_annotations(tmp_path, caplog):
    for image_id in "ab":
        write_image(tmp_path / "JPEGImages" / f"{image_id}.jpg")
        add_line(tmp_path, image_id, "test")
    dicts = load_voc_instances(tmp_path, "test", CLASSES)
    assert [item["annotations"] for item in dicts] == [[], []]
    assert dicts[0]["width"] == 100
    assert "no image has an annotation file" in caplog.text


def test_missing_images(tmp_path):
    for image_id in "abcde":
        add_image(tmp_path, image_id)
    for image_id in "abcde":
        (tmp_path / "JPEGImages" / f"{image_id}.jpg").unlink()
    expected = r"none of its 5 images is in .*JPEGImages \(a, b, c, \.\.\.\); looked for \.jpg"
    with pytest.raises(UserError, match=expected):
        load_voc_instances(tmp_path, "train", CLASSES)


def test_broken_xml_and_broken_image(tmp_path):
    add_image(tmp_path, "a", size="")
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.jpg cannot be read as an image"):
        load_voc_instances(tmp_path, "train", CLASSES)
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation><object></annotation>")
    with pytest.raises(UserError, match=r"a\.xml: not readable as XML \(mismatched tag"):
        load_voc_instances(tmp_path, "train", CLASSES)


def test_empty_image_set(tmp_path):
    write_image(tmp_path / "JPEGImages" / "a.jpg")
    add_line(tmp_path, "")
    assert load_voc_instances(tmp_path, "train", CLASSES) == []


def test_counts_are_logged(tmp_path, caplog):
    add_image(tmp_path, "a", obj("cat"), obj("dog", extra="<difficult>1</difficult>"))
    add_image(tmp_path, "b")
    with caplog.at_level(logging.INFO):
        load_voc_instances(tmp_path, "train", CLASSES, name="mine")
    assert "mine: 2 images (1 without objects), 2 objects, 1 of them difficult" in caplog.text


def test_voc_classes():
    assert len(VOC_CLASSES) == 20
    assert (VOC_CLASSES[0], VOC_CLASSES[6], VOC_CLASSES[19]) == ("aeroplane", "car", "tvmonitor")
