"""The twelve sections: which numbers, pictures and tables of an image each one shows.

Numbers are those of `ForwardPass` and `TrainingStep`, pictures those of `frcnn visualize`. The
words are in en.yaml and zh.yaml, by the names that are used here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou

from ..data.proposals.files import Proposals
from ..errors import UserError
from ..evaluation.detections import judge_detections
from ..evaluation.ground_truth import GroundTruth
from ..four_step.stages import STAGES, ScheduledStage
from ..modeling import build_pooler
from ..visualization.drawings.anchors import Reason, draw_samples
from ..visualization.drawings.canvas import Canvas, Panel, view_around
from ..visualization.drawings.detections import contact_sheet, draw_detections
from ..visualization.drawings.maps import draw_maps, draw_pooled
from ..visualization.drawings.objects import Objects
from ..visualization.drawings.palette import OBJECT, VERMILION, ImageArray, Style, class_style
from ..visualization.drawings.proposals import draw_proposals
from ..visualization.drawings.roi_cells import pooled_cells
from ..visualization.measure import ForwardPass, TrainingStep
from ..visualization.pictures import (
    Pictures,
    anchor_sample,
    detections_of,
    funnel_of,
    layers_of,
    losses_of,
    objects_found,
    roi_sample,
)

_PAPER_CHANNELS = {"VGG16": 512, "ZF": 256}  # of the last map
_PAPER_MS = {"VGG16": (141, 10, 47), "ZF": (31, 3, 25)}  # table 5
_POOLINGS = {"ROIPool": "RoI pooling", "ROIAlignGrad": "RoIAlign", "ROIWarp": "RoI warping"}
_ROWS = 6  # of tables of examples
Table = list[list[Any]]
Values = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What the page is about."""

    model: Any  # the detector, in evaluation mode
    pictures: Pictures  # of its config
    record: dict[str, Any]  # the image in Detectron2's format; "annotations" if they are known
    seen: ForwardPass  # its way through the model
    step: TrainingStep | None  # what it would teach; None without annotations
    truth: tuple[GroundTruth, Objects]  # all objects; none without annotations
    trained: Objects  # those that train, as `step` counts them, then the others
    names: Sequence[str]  # of the classes
    settings: Values  # all keys of the config
    stages: Sequence[ScheduledStage]  # of four-step training; empty if it trains otherwise
    weights: tuple[str, Values]  # which sentence on the weights holds, and what it names
    seconds: Sequence[float]  # of the parts of the path

    def draw(self, mode: str, **options: Any) -> ImageArray:
        """Draw one of the modes of `Pictures` that need no weights."""
        self.pictures.options = replace(self.pictures.options, **options)
        return self.pictures.draw(mode, self.record)[0][1].pixels()

    def boxes(self) -> list[tuple[str, torch.Tensor]]:
        """Return name and box, (4,) network pixels, of two objects, or of the best proposals."""
        boxes, what = self.seen.proposals.proposal_boxes.tensor.cpu(), "proposal"
        if len(self.trained.names) > int(self.trained.ignored.sum()):
            boxes, what = self.seen.image.item["instances"].gt_boxes.tensor, "object"
        return [(f"{what} {k + 1}", box) for k, box in enumerate(boxes[:2])]


class Section(NamedTuple):
    """What the words of a section are filled with."""

    values: Values  # by name, for the sentences
    paragraphs: Sequence[str] = ("main",)
    figures: Sequence[tuple[str, ImageArray]] = ()  # name of the caption, picture
    tables: Sequence[tuple[str, Table]] = ()  # name of the headings, rows


def _four(numbers: Any) -> str:
    return ", ".join(f"{float(number):.2f}" for number in numbers)


