"""Builds small VOC-format folders for tests."""

from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 100, 80
SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 30)).save(path)
    return path


def obj(
    name: str = "cat",
    box: tuple[object, object, object, object] = (11, 21, 50, 60),
    extra: str = "",
) -> str:
    """One <object>; the box as xmin, ymin, xmax, ymax, 1-based and inclusive."""
    tags = "".join(
        f"<{tag}>{value}</{tag}>"
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{extra}<bndbox>{tags}</bndbox></object>"


def add_image(
    root: Path,
    image_id: str,
    *objects: str,
    size: str = SIZE,
    suffix: str = ".jpg",
    split: str = "train",
    filename: str = "",
) -> None:
    """Add an image, its XML and its line in the image set."""
    write_image(root / "JPEGImages" / f"{image_id}{suffix}")
    xml = root / "Annotations" / f"{image_id}.xml"
    xml.parent.mkdir(parents=True, exist_ok=True)
    tag = f"<filename>{filename}</filename>" if filename else ""
    xml.write_text(f"<annotation>{tag}{size}{''.join(objects)}</annotation>")
    add_line(root, image_id, split)


def add_line(root: Path, line: str, split: str = "train") -> None:
    """Add a line to an image set."""
    image_set = root / "ImageSets" / "Main" / f"{split}.txt"
    image_set.parent.mkdir(parents=True, exist_ok=True)
    with image_set.open("a") as file:
        file.write(f"{line}\n")
