"""Images and ground truth made of random numbers."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F


def make_batch(
    height: int, width: int, *, batch: int = 1, objects: int = 5, classes: int = 20, seed: int = 0
) -> list[dict[str, Any]]:
    """A batch as the host's mapper makes it, images in network size and original size alike.

    Args:
        height: pixels.
        width: pixels.
        batch: number of images.
        objects: ground-truth boxes per image.
        classes: number of classes they are of.
        seed: of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(batch):
        # Blobs rather than noise: neighbouring cells of a feature map are alike, as in photographs.
        size = (1, 3, max(2, height // 16), max(2, width // 16))
        coarse = torch.rand(size, generator=generator)
        image = F.interpolate(coarse, (height, width), mode="bilinear")[0] * 255
        sides = torch.rand((objects, 2), generator=generator) * 0.5 + 0.1
        corner = torch.rand((objects, 2), generator=generator) * (1 - sides)
        boxes = torch.cat((corner, corner + sides), 1) * torch.tensor([width, height] * 2)
        truth = Instances((height, width))
        truth.gt_boxes = Boxes(boxes)
        truth.gt_classes = torch.randint(0, classes, (objects,), generator=generator)
        made.append(
            {
                "image": image,
                "height": height,
                "width": width,
                "image_id": str(i),
                "file_name": f"{i}.jpg",
                "instances": truth,
            }
        )
    return made
