"""Which model is measured, and on what work."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode

from frcnn_plugin.engine import setup_cfg

# A step is computed in full but moves nothing, so that all steps do the same work.
_NEUTRAL_OPTS = ("SOLVER.BASE_LR", "1e-12", "MODEL.WEIGHTS", "")


@dataclass(frozen=True)
class Spec:
    """Which model.

    Attributes:
        name: in tables.
        kind: "config", "detectron2" or "torchvision".
        config_file: what it is built from; the peers take numbers from it.
        opts: ``KEY VALUE`` overrides.
        bf16: bfloat16, by the config's own switch or by autocast.
    """

    name: str
    kind: str
    config_file: str
    opts: tuple[str, ...] = ()
    bf16: bool = False

    def cfg(self, training: bool) -> CfgNode:
        """The config; see :func:`frcnn_plugin.engine.setup_cfg` for errors."""
        cfg = setup_cfg(self.config_file, [*_NEUTRAL_OPTS, *self.opts])
        if self.own_switch(cfg, training):
            cfg.defrost()
            cfg.MODEL.PAPER_RCNN.INFERENCE_DTYPE = "bfloat16"
            cfg.SOLVER.AMP.ENABLED = training
            cfg.freeze()
        return cfg

    def own_switch(self, cfg: CfgNode, training: bool) -> bool:
        """Whether bfloat16 is wanted, and the config has a switch for it.

        In training it is SOLVER.AMP.ENABLED, which is the model's on a CPU; on a GPU it is the
        trainer that applies autocast.
        """
        ours = self.kind == "config" and cfg.MODEL.META_ARCHITECTURE == "PaperRCNN"
        has = "INFERENCE_DTYPE" in cfg.MODEL.PAPER_RCNN
        return self.bf16 and ours and has and not (training and cfg.MODEL.DEVICE != "cpu")


@dataclass(frozen=True)
class Work:
    """What a model is given to do, again and again.

    Attributes:
        training: training steps; else inference.
        height: pixels of an image.
        width: pixels of an image.
        batch: images.
        objects: ground-truth boxes per image.
        seed: of weights, images and sampling.
    """

    training: bool
    height: int = 600
    width: int = 1000
    batch: int = 1
    objects: int = 5
    seed: int = 0


Sample = dict[str, float]