def _image(x: Subject, _: Values) -> Section:
    seen, known = x.seen.image, x.truth[1]
    (rows, columns), (height, width) = seen.size, seen.bgr.shape[:2]
    mean, std = (
        ", ".join(f"{v:.10g}" for v in x.settings[f"MODEL.PIXEL_{k}"]) for k in ("MEAN", "STD")
    )
    values = {
        "width": width, "height": height, "rows": rows, "columns": columns, "mean": mean,
        "short": x.settings["INPUT.MIN_SIZE_TEST"], "most": x.settings["INPUT.MAX_SIZE_TEST"],
        "scale": float(1 / seen.scale[0]), "order": x.settings["INPUT.FORMAT"], "std": std,
        "objects": len(known.names), "ignored": int(known.ignored.sum()),
    }  # fmt: skip
    picture = x.draw("data") if x.step else Canvas(seen.bgr, seen.name).pixels()
    divided = ["std"] if any(v != 1 for v in x.settings["MODEL.PIXEL_STD"]) else []
    size, known_or_not = "main" if values["short"] else "as_is", "truth" if x.step else "no_truth"
    paragraphs = [size, "mean", *divided, known_or_not]
    return Section(values, paragraphs, [("image", picture)])


def _network(x: Subject, words: Values) -> Section:
    layers, state = x.seen.layers, {True: words["trains"], False: words["frozen"]}
    last = [layer for layer in layers if not layer.name.startswith("rpn")][-1]
    table = [
        [
            layer.name, f"{layer.kernel} x {layer.kernel}" if layer.kernel else "",
            layer.step or "", layer.channels, f"{layer.size[0]} x {layer.size[1]}", layer.stride,
            layer.sees, layer.parameters or "", state[layer.trains] if layer.parameters else "",
        ]
        for layer in layers
    ]  # fmt: skip
    head = [
        [
            name.removesuffix(".weight"), " x ".join(map(str, p.shape)), p.numel() + len(p),
            state[p.requires_grad],
        ]
        for name, p in x.model.named_parameters()
        if name.endswith("weight") and not name.startswith("backbone")
    ]  # fmt: skip
    total, own = (sum(p.numel() for p in m.parameters()) for m in (x.model, x.model.roi_heads))
    values = {
        "convolutions": sum(y.name.startswith("conv") for y in layers), "channels": last.channels,
        "rows": last.size[0], "columns": last.size[1], "stride": last.stride, "last": last.sees,
        "sees": layers[-1].sees, "parameters": total, "head": own,
    }  # fmt: skip
    return Section(values, ["main", "sees", "total"], [], [("layers", table), ("head", head)])


def _maps(x: Subject, _: Values) -> Section:
    shapes = ", ".join(f"{n} {' x '.join(map(str, m.shape))}" for n, m in x.seen.maps.items())
    sheet = contact_sheet([canvas.pixels() for _, canvas in layers_of(x.seen)], 1)
    return Section({"shapes": shapes, "drawn": 4}, ["main", "which"], [("maps", sheet)])


def _anchors(x: Subject, _: Values) -> Section:
    seen, step, (rows, columns, per_cell) = x.seen, x.step, x.seen.grid
    inside, total = seen.inside.view(-1, per_cell).sum(dim=0).tolist(), len(seen.anchors)
    table: Table = [[k, side, inside[k]] for k, side in enumerate(_sides(seen))]
    values = {
        "per_cell": per_cell, "rows": rows, "columns": columns, "total": total,
        "inside": sum(inside), "outside": total - sum(inside),
    }  # fmt: skip
    paragraphs, figures = ["main", "paper_counts"], [("cell", x.draw("anchors"))]
    if step:
        counts = torch.bincount(step.reasons.reason, minlength=len(Reason)).tolist()
        above, best, below, between, _ = counts
        low, high = step.reasons.thresholds
        p, n = (int((step.sampled == label).sum()) for label in (1, 0))
        values |= {
            "positive": above + best, "above": above, "best": best, "negative": below, "low": low,
            "between": between, "high": high, "p": p, "n": n, "drawn": p + n,
            "batch": x.model.proposal_generator.batch_size_per_image,
        }  # fmt: skip
        figures.append(("matches", x.draw("matches")))
        paragraphs += ["labels", "sample"]
    return Section(values, paragraphs, figures, [("anchors", table)])


