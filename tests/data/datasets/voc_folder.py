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


def add(
    xml: Path,
    images: Path,
    name: str,
    *objects: str,
    size: str = "",
    suffix: str = ".jpg",
    filename: str = "",
) -> None:
    """Add an image and its XML; sub-folders in ``name`` are made in both folders."""
    write_image(images / f"{name}{suffix}")
    path = xml / f"{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    tag = f"<filename>{filename}</filename>" if filename else ""
    path.write_text(f"<annotation>{tag}{size}{''.join(objects)}</annotation>")


def add_image(
    root: Path,
    image_id: str,
    *objects: str,
    size: str = SIZE,
    split: str = "train",
    **more: str,
) -> None:
    """Add an image, its XML and its line in the image set, as VOC lays them out."""
    add(root / "Annotations", root / "JPEGImages", image_id, *objects, size=size, **more)
    add_line(root, image_id, split)


def add_line(root: Path, line: str, split: str = "train") -> None:
    """Add a line to an image set."""
    image_set = root / "ImageSets" / "Main" / f"{split}.txt"
    image_set.parent.mkdir(parents=True, exist_ok=True)
    with image_set.open("a") as file:
        file.write(f"{line}\n")
