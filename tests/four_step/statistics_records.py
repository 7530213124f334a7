"""Images with objects for statistics of box targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import BoxMode


def record(
    objects: list[tuple[list[float], int]],
    proposals: list[list[float]] | None = None,
    size: tuple[int, int] = (100, 200),
    **more: Any,
) -> dict[str, Any]:
    """One image of ``size`` (height, width) with (box, class) objects."""
    ret: dict[str, Any] = {
        "file_name": "a.jpg",
        "image_id": "a",
        "height": size[0],
        "width": size[1],
        "annotations": [
            {
                "bbox": [float(x) for x in b],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": c,
                "iscrowd": 0,
            }
            for b, c in objects
        ],
    }
    if proposals is not None:
        ret["proposal_boxes"] = np.array(proposals, dtype=np.float32).reshape(-1, 4)
        ret["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    return {**ret, **more}


def close(tensor: torch.Tensor, expected: Any, atol: float = 1e-5) -> bool:
    return torch.allclose(tensor, torch.tensor(expected, dtype=tensor.dtype), atol=atol)
