"""Configuration keys of the plugin, and their reference: every key with its meaning and default.

Keys that Detectron2 already has (``MODEL.RPN.IOU_THRESHOLDS``, ``SOLVER.BIAS_LR_FACTOR``, ...) are
used as they are and set in ``configs/``; the keys below, a function per component, exist only where
Detectron2 has none. All defaults are neutral, so a stock YAML loads unchanged after
:func:`add_frcnn_config`. The ``config.yaml`` of a run holds all its values.

Comments name the paper's symbol, the unit and the source. "paper" is arXiv 1506.01497v3, "MATLAB"
the authors' code, "py" py-faster-rcnn. A *stage* is one of the four of four-step training (section
3.2 of the paper), a *block* one of conv1 to conv5, each up to its pooling.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from .errors import UserError

# Keys that earlier versions had. Configs saved then, beside a run or in a checkpoint, still load:
# the key is ignored, and yacs logs a line that says so.
REMOVED_KEYS = ("FOUR_STEP.FEATURE_CACHE_GB",)
# Nodes that had another name, which other projects use as well. Configs with the old one still
# load (config_files.py); a program that merges one itself gets an error that names the new one.
RENAMED_NODES = {"MODEL.VGG": "MODEL.PAPER_VGG", "MODEL.ZF": "MODEL.PAPER_ZF"}


def add_frcnn_config(cfg: CN) -> None:
    """Add the plugin's keys to ``cfg``, in place, where they are missing.

    Keys that are there keep their values, so calling it twice changes nothing.

    Args:
        cfg: the result of :func:`detectron2.config.get_cfg`, perhaps extended by other projects,
            before or afterwards.

    Raises:
        UserError: another project has given a key of ours another meaning; nothing is changed.
    """
    ours = _sections(cfg)  # without keys; the functions below add ours
    _add_weights(ours)
    _add_backbones(ours)
    _add_rpn(ours)
    _add_roi_box_head(ours)
    _add_rfcn(ours)
    _add_cascade(ours)
    _add_hyper(ours)
    _add_roi_heads(ours)
    _add_meta_arch(ours)
    _add_proposal_gradient(ours)
    _add_data(ours)
    _add_solver(ours)
    _add_four_step(ours)
    _add_test(ours)
    _add_resume(ours)
    added_before = "PAPER_RCNN" in cfg.MODEL
    if foreign := list(_foreign(ours, cfg, "", values=not added_before)):
        raise UserError(
            f"{', '.join(foreign)}: the config has this from another project, and frcnn_plugin "
            "uses the same key: rename it there"
        )
    _add_missing(ours, cfg)
    if not added_before:
        for key in REMOVED_KEYS:
            cfg.register_deprecated_key(key)
        for old, new in RENAMED_NODES.items():
            cfg.register_renamed_key(old, new)


def _sections(cfg: CN) -> CN:
    return CN({name: _sections(value) for name, value in cfg.items() if isinstance(value, CN)})


def _foreign(ours: CN, cfg: CN, prefix: str, *, values: bool) -> Iterator[str]:
    """Name keys that are there but mean something else, with their values."""
    for name, value in ours.items():
        if name not in cfg:
            continue
        theirs = cfg[name]
        if isinstance(value, CN) and isinstance(theirs, CN):
            yield from _foreign(value, theirs, f"{prefix}{name}.", values=values)
        elif isinstance(value, CN) is not isinstance(theirs, CN):
            yield f"{prefix}{name}"
        elif values and (type(value) is not type(theirs) or value != theirs):
            yield f"{prefix}{name} {theirs!r}"


def _add_missing(ours: CN, cfg: CN) -> None:
    for name, value in ours.items():
        if name not in cfg:
            setattr(cfg, name, value)
        elif isinstance(value, CN):
            _add_missing(value, cfg[name])


def _add_weights(cfg: CN) -> None:
    # MODEL.WEIGHTS, Detectron2's key, also takes a .caffemodel, a VGG16 in torchvision's names, and
    # "frcnn://name" for the known files of docs/weights.md.

    # Sub-modules that start at random if MODEL.WEIGHTS lacks their weights, or has them in another
    # shape, such as ["roi_heads.box_head"] for a file without fc6 and fc7. Otherwise training does
    # not start when layers of a backbone, or fc6 and fc7, are missing.
    cfg.MODEL.WEIGHTS_MAY_LACK = []


def _add_backbones(cfg: CN) -> None:
    # The number of frozen blocks is Detectron2's MODEL.BACKBONE.FREEZE_AT: 0 (none) to 5 (all);
    # 2 freezes conv1_1..conv2_2 of VGG16 (paper, section 3.1.3).
    cfg.MODEL.PAPER_VGG = CN()
    # Output channels of blocks conv1..conv5. Smaller numbers make a narrow network for trials.
    cfg.MODEL.PAPER_VGG.CHANNELS = [64, 128, 256, 512, 512]
    # Features returned, any of conv1..conv5, each after its last ReLU and before its pooling.
    cfg.MODEL.PAPER_VGG.OUT_FEATURES = ["conv5"]
    # 1: conv5 has stride 16 (original). 2: stride 8, the size of conv4, for small objects: pool4
    # moves by one cell and the convolutions of conv5 are dilated, as in weakly supervised projects.
    cfg.MODEL.PAPER_VGG.CONV5_DILATION = 1
    # Normalisation after each convolution: "" none (original), or a name of Detectron2's, such as
    # "FrozenBN" and "BN". Weights: torchvision's vgg16_bn. MODEL.FPN.NORM is that of a pyramid.
    cfg.MODEL.PAPER_VGG.NORM = ""
    # BACKBONE.NAME "build_vgg16_fpn_backbone" is Detectron2's pyramid on MODEL.FPN.IN_FEATURES
    # ["conv3", "conv4", "conv5"] of VGG16: features "p2" to "p6", strides 4 to 64.

    cfg.MODEL.PAPER_ZF = CN()
    # Output channels of conv1..conv5.
    cfg.MODEL.PAPER_ZF.CHANNELS = [96, 256, 384, 384, 256]
    # As MODEL.PAPER_VGG.OUT_FEATURES.
    cfg.MODEL.PAPER_ZF.OUT_FEATURES = ["conv5"]


def _add_rpn(cfg: CN) -> None:
    # Used by PaperRPN. MODEL.RPN.BBOX_REG_LOSS_WEIGHT is the paper's lambda and
    # MODEL.RPN.BOUNDARY_THRESH the border (px) an anchor may cross and still be trained on.

    # N_reg, what the sum of the box loss is divided by:
    #   "samples"    the number of anchors actually sampled (py; with lambda 1)
    #   "locations"  H*W of the feature map, about 2400 (paper eq. 1, MATLAB; with lambda 10)
    # The class loss is always divided by the number sampled (N_cls, 256 where there are enough).
    cfg.MODEL.RPN.LOSS_NORM = "samples"
    # All originals call an anchor positive if it has the highest IoU with some ground truth. When
    # no inside anchor touches a ground truth that highest IoU is 0 and *every* anchor not touching
    # it turns positive. True skips such a ground truth; False is faithful to the flaw (MATLAB, py).
    cfg.MODEL.RPN.GUARD_ZERO_IOU = True
    # Smallest side of a proposal in pixels of the *original* image (MATLAB, py: 16). Needs
    # META_ARCHITECTURE "PaperRCNN", which knows the image scale. Detectron2's
    # MODEL.PROPOSAL_GENERATOR.MIN_SIZE (network-input pixels) is applied as well.
    cfg.MODEL.RPN.MIN_SIZE_IMAGE = 16.0
    # Upper bound of the predicted dw, dh; .inf: none (all originals). Detectron2: log(1000/16).
    cfg.MODEL.RPN.SCALE_CLAMP = float("inf")
    # Pixels added to x2, y2 when deltas are decoded: 0 is the exact inverse of the encoding
    # (MATLAB), 1 what py-faster-rcnn does, and its released weights expect.
    cfg.MODEL.RPN.DECODE_GROWTH = 0.0
    # What ranks the boxes that become proposals: "learned" scores, or "random" numbers, the same in
    # every run with the same SEED and weights, for tests only (paper, Table 2, "no cls"; there
    # without NMS: NMS_THRESH 1.0).
    cfg.MODEL.RPN.SCORES = "learned"
    # False: proposals are the anchors themselves, not moved by the box layer (paper, Table 2, "no
    # reg"). Losses stay as they are.
    cfg.MODEL.RPN.REGRESS = True


def _add_roi_box_head(cfg: CN) -> None:
    # Used by FC6FC7Head. MODEL.ROI_BOX_HEAD.FC_DIM is the width of fc6 and fc7 (paper: 4096).
    # Probability of dropping a unit after fc6 and fc7; 0 removes dropout (py's COCO networks).
    cfg.MODEL.ROI_BOX_HEAD.DROPOUT = 0.5
    # True: kept units are scaled up in training (VGG16). False: units are scaled by the keep
    # probability at test time (ZF's `scale_train: false`; its ImageNet weights need it).
    cfg.MODEL.ROI_BOX_HEAD.DROPOUT_SCALE_TRAIN = True
    # Used by CaffeROIHeads: as the two RPN keys above. DECODE_GROWTH is in original-image pixels.
    cfg.MODEL.ROI_BOX_HEAD.SCALE_CLAMP = float("inf")
    cfg.MODEL.ROI_BOX_HEAD.DECODE_GROWTH = 0.0
    # True: RoIs are divided by the image scale, as inclusive coordinates, before the deltas are
    # applied (py). False: deltas are applied in network coordinates, where they were trained.
    cfg.MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE = False
    # Factors of the class loss, one per class and the last for background, so NUM_CLASSES + 1
    # numbers; []: all 1 (all originals). The loss is still divided by the number of RoIs.
    cfg.MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS = []
    # True: where training starts from an fc6 and fc7 wider than FC_DIM, such as ImageNet's 4096,
    # each keeps its units with the largest L1 norm of weights. (cascade-rcnn starts from 2048
    # pruned units, by an unpublished rule; this one is ours.) False: such a file is refused.
    cfg.MODEL.ROI_BOX_HEAD.PRUNE_WEIGHTS = False


def _add_cascade(cfg: CN) -> None:
    # Used by CaffeCascadeROIHeads, with Detectron2's IOUS and BBOX_REG_WEIGHTS, an entry per head
    # (cascade-rcnn: deviations .1 .2, then .05 .1, then .033 .067); MODEL.ROI_BOX_HEAD's
    # CLS_AGNOSTIC_BBOX_REG must be True, and MODEL.ROI_HEADS.IOU_THRESHOLDS end with IOUS[0].
    cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
    # Factors of the gradients that features receive from the losses of the heads, which themselves
    # learn at the full rate (cascade-rcnn: loss weights, with learning rates times 1, 2, 4).
    cascade.LOSS_WEIGHTS = [1.0, 0.5, 0.25]
    # The classifiers, whose mean the score is, look at the RoIs of
    #   "last"  the last head (cascade-rcnn)
    #   "own"   their own head (Detectron2)
    cascade.SCORES_FROM = "last"
    # True: the objects are also among the RoIs of heads 2 and 3 (cascade-rcnn). For head 1,
    # MODEL.ROI_HEADS.PROPOSAL_APPEND_GT decides.
    cascade.APPEND_GT = True
    # In training, what a head makes of a RoI whose IoU with an object is above this does not pass
    # to the next head (cascade-rcnn: copies of the objects); 1: all do.
    cascade.DROP_IOU = 0.95


def _add_rfcn(cfg: CN) -> None:
    # Used by RFCNHeads, which read MODEL.ROI_BOX_HEAD's keys for boxes, not those for layers and
    # poolers; the original is class-agnostic: MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True.
    cfg.MODEL.RFCN = CN()
    # Channels of the 1x1 convolution before the score maps, and of fc6 and fc7 (py-R-FCN: 1024).
    cfg.MODEL.RFCN.CONV_DIM = 1024
    # k: a RoI has k x k bins, and each score and delta k x k maps (py-R-FCN: 7).
    cfg.MODEL.RFCN.GROUP_SIZE = 7
    # VGG16's fully connected layers:
    #   "none"     left out (R-FCN's own backbones, ResNets, have none)
    #   "reduced"  as convolutions, fc6 3x3 of dilation 6 and fc7 1x1, as in DeepLab and SSD; the
    #              weights of ImageNet are sub-sampled when they are loaded
    cfg.MODEL.RFCN.BACKBONE_FC = "none"
    # Pooling: "caffe", corners rounded to pixels (py-R-FCN), or "align", torchvision's
    # ps_roi_align, with MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO.
    cfg.MODEL.RFCN.POOLER = "caffe"


def _add_hyper(cfg: CN) -> None:
    # HyperNet (arXiv 1604.00600). No code was published: what the paper does not say is marked as
    # a choice. Used by HyperVGG16, whose blocks have MODEL.PAPER_VGG.CHANNELS.
    cfg.MODEL.HYPER = CN()
    # Blocks that are joined at stride 4, any of conv1..conv5, and the channels and the odd kernel
    # of the convolution that compresses each.
    cfg.MODEL.HYPER.IN_FEATURES = ["conv1", "conv3", "conv5"]
    cfg.MODEL.HYPER.CHANNELS = 42
    cfg.MODEL.HYPER.KERNEL = 5
    # True: a ReLU follows that convolution (choice).
    cfg.MODEL.HYPER.RELU = True
    # "LRN": local response normalisation across channels comes last; "": none. LRN is its size in
    # channels, alpha and beta, those of ImageNet networks in Caffe (choice).
    cfg.MODEL.HYPER.NORM = "LRN"
    cfg.MODEL.HYPER.LRN = [5, 1e-4, 0.75]
    # Kernel of the transposed convolutions that enlarge conv4 and conv5 (2 and 4 times), an even
    # number; and whether each channel has its own filter, or all feed all (both choices).
    cfg.MODEL.HYPER.DECONV_KERNEL = 8
    cfg.MODEL.HYPER.DECONV_PER_CHANNEL = True

    # Used by HyperRPN, whose anchors lie on the one map of MODEL.RPN.IN_FEATURES ("conv5").
    cfg.MODEL.HYPER_RPN = CN()
    # The map at which each anchor is pooled, and bins per side.
    cfg.MODEL.HYPER_RPN.POOL_FEATURE = "hyper"
    cfg.MODEL.HYPER_RPN.POOLER_RESOLUTION = 13
    # Channels of the 3x3 convolution, and width of the fully connected layer.
    cfg.MODEL.HYPER_RPN.CONV_DIM = 4
    cfg.MODEL.HYPER_RPN.FC_DIM = 256
    # True: convolve the map, then pool (the paper's HyperNet-SP, many times faster). False: pool
    # all its channels, then convolve each box.
    cfg.MODEL.HYPER_RPN.CONV_FIRST = True


def _add_roi_heads(cfg: CN) -> None:
    # Used by CaffeROIHeads, and by its relatives where these know them.

    # Which RoIs of an image train the detector, of the proposals and objects that
    # MODEL.ROI_HEADS.IOU_THRESHOLDS and IOU_LABELS do not leave out:
    #   "random"  BATCH_SIZE_PER_IMAGE at random, at most POSITIVE_FRACTION of them objects (all
    #             originals)
    #   "hard"    OHEM: the BATCH_SIZE_PER_IMAGE with the highest losses, which a first pass of all
    #             measures, whatever their classes (ohem: 64 of each of two images)
    #   "all"     all
    cfg.MODEL.ROI_HEADS.SAMPLING = "random"
    # Of "hard" RoIs with an IoU above this, only the one with the highest loss counts; 1: all do.
    cfg.MODEL.ROI_HEADS.HARD_NMS_THRESH = 0.7
    # True: only RoIs of the same class exclude each other (ohem's code); False: all RoIs of an
    # image do (its paper).
    cfg.MODEL.ROI_HEADS.HARD_NMS_PER_LABEL = True
    # How many of the best boxes of a class in an image enter NMS (MATLAB: 100); 0: all (py).
    # TEST.DETECTIONS_PER_CLASS is the limit over a whole set.
    cfg.MODEL.ROI_HEADS.TOPK_PER_CLASS_TEST = 0
    # True: RoIs are rounded to whole network pixels before they are pooled, and before targets are
    # encoded (MATLAB). False: not rounded (py). At test, deltas are applied to RoIs as they are.
    cfg.MODEL.ROI_HEADS.INTEGER_ROIS = False
    # What happens to detections that overlap a better one of their class; the RPN's suppression is
    # always hard:
    #   "hard"      those of IoU > MODEL.ROI_HEADS.NMS_THRESH_TEST are dropped (all originals)
    #   "linear"    Soft-NMS: their scores are multiplied by 1 - IoU
    #   "gaussian"  Soft-NMS: the scores of all are multiplied by exp(-IoU^2 / SOFT_NMS_SIGMA)
    # The soft ones drop little, so that MODEL.ROI_HEADS.SCORE_THRESH_TEST and
    # TEST.DETECTIONS_PER_IMAGE decide what is kept (soft-nms: 1e-4 and 400).
    cfg.MODEL.ROI_HEADS.NMS_METHOD_TEST = "hard"
    cfg.MODEL.ROI_HEADS.SOFT_NMS_SIGMA = 0.5
    # With a soft method, all boxes whose decayed score is below this are dropped, except the best
    # of each class.
    cfg.MODEL.ROI_HEADS.SOFT_NMS_MIN_SCORE = 0.001


def _add_meta_arch(cfg: CN) -> None:
    cfg.MODEL.PAPER_RCNN = CN()
    # True: the images of a training batch pass the network one by one, unpadded, and their losses
    # are averaged: Caffe's iter_size (py end2end: 2). False: one zero-padded batch.
    cfg.MODEL.PAPER_RCNN.ONE_BY_ONE = False
    # True: images are laid out channels-last in memory, which makes convolutions faster (on CPUs;
    # on GPUs with AMP). Results change by float rounding only.
    cfg.MODEL.PAPER_RCNN.CHANNELS_LAST = True
    # True: 3x3 convolutions of VGG16, ZF and the RPN with 128 x 128 channels or more, on a CPU in
    # float32, by Winograd's algorithm: half the time, other rounding (about 3e-6 of the largest
    # feature; no further from the exact sum than the direct convolution is). In bfloat16 the widest
    # (256 x 512 or more) are computed so too, in float32, on CPUs without matrix units (AMX).
    cfg.MODEL.PAPER_RCNN.WINOGRAD = True
    # Arithmetic of inference: "float32", or "bfloat16" or "float16" (CUDA) by autocast: faster,
    # detections change a little. Training has Detectron2's SOLVER.AMP.ENABLED, on CPUs bfloat16.
    # On CPUs with matrix units (AMX), the weights are also kept in bfloat16: 0.3 GB for VGG16.
    cfg.MODEL.PAPER_RCNN.INFERENCE_DTYPE = "float32"
    # A file with a mean image, subtracted in place of MODEL.PIXEL_MEAN: .npy, or MATLAB's .mat with
    # one array or one named "mean_image"; (H, W, 3) in INPUT.FORMAT order, 0..255. It is resized to
    # each network input, bilinearly (MATLAB: to each image, then both are resized). "": none (py).
    cfg.MODEL.PAPER_RCNN.MEAN_IMAGE = ""
    # An image pyramid: the network input is also resized by each of these factors, and the box head
    # pools each RoI at the scale at which its area is closest to 224 x 224 pixels, in training and
    # at test (Fast R-CNN's code: at test; in training it draws one scale for each image). All else,
    # the RPN, its anchors and masks, stays on the input itself. The five scales of SPPnet and Fast
    # R-CNN, 480 to 1200 pixels, are [0.8, 0.96, 1.1467, 1.44, 2.0] of 600. []: no pyramid.
    cfg.MODEL.PAPER_RCNN.PYRAMID = []
    # What the model does:
    #   "joint"      trains and runs everything
    #   "rpn"        trains the RPN alone; run, it returns proposals
    #   "fast_rcnn"  trains and runs the detector on given proposals (MODEL.LOAD_PROPOSALS True)
    # Four-step training switches it and ends with "joint".
    cfg.MODEL.PAPER_RCNN.PHASE = "joint"
    # Sub-modules that do not train, in any phase or stage, such as ["proposal_generator"] or
    # ["roi_heads.box_head"]; the blocks of a backbone have MODEL.BACKBONE.FREEZE_AT. What comes
    # before them in the network still trains by their losses.
    cfg.MODEL.PAPER_RCNN.FREEZE = []


def _add_proposal_gradient(cfg: CN) -> None:
    # Non-approximate joint training: the detector's loss also trains the RPN, through the corners
    # of its proposals (paper, section 3.2, third scheme; code: MNC's faster_rcnn_end2end). Used by
    # PaperRPN with CaffeROIHeads in PHASE "joint". Scores, targets and the selection of proposals
    # hand nothing back.

    # Which RoIs hand a gradient back:
    #   "none"        none (approximate joint training)
    #   "foreground"  those that match an object (MNC's detector)
    #   "all"         all that are proposals (MNC's five stages). Ground-truth boxes never do.
    cfg.MODEL.PAPER_RCNN.PROPOSAL_GRADIENT = "none"
    # Where the gradient of each delta, as the RPN predicts it, is cut off (MNC's five stages:
    # 1/512 = 0.001953125); 0: nowhere (MNC's detector). The loss is a mean over the batch.
    cfg.MODEL.RPN.PROPOSAL_GRADIENT_CLIP = 0.0
    # What gradient a box has that was clipped to the image:
    #   "exact"  sides at the border have no gradient, the others do
    #   "none"   the whole box has none, nor has a box whose anchor crosses the border (MNC)
    cfg.MODEL.RPN.PROPOSAL_GRADIENT_AT_BORDER = "exact"
    # MODEL.ROI_BOX_HEAD.POOLER_TYPE of CaffeROIHeads, besides "ROIPool" and Detectron2's, may be
    # one of three with a gradient for boxes, which PROPOSAL_GRADIENT needs:
    #   "ROIWarp"       corners rounded to cells, one bilinear sample per bin (MNC)
    #   "PrROIPool"     mean of the bilinear surface over each bin (PreciseRoIPooling)
    #   "ROIAlignGrad"  Detectron2's "ROIAlignV2" with 2 x 2 samples, whatever
    #                   POOLER_SAMPLING_RATIO says
    # With these: bins per side that are pooled for each of POOLER_RESOLUTION, which is their
    # maximum; 1: no finer ones (MNC's detector); 2 or 4: MNC's warping to 14 or 28 bins.
    cfg.MODEL.ROI_BOX_HEAD.POOLER_SUPERSAMPLING = 1


def _add_data(cfg: CN) -> None:
    # The library that resizes images:
    #   "pillow"  Detectron2: bytes, antialiased where the image shrinks
    #   "opencv"  py: floats, bilinear, never antialiased; sides round half to even; mirrored copies
    #             are mirrored before they are resized
    cfg.INPUT.RESIZE = "pillow"
    # How boxes of objects and of proposal files follow an image that is resized:
    #   "continuous"  Detectron2: x and y by the ratios of the sides
    #   "inclusive"   py: inclusive corners by one factor, so that x2 and y2 are smaller by
    #                 factor - 1 pixels. Needs META_ARCHITECTURE "PaperRCNN", which scales
    #                 proposals back so, and MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE for detections.
    #   "corners"     MATLAB's RPN: inclusive corners, the last pixel to the last one, so by
    #                 (size' - 1) / (size - 1) of x and of y. Needs "PaperRCNN", which scales all
    #                 boxes back so, and DECODE_IN_IMAGE False.
    cfg.INPUT.BOX_SCALING = "continuous"
    # Data sets to register before anything else, a list of entries of these forms:
    #   {name: my_train, root: /data/my, split: train, classes: [cat, dog]}      VOC's folders
    #   {name: my_train, xml: /data/my, images: /data/my, classes: [cat, dog]}   any folder of XML
    #   {name: my_train, json: /data/train.json, images: /data/images}           COCO's format
    # Then DATASETS.TRAIN ("my_train",) finds them. docs/custom_data.md has all fields.
    cfg.DATASETS.REGISTER = []
    # For a detector tested on a set with fewer classes, or other names of them (paper, Table
    # 12: COCO's 80 on VOC's 20): [name in DATASETS.TRAIN, name in DATASETS.TEST] of those whose
    # names differ. All other classes of the test set must have the same name in both; detections of
    # classes that it lacks are left out. []: the class lists must be the same.
    cfg.DATASETS.CLASS_MAP = []
    # True: the training set and its mirrored copy, every entry once per epoch, batches of one
    # orientation (all originals); give INPUT.RANDOM_FLIP "none". The order depends on SEED alone,
    # so a resumed run sees the very images an uninterrupted one would. False: Detectron2's loader;
    # in four-step training the same loader without the copies, with INPUT.RANDOM_FLIP.
    cfg.DATALOADER.MIRRORED_COPIES = False
    # An image that cannot be read, or is of another size than its annotation says:
    #   "stop"  ends the run with the file's name
    #   "skip"  goes on with a warning. In training another image takes its place (the next of the
    #           set, so that a resumed run is the same run); in a test set its objects are missed.
    cfg.DATALOADER.ON_BAD_IMAGE = "stop"


def _add_solver(cfg: CN) -> None:
    # Caffe keeps the learning rate inside the momentum buffer, torch outside; after a drop of the
    # rate they differ for about 20 iterations. True rescales the buffer at each drop, which makes
    # torch train as Caffe does.
    cfg.SOLVER.CAFFE_MOMENTUM = False
    # How many of the checkpoints written every SOLVER.CHECKPOINT_PERIOD iterations stay: the newest
    # ones; 0: all. stage<k>_final.pth, model_final.pth and model_best.pth always stay.
    cfg.SOLVER.CHECKPOINTS_KEPT = 3


def _add_four_step(cfg: CN) -> None:
    # The paper's four-step alternating training (section 3.2). SOLVER.MAX_ITER and STEPS follow
    # from the lists below, one entry per stage: RPN, detector, RPN, detector.
    cfg.FOUR_STEP = CN()
    # True: four stages. False: approximate joint training, or MODEL.PAPER_RCNN.PHASE alone.
    cfg.FOUR_STEP.ENABLED = False
    # Iterations. The defaults are for VOC 2007 (paper, section 3.1.3; MATLAB, py).
    cfg.FOUR_STEP.ITERS = [80000, 40000, 80000, 40000]
    # Iterations, counted from the start of the stage, at which the rate drops by SOLVER.GAMMA.
    cfg.FOUR_STEP.DROPS = [[60000], [30000], [60000], [30000]]
    # Images per iteration and process. With N processes a batch is N times as large; rate and
    # iterations stay as they are. RoIs per image are MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE (64 for
    # 2 images).
    cfg.FOUR_STEP.IMS_PER_BATCH = [1, 2, 1, 2]
    # cls_score and bbox_pred at the start of stage 4: "continue" from stage 2 (MATLAB) or
    # "restart" at random (py). fc6 and fc7 continue from stage 2 in both.
    cfg.FOUR_STEP.PREDICTOR_START = "continue"
    # Mean and deviation of the detector's box targets: "per_class", measured on the training set
    # at the start of stages 2 and 4 (MATLAB, py alt-opt), or "fixed", MODEL.ROI_BOX_HEAD's.
    cfg.FOUR_STEP.TARGET_STATISTICS = "per_class"
    # True: RPN targets are whitened with their mean and deviation over the training set (MATLAB).
    cfg.FOUR_STEP.RPN_TARGET_STATISTICS = False
    # Proposals cached for stages 2 and 4: boxes that enter NMS (-1: all) and that leave it.
    cfg.FOUR_STEP.PRE_NMS_TOPK = -1
    cfg.FOUR_STEP.POST_NMS_TOPK = 2000
    # Proposals of mirrored images: "mirror" those of the image (py), "recompute" (MATLAB).
    cfg.FOUR_STEP.MIRRORED_PROPOSALS = "mirror"
    # First and last stage of this run. Starting later needs MODEL.WEIGHTS, the checkpoint at the
    # end of the stage before; stage 2 needs the run's initial weights besides.
    cfg.FOUR_STEP.START_AT = 1
    cfg.FOUR_STEP.STOP_AFTER = 4
    # Weights that stage 2 starts from again; "": those this run started with.
    cfg.FOUR_STEP.INITIAL_WEIGHTS = ""
    # Evaluate on DATASETS.TEST after stages 1 and 3 (recall) and after stage 2 (AP).
    cfg.FOUR_STEP.EVALUATE_STEPS = True


def _add_test(cfg: CN) -> None:
    # A detection is right if its IoU with an object is ">=" 0.5 (VOC devkit, MATLAB) or ">" (py).
    cfg.TEST.VOC_MATCH = ">="
    # Metric of the headline: "11point" (VOC 2007), "area" (VOC 2010 on), "auto" (11point for
    # VOC 2007 to 2009, area for all other sets). Both are always printed.
    cfg.TEST.VOC_METRIC = "auto"
    # True: of an image, all detections that score as the last of TEST.DETECTIONS_PER_IMAGE are
    # kept, which can be more (py). False: exactly that many.
    cfg.TEST.KEEP_TIES = False
    # How many of the best detections of a class are kept, as a multiple of the images in the whole
    # test set (MATLAB: 40, counted before NMS; here after it); 0: all. For the VOC metric.
    cfg.TEST.DETECTIONS_PER_CLASS = 0
    # Every so many iterations, the losses on DATASETS.TEST, as training computes them but without
    # changing anything: "validation/loss_rpn_cls", ... in metrics.json; 0: never.
    cfg.TEST.LOSS_PERIOD = 0


def _add_resume(cfg: CN) -> None:
    # A run that is resumed must have the config, data and number of processes that it began with,
    # but for what changes no result (files, workers, periods, TEST). What is named here, as the
    # message about it does, may differ: the run goes on with what is now, and says so. For example
    # ["SOLVER.BASE_LR"], ["the training data"].
    cfg.RESUME_MAY_DIFFER = []


def plugin_cfg() -> CN:
    """Return Detectron2's default config with the plugin's keys, not frozen."""
    cfg = get_cfg()
    add_frcnn_config(cfg)
    return cfg


def get_config_file(name: str) -> str:
    """Return the path of a config that comes with the plugin.

    Args:
        name: path below ``configs/``, such as ``"faster_rcnn_vgg16_voc_joint.yaml"``.

    Raises:
        UserError: there is no such file; the message lists close names.
    """
    for root in _config_roots():
        if (root / name).is_file():
            return str(root / name)
    known = list_config_files()
    close = get_close_matches(name, known, n=3, cutoff=0.3) or known
    raise UserError(f"no config '{name}' comes with frcnn_plugin; did you mean {', '.join(close)}?")


def list_config_files() -> list[str]:
    """List the configs that come with the plugin, for :func:`get_config_file`."""
    return sorted({str(p.relative_to(r)) for r in _config_roots() for p in r.rglob("*.yaml")})


def _config_roots() -> list[Path]:
    package = Path(__file__).resolve().parent
    # An installed wheel carries the YAMLs in the package; a checkout has them beside it.
    return [package / "configs", package.parent / "configs"]
