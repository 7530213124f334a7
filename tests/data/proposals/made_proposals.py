"""Proposals of three images, and their data set."""

from frcnn_plugin.data.proposals.files import save_proposals

IDS = ["000005", "000007", "000009"]
BOXES = [[[0, 0, 500, 375], [10.5, 20, 30, 40]], [], [[1, 2, 3, 4]]]
LOGITS = [[1.5, -2], [], [0]]


def dicts(ids=IDS, width=500, height=375):
    return [{"image_id": i, "width": width, "height": height, "file_name": i} for i in ids]


def save(path, ids=IDS, boxes=BOXES, logits=LOGITS):
    save_proposals(path, ids, boxes, logits)
    return path
