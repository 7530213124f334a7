"""Detect in a photograph with an exported detector: python export_example.py MODEL.onnx PHOTO.jpg.

Needs onnxruntime, NumPy and Pillow, and OpenCV if the detector's images were resized by it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, photo = sys.argv[1:3]
about = json.loads(Path(f"{model}.json").read_text(encoding="utf-8"))
how = about["preprocessing"]
image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
original = np.array(image.size[::-1], dtype=np.float32)  # height, width
scale = how["short_side"] / min(image.size)
if how["resize"] == "pillow":  # sides are rounded after both limits
    sides = [how["short_side"] if side == min(image.size) else side * scale for side in image.size]
    shrink = min(1, how["longest_side"] / max(sides))
    image = image.resize([int(side * shrink + 0.5) for side in sides], Image.Resampling.BILINEAR)
pixels = np.asarray(image, dtype=np.float32)
if how["resize"] == "opencv":  # the longer side is limited if it is too long after rounding
    import cv2

    if round(scale * max(image.size)) > how["longest_side"]:
        scale = how["longest_side"] / max(image.size)
    pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
if how["channel_order"] == "BGR":
    pixels = pixels[:, :, ::-1]

session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
inputs = {"image": np.ascontiguousarray(pixels.transpose(2, 0, 1)), "original_size": original}
boxes, scores, classes = session.run(["boxes", "scores", "classes"], inputs)
for box, score, label in zip(boxes, scores, classes, strict=True):
    if score >= 0.5:
        print(about["classes"][label], f"{score:.4f}", *(f"{side:.2f}" for side in box))