def _sides(seen: ForwardPass) -> list[str]:
    boxes = seen.anchors.tensor[: seen.grid[2]]
    return [f"{w:.0f} x {h:.0f}" for w, h in (boxes[:, 2:] - boxes[:, :2]).tolist()]


def _rpn(x: Subject, words: Values) -> Section:
    seen, step, own = x.seen, x.step, x.model.proposal_generator
    rows, columns, per_cell = seen.grid
    best, chance = int(seen.logits.argmax()), seen.logits.sigmoid()
    values: Values = {"pairs": 2 * per_cell, "numbers": 4 * per_cell, "p": float(chance[best])}
    if seen.pairs is not None:
        cell, kind = divmod(best, per_cell)
        back, front = seen.pairs.flatten(1)[[kind, per_cell + kind], cell].tolist()
        values |= {"back": f"{back:.3f}", "front": f"{front:.3f}"}
        values["minus"] = values["front"] if front >= 0 else f"({values['front']})"
    maps = chance.view(rows, columns, per_cell).permute(2, 0, 1).cpu().numpy()
    panels = [(f"{s}: {m.max():.2f}", m) for s, m in zip(_sides(seen), maps, strict=True)]
    cell_size, rowfuls = seen.image.cell(own.anchor_generator.strides[0]), []
    for k in range(0, per_cell, 3):
        some = panels[k : k + 3]
        canvas = draw_maps(seen.image.bgr, some, [cell_size] * len(some), most=float(maps.max()))
        rowfuls.append(canvas.pixels())
    paragraphs, table = ["main" if "back" in values else "plain"], []
    if step:
        drawn, white = int((step.sampled >= 0).sum()), own.target_statistics.active
        values |= {
            "ncls": drawn, "nreg": rows * columns if own.loss_norm == "locations" else drawn,
            "lam": own.loss_weight.get("loss_rpn_loc", 1.0), "beta": own.smooth_l1_beta,
            "cls": step.losses["loss_rpn_cls"], "loc": step.losses["loss_rpn_loc"],
            "whitened": words["white"] if white else "",
        }  # fmt: skip
        paragraphs += ["loss", "norm", "t"]
        chosen, names = (step.sampled == 1).nonzero().squeeze(1)[:_ROWS], x.trained.names
        wanted = own.box2box_transform.get_deltas(seen.anchors.tensor[chosen], step.matched[chosen])
        for a, v in zip(chosen.tolist(), wanted, strict=True):
            owner, iou = int(step.reasons.best_object[a]), float(step.reasons.iou[a])
            what = f"{owner + 1} {names[owner]}"
            table.append([what, iou, float(chance[a]), _four(seen.deltas[a]), _four(v)])
    tables = [("deltas", table)] if table else []
    return Section(values, paragraphs, [("heat", contact_sheet(rowfuls, 1))], tables)


def _proposals(x: Subject, words: Values) -> Section:
    seen, own, (truth, objects) = x.seen, x.model.proposal_generator, x.truth
    left, image = list((seen.selection.counts or {}).values()), seen.image
    keys = ("total", "large", "pre", "left", "post")
    values = {
        **dict(zip(keys, left, strict=True)),
        "nms": own.nms_thresh,
        "least": own.min_size_image,
        "train": x.settings["MODEL.RPN.POST_NMS_TOPK_TRAIN"],
    }
    boxes, scores = seen.proposals.proposal_boxes.tensor, seen.proposals.objectness_logits.sigmoid()
    paragraphs = ["main", "train"]
    if (~truth.ignored).any():
        paragraphs.append("recall")
        for name, tensor in (("anchors", seen.anchors.tensor), ("post", boxes)):
            given: Any = [image.to_image(tensor.cpu())], [-np.arange(len(tensor), dtype=float)]
            found = Proposals([image.name], *given)
            counts = objects_found(found, truth, len(tensor))
            values["objects"], values[f"{name}50"], values[f"{name}70"] = counts
    shown = image.to_image(boxes[:20].cpu()), scores[:20].double().cpu().numpy()
    best = draw_proposals(image.bgr, *shown, f"proposals: {image.name}", objects).pixels()
    figures = [("funnel", funnel_of(seen, objects).pixels()), ("best", best)]
    rows: Table = [list(row) for row in zip(words["funnel"], left, strict=True)]
    return Section(values, paragraphs, figures, [("funnel", rows)])


