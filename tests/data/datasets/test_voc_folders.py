"""Which XML file, image and line of a list belong together, whatever they are called."""

import pytest

from frcnn_plugin.data.datasets.voc_folders import VOCFolders, choose
from frcnn_plugin.errors import UserError


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
    ("line", "xml", "found"),
    [
        ("a", "a.xml", "a"),
        ("a.jpg", "a.xml", "a"),
        ("a.xml", "a.xml", "a"),
        ("a.JPG", "a.XML", "a"),
        ("a.jpg", "a.jpg.xml", "a.jpg"),
        ("frame.001", "frame.001.xml", "frame.001"),
        ("/mnt/d/set/images/night/a.jpg", "night/a.xml", "night/a"),
        ("/mnt/d/set/images/a.jpg", "a.xml", "a"),
        ("./images/a.jpg", "a.xml", "a"),
        (r"D:\set\a.jpg", "a.xml", "a"),
        ("night/a", "a.xml", "night/a"),  # another image, which is missing
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_line_of_a_list(folders, tmp_path, line, xml, found, encoding):
    listing = tmp_path / "list.txt"
    listing.write_text(f"{line}\n\n", encoding=encoding)
    assert folders([xml], ["a.jpg"]).read_list(listing) == [found]


def test_a_list_without_xml_files_goes_by_the_images(folders, tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text("/mnt/images/b.jpg\n/mnt/images/a.jpg\n")
    assert folders([], ["a.jpg", "b.jpg"]).read_list(listing) == ["b", "a"]


def test_a_list_that_is_no_text(folders, tmp_path):
    (tmp_path / "list.txt").write_bytes(b"a\n\xe9\n")
    with pytest.raises(UserError, match=r"list\.txt: not readable as text in UTF-8"):
        folders(["a.xml"], ["a.jpg"]).read_list(tmp_path / "list.txt")


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


def test_shares_divide_the_whole():
    ids = [str(number) for number in range(30)]
    parts = [choose(ids, 0.7), choose(ids, 0.1, after=0.7), choose(ids, 0.2, after=0.7 + 0.1)]
    assert [len(part) for part in parts] == [21, 3, 6]
    assert set.union(*parts) == set(ids)
