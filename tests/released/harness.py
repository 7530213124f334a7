"""The plugin's model from a released config, and its blobs by Caffe's names."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from frcnn_plugin import add_frcnn_config, get_config_file
from tests.conftest import make_instances

from .caffe_net import LAYERS, Net, Weights
from .weights import state_dict

CONFIGS = {
    "VGG16 alt_opt": "released/vgg16_voc07_alt_opt.yaml",
    "ZF alt_opt": "released/zf_voc07_alt_opt.yaml",
    "VGG16 COCO": "released/vgg16_coco_end2end.yaml",
}
# BGR, config.py of py-faster-rcnn.
MEAN = torch.tensor([102.9801, 115.9465, 122.7717]).view(3, 1, 1)


def load_config(net: Net, widths: tuple[int, ...], fc: int, *opts: Any) -> CfgNode:
    cfg = get_cfg()
    add_frcnn_config(cfg)
    cfg.merge_from_file(get_config_file(CONFIGS[net.name]))
    key = "MODEL.PAPER_VGG.CHANNELS" if net.backbone == "VGG16" else "MODEL.PAPER_ZF.CHANNELS"
    narrow = ["MODEL.DEVICE", "cpu", key, list(widths), "MODEL.ROI_BOX_HEAD.FC_DIM", fc]
    # The layout that the transcription computes in: then even float rounding agrees.
    cfg.merge_from_list([*narrow, "MODEL.PAPER_RCNN.CHANNELS_LAST", False, *opts])
    return cfg


def build(net: Net, weights: Weights, widths: tuple[int, ...], fc: int, *opts: Any) -> Any:
    model = build_model(load_config(net, widths, fc, *opts))
    result = model.load_state_dict(state_dict(net, weights), strict=False)
    assert not result.unexpected_keys, result
    assert set(result.missing_keys) <= {"pixel_mean", "pixel_std"}, result
    return model.eval()


def model_input(image: torch.Tensor, original: tuple[int, int]) -> dict[str, Any]:
    """One entry of a batch, for an image (3, H, W) that was `original` high and wide."""
    return {
        "image": image,
        "height": original[0],
        "width": original[1],
        "instances": make_instances(tuple(image.shape[1:]), []),
        "file_name": "",
        "image_id": "0",
    }


class Recorder:
    """Outputs of the model's layers, by Caffe's blob names; Caffe's ReLUs work in place."""

    def __init__(self, net: Net, model: Any) -> None:
        self.blobs: dict[str, torch.Tensor] = {}
        last = net.last
        modules = dict(model.named_modules())
        for layer in LAYERS[net.backbone]:
            stem = layer.name.replace("conv", "relu") if layer.type == "conv" else layer.name
            (name,) = [n for n in modules if n.startswith("backbone.") and n.endswith("." + stem)]
            self._watch(layer.name, modules[name])
        head = model.proposal_generator.rpn_head
        self._watch("rpn_cls_score", head.rpn_cls_score)
        self._watch("rpn_bbox_pred", head.rpn_bbox_pred)
        head.rpn_cls_score.register_forward_pre_hook(
            lambda module, args: self.blobs.update({"rpn/output": args[0].detach().clone()})
        )
        heads = model.roi_heads
        self._watch("pool5", heads.box_pooler)
        self._watch("fc6", heads.box_head.drop6)
        self._watch("fc7", heads.box_head.drop7)
        self._watch("cls_score", heads.box_predictor.cls_score)
        self._watch("bbox_pred", heads.box_predictor.bbox_pred)
        model.proposal_generator.register_forward_hook(self._rois)
        assert last in [layer.name for layer in LAYERS[net.backbone]]

    def _watch(self, name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(
            # A copy: the next layer may work in place.
            lambda module, args, out: self.blobs.update({name: out.detach().clone()})
        )

    def _rois(self, module: Any, args: Any, out: Any) -> None:
        boxes = out[0][0].proposal_boxes.tensor
        inclusive = boxes - boxes.new_tensor([0, 0, 1, 1])
        self.blobs["rois"] = torch.cat([torch.zeros(len(boxes), 1), inclusive], dim=1)

    def in_caffe_layout(self) -> dict[str, torch.Tensor]:
        """With background first, and the probabilities that the plugin never computes as such."""
        blobs = dict(self.blobs)
        blobs["cls_score"] = blobs["cls_score"].roll(1, 1)
        blobs["cls_prob"] = blobs["cls_score"].softmax(1)
        score = blobs["rpn_cls_score"]
        blobs["rpn_cls_prob_reshape"] = (
            score.reshape(1, 2, -1, score.shape[3]).softmax(1).reshape(score.shape)
        )
        return blobs