def _pooling(x: Subject, _: Values) -> Section:
    seen, bins = x.seen, x.settings["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"]
    figures, values = [], {"bins": bins, "heads": type(x.model.roi_heads).__name__}
    name = x.settings["MODEL.ROI_HEADS.IN_FEATURES"][0]
    fmap, stride = seen.features[name].cpu(), x.model.backbone.output_shape()[name].stride
    for what, box in x.boxes():
        try:
            given = seen.image.to_image(box[None])[0].tolist()
            figures.append(("cells", x.draw("roi-cells", box=given)))
        except UserError:
            return Section(values, ["main", "differs"])
        pooled = [
            (kind, build_pooler(kind, bins, [1 / stride])([fmap], [Boxes(box[None])])[0])
            for kind in _POOLINGS
        ]
        channel = int(pooled[0][1].amax(dim=(1, 2)).argmax())
        maps = [(_POOLINGS[kind], values[channel].numpy()) for kind, values in pooled]
        canvas = draw_pooled(maps, f"{what}, channel {channel} of {name}")
        figures.append(("pooled", canvas.pixels()))
    return Section(values, ["main", "other"], figures)


def _head(x: Subject, words: Values) -> Section:
    seen, step, names = x.seen, x.step, [*x.names, words["background"]]
    if x.model.phase == "rpn":
        return Section({}, ["rpn_only"])
    agnostic, number = x.settings["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"], len(x.names)
    values: Values = {"classes": number, "boxes": 4 if agnostic else 4 * number}
    paragraphs, figures, tables = ["main"], [], []
    if seen.scores is None:
        paragraphs.append("cascade")
    elif len(seen.scores):
        paragraphs.append("table")
        chances, classes = seen.scores[:_ROWS].topk(min(3, number + 1), dim=1)
        objectness, rows = seen.proposals.objectness_logits.sigmoid(), []
        for k, (p, c) in enumerate(zip(chances.tolist(), classes.tolist(), strict=True)):
            listed = ", ".join(f"{names[j]} {v:.3f}" for v, j in zip(p, c, strict=True))
            rows.append([k + 1, float(objectness[k]), listed])
        tables.append(("scores", rows))
    if step and step.rois is not None:
        rois, classes = step.rois, step.rois.gt_classes.tolist()
        fg = [k for k, c in enumerate(classes) if c < number]
        back = [k for k in range(len(rois)) if k not in fg]
        own = {k: v for k, v in step.losses.items() if not k.startswith("loss_rpn")}
        values |= {
            "rois": len(rois), "fg": len(fg), "bg": len(back),
            "iou": x.settings["MODEL.ROI_HEADS.IOU_THRESHOLDS"][-1],
            "losses": ", ".join(f"{k} {v:.4f}" for k, v in own.items()),
        }  # fmt: skip
        samples = [
            anchor_sample(seen.image, seen.anchors, step.sampled),
            roi_sample(seen.image, rois, number),
        ]
        picture = draw_samples(seen.image.bgr, samples, x.trained, seen.image.name).pixels()
        figures += [("sampled", picture), ("losses", losses_of(seen, step, x.trained).pixels())]
        paragraphs.append("sample")
        if step.targets is not None and step.predicted is not None and step.chances is not None:
            paragraphs.append("t")
            own_layer = x.model.roi_heads.box_predictor
            times = ", ".join(f"{v:g}" for v in own_layer.box2box_transform.weights)
            white = own_layer.target_statistics.active
            values["scaled"] = words["white"] if white else words["times"].format(times)
            rows = [
                [
                    names[classes[k]], float(step.chances[k]),
                    *((_four(step.targets[k]), _four(step.predicted[k])) if k in fg else ("", "")),
                    *(f"{loss[k]:.4f}" for loss in step.roi_losses.values()),
                ]
                for k in [*fg[:_ROWS], *back[:2]]
            ]  # fmt: skip
            tables.append(("rois", rows))
    return Section(values, paragraphs, figures, tables)


