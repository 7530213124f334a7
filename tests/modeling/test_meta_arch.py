"""The whole detector, small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import (
    ROI_HEADS_REGISTRY,
    build_backbone,
    build_model,
    build_roi_heads,
)
from detectron2.solver import build_optimizer
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from frcnn_plugin.data.loading.mappers import with_resize
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import PaperRCNN
from frcnn_plugin.modeling.image_size import image_scale
from tests.conftest import make_input
from tests.modeling.parts import K, random_statistics

LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
BOXES = [[10.0, 12.0, 60.0, 70.0], [50.0, 20.0, 120.0, 90.0]]


@pytest.fixture(params=["VGG16", "ZF"])
def model(request, tiny_cfg) -> PaperRCNN:
    torch.manual_seed(0)
    return build_model(tiny_cfg("MODEL.BACKBONE.NAME", request.param))


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("one_by_one", [True, False])
def test_training_reaches_every_parameter(
    model: PaperRCNN, one_by_one: bool, statistics: bool
) -> None:
    """Two sizes in a batch, with and without target statistics."""
    if statistics:
        model.roi_heads.box_predictor.target_statistics.set(*random_statistics(K))
        model.proposal_generator.target_statistics.set(*random_statistics(1))
    model.one_by_one = one_by_one
    batch = [make_input(97, 131, BOXES), make_input(131, 160, BOXES[:1], seed=1)]
    with EventStorage():
        losses = model.train()(batch)
    assert set(losses) == LOSSES
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("phase", ["joint", "rpn", "fast_rcnn"])
@pytest.mark.parametrize(
    "frozen", [["proposal_generator"], ["roi_heads.box_head", "roi_heads.box_predictor.cls_score"]]
)
def test_frozen_parts_have_no_gradient(tiny_cfg, phase: str, frozen: list[str]) -> None:
    """Nor are they in the optimizer; what comes before them trains through them."""
    opts = ("MODEL.PAPER_RCNN.FREEZE", frozen, "MODEL.PAPER_RCNN.PHASE", phase)
    model = build_model(tiny_cfg(*opts)).train()
    batch = [make_input(97, 131, BOXES), make_input(131, 160, BOXES[:1], seed=1)]
    for x in batch:
        x["proposals"] = Instances(x["instances"].image_size)
        x["proposals"].proposal_boxes = x["instances"].gt_boxes
        x["proposals"].objectness_logits = torch.zeros(len(x["instances"]))
    with EventStorage():
        sum(model(batch).values()).backward()
    unused = {"rpn": "roi_heads.", "fast_rcnn": "proposal_generator."}.get(phase, "-")
    still = tuple(f"{name}." for name in frozen)
    optimizer = build_optimizer(tiny_cfg(), model)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert sum(name.startswith(still) for name, _ in model.named_parameters()) == 6
    for name, parameter in model.named_parameters():
        assert (id(parameter) in trained) == (not name.startswith(still))
        assert (parameter.grad is not None) == (not name.startswith((*still, unused))), name


@pytest.mark.parametrize("name", ["rpn", "", "roi_heads.box_heads"])
def test_a_part_to_freeze_that_does_not_exist(tiny_cfg, name: str) -> None:
    message = rf"FREEZE names '{name}', .* are backbone, .*, roi_heads.box_head, "
    with pytest.raises(UserError, match=message):
        build_model(tiny_cfg("MODEL.PAPER_RCNN.FREEZE", [name]))


def test_train_image_without_objects(model: PaperRCNN) -> None:
    with EventStorage():
        losses = model.train()([make_input(96, 128, []), make_input(96, 128, BOXES, seed=1)])
        alone = model([make_input(96, 128, [])])
    assert all(torch.isfinite(v) for v in losses.values())
    assert alone["loss_rpn_loc"].item() == alone["loss_box_reg"].item() == 0
    assert alone["loss_cls"].item() > 0


def test_one_by_one_is_the_mean_over_single_images(tiny_cfg) -> None:
    """Nothing is sampled here that could differ between the two runs: few anchors, few RoIs."""
    torch.manual_seed(0)
    model = build_model(
        tiny_cfg(
            *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100000),
            *("MODEL.RPN.POSITIVE_FRACTION", 1.0),
            *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 100000),
            *("MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0),
            *("MODEL.ROI_BOX_HEAD.DROPOUT", 0.0),
        )
    ).train()
    batch = [make_input(97, 131, BOXES), make_input(131, 160, BOXES[:1], seed=1)]
    with EventStorage():
        together = model(batch)
        single = [model([x]) for x in batch]
        model.one_by_one = False
        padded = model(batch)
    for name in LOSSES:
        mean = (single[0][name] + single[1][name]) / 2
        assert together[name].item() == pytest.approx(mean.item(), rel=1e-5), name
    # The negative control: a zero-padded batch is something else.
    assert abs(padded["loss_cls"].item() - together["loss_cls"].item()) > 1e-7


def test_inference_is_in_original_pixels(model: PaperRCNN) -> None:
    model.eval()
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    batch = [make_input(96, 128, [], scale=1.6), make_input(131, 97, [], seed=1)]
    with torch.no_grad():
        results = [x["instances"] for x in model(batch)]
    assert [r.image_size for r in results] == [(60, 80), (131, 97)]
    for r in results:
        assert 0 < len(r) <= 100
        height, width = r.image_size
        boxes = r.pred_boxes.tensor
        assert (boxes >= 0).all() and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
        assert r.pred_classes.max() < 3


def test_the_path_step_by_step_is_the_whole(model: PaperRCNN) -> None:
    """features, propose and detect give what the model gives before boxes leave its frame."""
    model.eval().roi_heads.box_predictor.test_score_thresh = 0.0
    batch = [make_input(96, 128, [], scale=1.6), make_input(131, 97, [], seed=1)]
    with torch.no_grad():
        whole = model.inference(batch, do_postprocess=False)
        images, features = model.features(batch)
        proposals = model.propose(images, features)
        parts = model.detect(images, features, proposals)
        explained = model.detect(images, features, proposals, with_features=True)
        given = model.detect(images, features, proposals, keep_all=True)
    for one, part, made, all_, proposed in zip(
        whole, parts, explained, given, proposals, strict=True
    ):
        assert len(one) > 0
        for name in ("pred_boxes", "scores", "pred_classes"):
            values = [getattr(x.get(name), "tensor", x.get(name)) for x in (one, part, made)]
            assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])
        assert len(all_) == len(proposed)
        row = made.proposal_index
        assert torch.equal(made.proposal_boxes.tensor, proposed.proposal_boxes.tensor[row])
        assert torch.equal(made.fc7, all_.fc7[row])
        assert torch.equal(made.scores_all, all_.scores_all[row])


def test_proposals_of_a_file_get_the_scale_of_their_image(model: PaperRCNN) -> None:
    """py-faster-rcnn's decoding needs it; a file knows sizes only."""
    predictor = model.eval().roi_heads.box_predictor
    predictor.test_score_thresh, predictor.decode_growth = 0.0, 1.0
    batch = [make_input(96, 128, [], scale=1.6)]
    with torch.no_grad():
        images, features = model.features(batch)
        (own,) = model.propose(images, features)
        (expected,) = model.detect(images, features, [own])
        plain = Instances((96, 128), **own.get_fields())
        (result,) = model.detect(images, features, [plain])
    assert torch.equal(result.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_inclusive_corners_leave_and_come_back(tiny_cfg) -> None:
    """Proposals of an RPN, written and read again by the mapper, are the RPN's to the pixel."""
    opts = ["INPUT.BOX_SCALING", "inclusive", "INPUT.MIN_SIZE_TEST", 96]
    opts += ["MODEL.PAPER_RCNN.PHASE", "rpn", "MODEL.RPN.MIN_SIZE_IMAGE", 1.0]
    torch.manual_seed(0)
    cfg = tiny_cfg(*opts)
    model = build_model(cfg).eval()
    batch = [make_input(96, 128, [], scale=1.6)]
    with torch.no_grad():
        (network,) = model.inference(batch, do_postprocess=False)
        written = model(batch)[0]["proposals"]
    assert len(written) > 20 and written.image_size == (60, 80)
    # By hand: (x1, y1, x2 - 1, y2 - 1) / 1.6, and one more.
    x1, y1, x2, y2 = network.proposal_boxes.tensor[0].tolist()
    expected = [x1 / 1.6, y1 / 1.6, (x2 - 1) / 1.6 + 1, (y2 - 1) / 1.6 + 1]
    assert written.proposal_boxes.tensor[0].tolist() == pytest.approx(expected)
    (resize,) = with_resize(cfg, [ResizeShortestEdge((96,), 1000, "choice")])
    transform = resize.get_transform(np.zeros((60, 80, 3), np.uint8))
    back = transform.apply_box(written.proposal_boxes.tensor.numpy())
    np.testing.assert_allclose(back, network.proposal_boxes.tensor.numpy(), atol=1e-4)
    with pytest.raises(UserError, match=r"BOX_SCALING is 'inclusive', .*DECODE_IN_IMAGE True"):
        build_model(tiny_cfg(*opts, "MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE", False))


def test_memory_layout_does_not_change_results(model: PaperRCNN) -> None:
    batch = [make_input(96, 128, [])]
    images = model.eval().preprocess_image(batch)
    assert images.tensor.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        last = model.backbone(images.tensor)["conv5"]
        model.channels_last = False
        first = model.backbone(model.preprocess_image(batch).tensor)["conv5"]
    assert torch.allclose(last, first, rtol=1e-5, atol=1e-4 * first.abs().max().item())


@pytest.mark.parametrize(
    ("size", "original", "scale"),
    [
        ((600, 800), (375, 500), 1.6),
        ((97, 131), (97, 131), 1.0),
        ((64, 96), None, 1.0),  # an input that does not say its original size
        # py-faster-rcnn: 600 / 333; the ratio of the longer sides is 901 / 500.
        ((600, 901), (333, 500), 600 / 333),
    ],
)
def test_sizes_know_the_factor_of_the_resize(
    model: PaperRCNN, size: tuple[int, int], original: tuple[int, int] | None, scale: float
) -> None:
    known = dict(zip(("height", "width"), original or (), strict=False))
    (found,) = model.preprocess_image([{"image": torch.zeros(3, *size), **known}]).image_sizes
    assert found == size and found.original == (original or size)
    assert image_scale(found) == pytest.approx(scale, rel=1e-12)


def test_preprocessing_subtracts_the_bgr_mean(model: PaperRCNN) -> None:
    images = model.preprocess_image([{"image": torch.zeros(3, 2, 2)}])
    assert images.tensor[0, :, 0, 0].tolist() == pytest.approx([-102.9801, -115.9465, -122.7717])


def test_no_gradient_through_proposals(model: PaperRCNN) -> None:
    """Approximate joint training: the head's losses must not move the RPN."""
    with EventStorage():
        losses = model.train()([make_input(96, 128, BOXES)])
    (losses["loss_cls"] + losses["loss_box_reg"]).backward()
    assert all(p.grad is None for p in model.proposal_generator.rpn_head.parameters())


def test_two_seeded_runs_are_identical(tiny_cfg) -> None:
    def run() -> list[float]:
        torch.manual_seed(7)
        model = build_model(tiny_cfg()).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
        values = []
        with EventStorage():
            for iteration in range(5):
                loss = sum(model([make_input(96, 128, BOXES, seed=iteration)]).values())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                values.append(loss.item())
        return values

    assert run() == run()


def conv_dtypes(model: PaperRCNN, batch) -> set[torch.dtype]:
    """What the last convolution of the backbone gave."""
    seen = set()
    layer = model.backbone.conv5[0]
    handle = layer.register_forward_hook(lambda m, i, out: seen.add(out.dtype))
    with EventStorage():
        model(batch)
    handle.remove()
    return seen


def test_bfloat16_inference_is_a_switch(tiny_cfg) -> None:
    model = build_model(tiny_cfg("MODEL.PAPER_RCNN.INFERENCE_DTYPE", "bfloat16"))
    batch = [make_input(96, 128, BOXES)]
    assert conv_dtypes(model.train(), batch) == {torch.float32}
    model.eval().roi_heads.box_predictor.test_score_thresh = 0.0
    with torch.no_grad():
        assert conv_dtypes(model, batch) == {torch.bfloat16}
        (result,) = model(batch)
    assert len(result["instances"]) > 0
    assert result["instances"].pred_boxes.tensor.dtype == torch.float32


def test_amp_on_the_cpu_trains_in_bfloat16(tiny_cfg) -> None:
    losses = {}
    for amp in (False, True):
        torch.manual_seed(0)
        model = build_model(tiny_cfg("SOLVER.AMP.ENABLED", amp)).train()
        batch = [make_input(96, 128, BOXES), make_input(97, 131, [], seed=1)]
        expected = torch.bfloat16 if amp else torch.float32
        assert conv_dtypes(model, batch) == {expected}
        torch.manual_seed(1)
        with EventStorage():
            losses[amp] = sum(model(batch).values())
        losses[amp].backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
        with torch.no_grad():
            assert conv_dtypes(model.eval(), batch) == {torch.float32}
    assert losses[True].item() == pytest.approx(losses[False].item(), rel=0.05)


def test_unknown_dtype(tiny_cfg) -> None:
    with pytest.raises(UserError, match=r"INFERENCE_DTYPE is 'bf16': use one of float32, bfloat16"):
        build_model(tiny_cfg("MODEL.PAPER_RCNN.INFERENCE_DTYPE", "bf16"))


# Wide enough for Winograd, and numbers of a trained network's size in its outputs.
WIDE = (
    *("MODEL.PAPER_VGG.CHANNELS", [8, 8, 128, 128, 128]),
    *("MODEL.PIXEL_STD", [50.0, 50.0, 50.0]),
)


def test_same_losses_and_detections_with_winograd(tiny_cfg) -> None:
    losses, layers, detections = [], [], []
    for winograd in (True, False):
        torch.manual_seed(0)
        model = build_model(tiny_cfg(*WIDE, "MODEL.PAPER_RCNN.WINOGRAD", winograd)).train()
        with EventStorage():
            found = model([make_input(97, 131, BOXES)])
        sum(found.values()).backward()
        losses.append({k: v.item() for k, v in found.items()})
        layers.append(model.backbone.conv3[1])
        model.eval().roi_heads.box_predictor.test_score_thresh = 0.0
        with torch.no_grad():
            images = [make_input(97, 131, []), make_input(160, 96, [])]
            detections.append([model([x])[0]["instances"] for x in images])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    fast, plain = (layer.weight.grad for layer in layers)
    assert (fast - plain).norm() <= 1e-3 * plain.norm()
    for fast, plain in zip(*detections, strict=True):
        assert len(plain) > 3 and fast.pred_classes.tolist() == plain.pred_classes.tolist()
        assert torch.allclose(fast.scores, plain.scores, rtol=1e-5)
        assert torch.allclose(fast.pred_boxes.tensor, plain.pred_boxes.tensor, rtol=1e-5, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("amp", [False, True])
def test_train_and_infer_on_gpu(tiny_cfg, amp: bool) -> None:
    model = build_model(tiny_cfg("MODEL.DEVICE", "cuda")).train()
    batch = [make_input(97, 131, BOXES), make_input(131, 160, [], seed=1)]
    with EventStorage(), torch.autocast("cuda", enabled=amp):
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    with torch.no_grad(), torch.autocast("cuda", enabled=amp):
        assert len(model.eval()(batch)) == 2


def test_integer_rois_are_pooled_and_encoded(tiny_cfg) -> None:
    heads = build_model(tiny_cfg("MODEL.ROI_HEADS.INTEGER_ROIS", True)).roi_heads
    assert heads.box_pooler.integer_rois
    predictor = heads.box_predictor
    rois, objects = (
        torch.tensor([[10.4, 9.6, 40.5, 50.2]]),
        torch.tensor([[12.0, 12.0, 44.0, 48.0]]),
    )
    whole = torch.tensor([[10.0, 10.0, 41.0, 50.0]])
    deltas, classes = torch.zeros(1, 4 * K), torch.tensor([1])
    loss = predictor.box_reg_loss(rois, objects, deltas, classes)
    assert loss == predictor.box_reg_loss(whole, objects, deltas, classes)
    predictor.integer_rois = False
    assert loss != predictor.box_reg_loss(rois, objects, deltas, classes)


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"],
        ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIWarp"],
        ["MODEL.ROI_HEADS.NAME", "RFCNHeads"],
        ["MODEL.ROI_HEADS.NAME", "CaffeCascadeROIHeads"],
    ],
)
def test_heads_without_integer_rois_refuse_them(tiny_cfg, opts: list[str]) -> None:
    """From a config, and from keywords: they would be encoded, but not pooled."""
    opts = [*opts, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
    cfg = tiny_cfg("MODEL.ROI_HEADS.INTEGER_ROIS", True, *opts)
    shapes = build_backbone(cfg).output_shape()
    with pytest.raises(UserError, match=r"INTEGER_ROIS is for .*POOLER_TYPE ROIPool"):
        build_roi_heads(cfg, shapes)
    kind = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)
    arguments = kind.from_config(cfg, shapes)
    with pytest.raises(UserError, match=r"INTEGER_ROIS is for .*POOLER_TYPE ROIPool"):
        kind(**arguments)
    for predictor in arguments.get("box_predictors", [arguments.get("box_predictor")]):
        predictor.integer_rois = False
    kind(**arguments)


