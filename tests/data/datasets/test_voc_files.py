"""Which XML file, image and line of a list belong together, and the dicts that they make."""

import logging

import pytest
from detectron2.data import DatasetMapper
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.structures import BoxMode

from frcnn_plugin.data import VOC_CLASSES, load_voc_instances
from frcnn_plugin.data.datasets.voc_files import VOCFolders, divide
from frcnn_plugin.errors import UserError

from .voc_folder import SIZE, add_image, add_line, obj, write_image

CLASSES = ("cat", "dog")


# ---- which files there are, and what belongs together -------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """Makes empty files, and says what is in their folders."""

    def make(xml, images):
        for folder, names in (("xml", xml), ("images", images)):
            (tmp_path / folder).mkdir(exist_ok=True)
            for name in names:
                file = tmp_path / folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("<annotation/>")
        return VOCFolders(tmp_path / "xml", tmp_path / "images")

    return make


@pytest.mark.parametrize(
    ("image_id", "filename", "images", "found"),
    [
        ("a", "", ["a.png", "a.jpg", "b.jpg"], "a.jpg"),
        ("a", "a.png", ["a.png", "a.jpg"], "a.png"),
        ("a", "A.PNG", ["a.png", "a.jpg"], "a.png"),
        ("a", "b.jpg", ["a.JPG", "b.jpg"], "a.JPG"),  # its own name comes first
        ("a.jpg", "", ["a.jpg", "a.png"], "a.jpg"),  # of a.jpg.xml
        ("0", "photo one.jpg", ["photo one.jpg"], "photo one.jpg"),
        ("0", "photo", ["photo.webp"], "photo.webp"),
        ("0", "photo.JPG", ["photo.jpg"], "photo.jpg"),
        ("0", "photo.jpg", ["Photo.JPG"], "Photo.JPG"),
        ("0", r"C:\me\photo.jpg", ["photo.jpg"], "photo.jpg"),
        ("0", "/home/me/day/a.jpg", ["day/a.jpg", "night/a.jpg"], "day/a.jpg"),
        ("night/0", "a.jpg", ["day/a.jpg", "night/a.jpg"], "night/a.jpg"),
        ("night/0", "a.jpg", ["a.jpg", "night/a.jpg"], "night/a.jpg"),
        ("night/0", "a.jpg", ["a.jpg"], "a.jpg"),
        ("0", "a.jpg", ["day/a.jpg"], "day/a.jpg"),
        ("0", "a.jpg", ["day/a.jpg", "night/a.jpg"], None),  # nothing decides
        ("0", "../../b.jpg", ["a.jpg"], None),
        ("0", "", ["a.jpg"], None),
    ],
)
def test_the_image_of_an_xml_file(folders, tmp_path, image_id, filename, images, found):
    image = folders([], images).image(image_id, filename)
    assert image == (f"{tmp_path}/images/{found}" if found else None)


@pytest.mark.parametrize(
    ("text", "xml", "found"),
    [
        ("a\n\n", ["a.xml"], ["a"]),
        ("a.jpg", ["a.xml"], ["a"]),
        ("a.xml", ["a.xml"], ["a"]),
        ("a.JPG", ["a.XML"], ["a"]),
        ("a.jpg", ["a.jpg.xml"], ["a.jpg"]),
        ("frame.001", ["frame.001.xml"], ["frame.001"]),
        ("/mnt/d/set/images/night/a.jpg", ["night/a.xml"], ["night/a"]),
        ("/mnt/d/set/images/a.jpg", ["a.xml"], ["a"]),
        ("./images/a.jpg", ["a.xml"], ["a"]),
        (r"D:\set\a.jpg", ["a.xml"], ["a"]),
        ("night/a", ["a.xml"], ["night/a"]),  # another image, which is missing
        ("/mnt/b.jpg\n/mnt/a.jpg\n", [], ["b", "a"]),  # by the images
        ("5 -1\n\n7  1\n \n", ["5.xml", "7.xml"], ["5", "7"]),  # as in VOC's cat_trainval.txt
        ("img\nframe 1\nframe 2\n", [], ["img", "frame 1", "frame 2"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists(folders, tmp_path, text, xml, found, encoding):
    (tmp_path / "list.txt").write_text(text, encoding=encoding)
    assert folders(xml, ["a.jpg", "b.jpg"]).read_list(tmp_path / "list.txt") == found


def test_repeated_ids(folders, tmp_path, caplog):
    (tmp_path / "list.txt").write_text("5\n5.jpg\n7\n")
    assert folders([], []).read_list(tmp_path / "list.txt") == ["5", "7"]
    assert "list.txt: 1 image ids occur more than once (5); each is taken once" in caplog.text


def test_lists_that_are_no_text_or_missing(folders, tmp_path):
    (tmp_path / "list.txt").write_bytes(b"a\n\xe9\n")
    for name in ("list.txt", "nowhere.txt"):
        with pytest.raises(UserError, match=rf"{name}: not readable as text in UTF-8"):
            folders(["a.xml"], ["a.jpg"]).read_list(tmp_path / name)


def test_linked_and_hidden_folders(folders, tmp_path):
    folders(["real/b.xml", "real/.c.xml", ".git/d.xml"], [])
    (tmp_path / "xml" / "again").symlink_to(tmp_path / "xml" / "real")
    (tmp_path / "xml" / "round").symlink_to(tmp_path / "xml")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.xml").write_text("<annotation/>")
    (tmp_path / "xml" / "far").symlink_to(tmp_path / "elsewhere")
    # What two links lead to is taken once.
    assert folders([], []).ids == ["far/a", "real/b"]


def test_images_without_xml(folders, tmp_path):
    found = folders(["a.xml", "0.xml", "c.xml"], ["a.jpg", "photo.jpg", "b.jpg", "c.jpg", "c.png"])
    (tmp_path / "xml" / "0.xml").write_text("<annotation><filename>Photo</filename></annotation>")
    assert found.images_without_xml() == ["b.jpg", "c.png"]


def test_division():
    """SHA-256 of "b" starts with 3e, of "a" with ca, of "c" with 2e."""
    for ids in (["a", "b", "c"], ["c", "b", "a"]):
        assert divide(ids, {"x": 0.34, "y": 0.66}) == {"x": {"c"}, "y": {"a", "b"}}
        assert divide(ids, {"x": 0.67, "y": 0.33}) == {"x": {"c", "b"}, "y": {"a"}}
    ids = [str(number) for number in range(30)]
    parts = divide(ids, {"train": 0.7, "val": 0.1, "test": 1 - 0.7 - 0.1}).values()
    assert [len(part) for part in parts] == [21, 3, 6]
    assert set.union(*parts) == set(ids)


# ---- their content ------------------------------------------------------------------------------


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


def test_broken_image(tmp_path):
    add_image(tmp_path, "a", size="")
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.jpg cannot be read as an image"):
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