def _detections(x: Subject, _: Values) -> Section:
    found, image, (truth, objects) = x.seen.detections, x.seen.image, x.truth
    if found is None:
        return Section({}, ["rpn_only"])
    found = found[found.scores.argsort(descending=True, stable=True)]
    least = 0.5
    if len(found) and found.scores[0] < least:  # random weights have no high scores
        least = float(found.scores[:10][-1])
    shown = detections_of(found[found.scores >= least])
    names, verdicts = [x.names[c] for c in shown.classes], None
    match = x.settings["TEST.VOC_MATCH"]
    heads = {k: x.settings[f"MODEL.ROI_HEADS.{k}_THRESH_TEST"] for k in ("SCORE", "NMS")}
    values = {
        "proposals": len(x.seen.proposals), "score": heads["SCORE"], "nms": heads["NMS"],
        "limit": x.settings["TEST.DETECTIONS_PER_IMAGE"], "found": len(found),
        "shown": f"{least:.3f}", "drawn": len(names),
    }  # fmt: skip
    paragraphs = ["several"]
    if x.seen.counts:
        paragraphs = ["main"]
        values["candidates"], values["kept"] = x.seen.counts
    if x.step:
        right, ignored, hit = verdicts = judge_detections(shown, truth, match)
        values |= {
            "right": int(right.sum()), "wrong": int((~right & ~ignored).sum()), "rule": match,
            "missed": int((~hit & ~truth.ignored).sum()),
        }  # fmt: skip
        paragraphs.append("verdict")
    known, title = objects if x.step else None, f"detections: {image.name}"
    canvas = draw_detections(image.bgr, shown.boxes, names, shown.scores, known, verdicts, title)
    return Section(values, paragraphs, [("detections", canvas.pixels())])


def _time(x: Subject, words: Values) -> Section:
    parts = len(x.seconds)  # an RPN alone has two
    here = [round(1000 * s, 1) for s in (*x.seconds, sum(x.seconds))]
    (rows, columns), zf = x.seen.image.size, x.settings["MODEL.BACKBONE.NAME"] == "ZF"
    paper = {name: [*ms[:parts], sum(ms[:parts])] for name, ms in _PAPER_MS.items()}
    labels = [*words["parts"][:parts], words["total"]]
    table: Table = [list(row) for row in zip(labels, here, *paper.values(), strict=True)]
    name = "ZF" if zf else "VGG16"
    values = {
        "rows": rows, "columns": columns, "total": here[-1], "reference": paper[name][-1],
        "device": str(x.model.device), "threads": torch.get_num_threads(), "name": name,
        "ratio": float(f"{here[-1] / paper[name][-1]:.2g}"), "theirs": _PAPER_CHANNELS[name],
        "channels": x.seen.features[x.model.proposal_generator.in_features[0]].shape[1],
        "short": min(rows, columns),
    }  # fmt: skip
    return Section(values, tables=[("time", table)])


def _training(x: Subject, words: Values) -> Section:
    iterations = sum(s.iters for s in x.stages) or x.settings["SOLVER.MAX_ITER"]
    scheme = words["four_step" if x.stages else "joint"].format(iterations=f"{iterations:,}")
    rows: Table = []
    own = {stage.number: stage for stage in x.stages}
    frozen = [f"conv{k + 1}" for k in range(x.settings["MODEL.BACKBONE.FREEZE_AT"])]
    for stage in STAGES:
        what = "rpn" if stage.phase == "rpn" else "fast_rcnn"
        run = own.get(stage.number)
        rows.append([
            stage.title, f"stage{1 + stage.number // 3}_{what}_train", ", ".join(stage.trains),
            ", ".join(frozen if "backbone" in stage.trains else ["backbone"]),
            f"{words['stage']} {stage.weights_of}" if stage.weights_of else words["initial"],
            f"{words['stage']} {stage.proposals_of}" if stage.proposals_of else "",
            run.iters if run else "", run.images if run else "",
        ])  # fmt: skip
    return Section({"scheme": scheme}, ["main", "joint"], [], [("stages", rows)])