@pytest.mark.parametrize("kind", ["npy", "mat"])
def test_mean_image(tiny_cfg, tmp_path, kind: str) -> None:
    """Of the input's size it is subtracted pixel by pixel; a smaller one is resized."""
    means = np.random.default_rng(0).uniform(90, 130, (32, 48, 3)).astype(np.float32)
    path = str(tmp_path / f"mean.{kind}")
    if kind == "npy":
        np.save(path, means)
    else:
        pytest.importorskip("scipy.io").savemat(path, {"other": 1.0, "mean_image": means})
    model = build_model(tiny_cfg("MODEL.PAPER_RCNN.MEAN_IMAGE", path))
    x = make_input(32, 48, BOXES[:1])
    found = model.preprocess_image([x]).tensor[0]
    expected = x["image"] - torch.from_numpy(means).permute(2, 0, 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert not any("mean_image" in name for name in model.state_dict())
    assert model.preprocess_image([make_input(64, 80, [])]).tensor.shape == (1, 3, 64, 80)
    colour = [102.9801, 115.9465, 122.7717]
    np.save(tmp_path / "three.npy", colour)
    model = build_model(tiny_cfg("MODEL.PAPER_RCNN.MEAN_IMAGE", str(tmp_path / "three.npy")))
    plain = build_model(tiny_cfg()).preprocess_image([x]).tensor
    torch.testing.assert_close(model.preprocess_image([x]).tensor, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (np.zeros((4, 5)), "4 x 5: give one of height x width x 3")],
)
def test_files_that_are_no_mean_image(tiny_cfg, tmp_path, content, message: str) -> None:
    path = str(tmp_path / "mean.npy")
    if content is not None:
        np.save(path, content)
    with pytest.raises(UserError, match=f"MEAN_IMAGE .*{message}"):
        build_model(tiny_cfg("MODEL.PAPER_RCNN.MEAN_IMAGE", path))