def _after(x: Subject, words: Values) -> Section:
    seen, bgr = x.seen, x.seen.image.bgr
    k, ious = x.settings["MODEL.RFCN.GROUP_SIZE"], x.settings["MODEL.ROI_BOX_CASCADE_HEAD.IOUS"]
    values: Values = {
        "k": k, "channels": x.settings["MODEL.HYPER.CHANNELS"], "reach": "",
        "ious": ", ".join(f"{v:g}" for v in ious),
    }  # fmt: skip
    joined = [n for n in ("conv1", "conv3", "conv5") if n in seen.maps]
    values["joined"] = ", ".join(joined)
    if not (boxes := x.boxes()):
        return Section(values)
    x1, y1, x2, y2 = box = seen.image.to_image(boxes[0][1][None])[0]
    sides, margin = box[2:] - box[:2], 0.15 * (box[2:] - box[:2]).max()
    # Of two boxes of one size, side by side, with just this IoU.
    moved = [box + np.array([1, 0, 1, 0]) * sides[0] * (1 - v) / (1 + v) for v in ious]
    close = (x1 - margin, y1 - margin, x2 + margin, y2 + margin)
    last = [y for y in seen.layers if y.name.startswith("conv")][-1]
    pooler = build_pooler("ROIPool", 7, [1 / last.stride])
    rounded = pooled_cells(pooler, boxes[0][1], last.size).rounded
    rounded = rounded * np.array([*seen.image.cell(last.stride)] * 2)
    both = np.array([close, rounded])
    titles = {
        f"R-FCN: {k} x {k} bins, a map for each": close,
        "Mask R-CNN: RoIAlign's samples": (
            *(both[:, :2].min(axis=0) - margin / 4), *(both[:, 2:].max(axis=0) + margin / 4)
        ),
        "Cascade R-CNN: IoU with the yellow box": view_around(bgr, moved),
    }  # fmt: skip
    rfcn, mask, cascade = drawn = [
        Canvas(bgr, text, panels=[Panel(view=view)], ticks=False) for text, view in titles.items()
    ]
    for n in range(k * k):
        corner = box[:2] + sides / k * [n % k, n // k]
        part = np.concatenate([corner, corner + sides / k])
        rfcn.fill(part, class_style(n).colour, 0.45, text=str(n + 1))
    strides = {y.name[:5]: y.stride for y in seen.layers if y.name.startswith("conv")}
    means = [(n, seen.maps[n].float().mean(dim=0).cpu().numpy()) for n in joined]
    hyper = draw_maps(bgr, means, [seen.image.cell(strides[n]) for n in joined], "HyperNet: maps")
    mask.box(rounded, Style(VERMILION, 3.0, "--"))
    points = (np.indices((14, 14)).reshape(2, -1) + 0.5) / 14 * sides[:, None] + box[:2, None]
    mask.axes[0].plot(*points, ".", color=VERMILION, ms=6)
    styles = [class_style(n) for n in range(len(ious))]
    cascade.boxes(moved, styles, [f"IoU {iou:g}" for iou in ious])
    for canvas in drawn:
        canvas.box(box, OBJECT)
    if x.step and len(instances := seen.image.item["instances"]):
        best = pairwise_iou(instances.gt_boxes, seen.proposals.proposal_boxes.to("cpu")).amax(dim=0)
        reached = [f"{int((best >= iou).sum()):,}" for iou in ious]
        values["reach"] = words["reach"].format(", ".join(reached))
    every = {"rfcn": rfcn, "hyper": hyper, "mask": mask, "cascade": cascade}
    return Section(values, figures=[(name, canvas.pixels()) for name, canvas in every.items()])


SECTIONS: dict[str, Callable[[Subject, Values], Section]] = {
    "image": _image, "network": _network, "maps": _maps, "anchors": _anchors, "rpn": _rpn,
    "proposals": _proposals, "pooling": _pooling, "head": _head, "detections": _detections,
    "time": _time, "training": _training, "after": _after,
}  # fmt: skip
