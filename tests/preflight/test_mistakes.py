"""Mistakes of users, and what they are told before anything is computed or written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY

from frcnn_plugin import get_config_file
from frcnn_plugin.cli import train
from frcnn_plugin.cli.__main__ import main
from frcnn_plugin.modeling import PaperRCNN
from frcnn_plugin.preflight import schedule
from tests.small_demo import DEMO, SMALL, random_weights

FOUR_STEPS = get_config_file("demo/vgg16_shapes.yaml")

# What is typed after the demo's config, and parts of the line that answers: the key or file, the
# value, what to do.
VALUES = """
MODEL.DEVICE gpu | MODEL.DEVICE is 'gpu' | give cpu, cuda or cuda:1
MODEL.DEVICE meta | MODEL.DEVICE is 'meta' | give cpu, cuda
MODEL.DEVICE cpu:x | MODEL.DEVICE is 'cpu:x' | give cpu, cuda
INPUT.FORMAT bgr | INPUT.FORMAT is 'bgr' | use one of BGR, RGB
MODEL.DEVICE xpu | MODEL.DEVICE is 'xpu' | give cpu, cuda
INPUT.FORMAT YUV-BT.601 | INPUT.FORMAT is 'YUV-BT.601' | use one of BGR, RGB
INPUT.FORMAT XYZ | INPUT.FORMAT is 'XYZ' | use one of BGR, RGB
INPUT.RESIZE cubic | INPUT.RESIZE is 'cubic' | use one of pillow, opencv
INPUT.MIN_SIZE_TRAIN () | INPUT.MIN_SIZE_TRAIN is () | such as (600,)
INPUT.MIN_SIZE_TRAIN (-1,) | INPUT.MIN_SIZE_TRAIN is (-1,) | such as (600,)
INPUT.MIN_SIZE_TRAIN ('600',) | INPUT.MIN_SIZE_TRAIN is ('600',) | such as (600,)
INPUT.MIN_SIZE_TEST -1 | INPUT.MIN_SIZE_TEST is -1 | Type for example INPUT.MIN_SIZE_TEST 600
INPUT.MAX_SIZE_TRAIN 0 | INPUT.MAX_SIZE_TRAIN is 0 | Type for example INPUT.MAX_SIZE_TRAIN 1000
INPUT.MAX_SIZE_TRAIN 100 | INPUT.MAX_SIZE_TRAIN 100 is smaller than INPUT.MIN_SIZE_TRAIN 224 | Type for example INPUT.MAX_SIZE_TRAIN 373
INPUT.MAX_SIZE_TEST 100 | INPUT.MAX_SIZE_TEST 100 is smaller than INPUT.MIN_SIZE_TEST 224 | Type for example INPUT.MAX_SIZE_TEST 373
INPUT.MAX_SIZE_TEST -5 | INPUT.MAX_SIZE_TEST is -5 | Type for example INPUT.MAX_SIZE_TEST 1000
INPUT.MIN_SIZE_TRAIN_SAMPLING random | INPUT.MIN_SIZE_TRAIN_SAMPLING is 'random' | use one of range, choice
INPUT.MIN_SIZE_TRAIN_SAMPLING range | INPUT.MIN_SIZE_TRAIN is (224,) | Type for example INPUT.MIN_SIZE_TRAIN "(480, 600)"
INPUT.RANDOM_FLIP True | INPUT.RANDOM_FLIP is 'True' | use one of none, horizontal, vertical
INPUT.CROP.TYPE random | INPUT.CROP.TYPE is 'random' | use one of
INPUT.CROP.SIZE [0.9] | INPUT.CROP.SIZE is [0.9] | two numbers
INPUT.CROP.ENABLED True INPUT.CROP.SIZE [300,300] | INPUT.CROP.SIZE is [300, 300] | Type for example INPUT.CROP.SIZE "[0.9, 0.9]"
INPUT.CROP.ENABLED True INPUT.CROP.TYPE absolute_range INPUT.CROP.SIZE [100,50] | INPUT.CROP.SIZE is [100, 50] | Type INPUT.CROP.SIZE "[50, 100]"
MODEL.MASK_ON True | MODEL.MASK_ON is True | shapes_trainval has a segmentation | Type MODEL.MASK_ON False, or name a set
MODEL.KEYPOINT_ON True | MODEL.KEYPOINT_ON is True | Type MODEL.KEYPOINT_ON False, or name a set
MODEL.META_ARCHITECTURE ProposalNetwork | MODEL.META_ARCHITECTURE is 'ProposalNetwork' | MODEL.PAPER_RCNN.PHASE rpn
MODEL.META_ARCHITECTURE RetinaNet MODEL.BACKBONE.NAME build_retinanet_resnet_fpn_backbone | MODEL | Compare the keys below MODEL
MODEL.ANCHOR_GENERATOR.SIZES [[32],[64]] | MODEL.ANCHOR_GENERATOR.SIZES [[32], [64]] is for 2 feature maps | MODEL.RPN.IN_FEATURES names 1 | Type for example MODEL.ANCHOR_GENERATOR.SIZES "[[32, 64]]"
MODEL.ANCHOR_GENERATOR.NAME RotatedAnchorGenerator | MODEL.ANCHOR_GENERATOR.NAME is 'RotatedAnchorGenerator' | Type MODEL.ANCHOR_GENERATOR.NAME CaffeAnchorGenerator
MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlignRotated | MODEL.ROI_BOX_HEAD.POOLER_TYPE is 'ROIAlignRotated' | Type MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIPool
MODEL.ROI_HEADS.NAME Res5ROIHeads | MODEL.ROI_HEADS.NAME is 'Res5ROIHeads' | VGG16 | Type MODEL.ROI_HEADS.NAME CaffeROIHeads
MODEL.ROI_HEADS.NMS_METHOD_TEST soft | MODEL.ROI_HEADS.NMS_METHOD_TEST is 'soft' | use one of hard, linear, gaussian
MODEL.ROI_HEADS.NAME StandardROIHeads MODEL.ROI_HEADS.NMS_METHOD_TEST linear | MODEL.ROI_HEADS.NMS_METHOD_TEST is 'linear' | StandardROIHeads does not know | Type MODEL.ROI_HEADS.NMS_METHOD_TEST hard
MODEL.ROI_HEADS.SOFT_NMS_SIGMA 0.0 | MODEL.ROI_HEADS.SOFT_NMS_SIGMA is 0.0 | Type for example MODEL.ROI_HEADS.SOFT_NMS_SIGMA 0.5
MODEL.RPN.SCORES random | MODEL.RPN.SCORES is 'random', which is for tests | Type MODEL.RPN.SCORES learned
MODEL.ROI_HEADS.INTEGER_ROIS True MODEL.ROI_HEADS.NAME RFCNHeads | MODEL.ROI_HEADS.INTEGER_ROIS is True | RFCNHeads does not know | Type MODEL.ROI_HEADS.INTEGER_ROIS False
MODEL.ROI_HEADS.INTEGER_ROIS True MODEL.ROI_HEADS.NAME CaffeCascadeROIHeads MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True | MODEL.ROI_HEADS.INTEGER_ROIS is True | CaffeCascadeROIHeads does not know
DATASETS.CLASS_MAP [["circle","circle"]] TEST.LOSS_PERIOD 5 | TEST.LOSS_PERIOD is 5 | DATASETS.CLASS_MAP | Type TEST.LOSS_PERIOD 0
MODEL.PAPER_RCNN.PYRAMID [0.5,0] | MODEL.PAPER_RCNN.PYRAMID is [0.5, 0] | it must be numbers from 0.01 to 16, such as [0.5, 1.0, 2.0]
MODEL.PAPER_RCNN.PYRAMID [0.5,0.5] | MODEL.PAPER_RCNN.PYRAMID is [0.5, 0.5] | it must name nothing twice
MODEL.PAPER_RCNN.PYRAMID [0.5] MODEL.META_ARCHITECTURE GeneralizedRCNN | MODEL.PAPER_RCNN.PYRAMID is [0.5] | GeneralizedRCNN does not know | Type MODEL.PAPER_RCNN.PYRAMID "[]", or MODEL.META_ARCHITECTURE PaperRCNN
MODEL.PAPER_RCNN.PYRAMID [0.5] MODEL.ROI_HEADS.NAME RFCNHeads | MODEL.PAPER_RCNN.PYRAMID is [0.5] | RFCNHeads does not know | MODEL.ROI_HEADS.NAME CaffeROIHeads
MODEL.PAPER_RCNN.PROPOSAL_GRADIENT all MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIWarp MODEL.RPN.REGRESS False | MODEL.PAPER_RCNN.PROPOSAL_GRADIENT is 'all' | with MODEL.RPN.REGRESS False | Type MODEL.RPN.REGRESS True
MODEL.ROI_HEADS.SAMPLING ohem | MODEL.ROI_HEADS.SAMPLING is 'ohem' | use one of random, hard, all
MODEL.ROI_HEADS.NAME StandardROIHeads MODEL.ROI_HEADS.SAMPLING hard | MODEL.ROI_HEADS.SAMPLING is 'hard' | StandardROIHeads does not know | Type MODEL.ROI_HEADS.SAMPLING random
MODEL.ROI_HEADS.SAMPLING hard MODEL.ROI_HEADS.IOU_THRESHOLDS [0.1,0.5] MODEL.ROI_HEADS.IOU_LABELS [-1,0,1] | MODEL.ROI_HEADS.IOU_LABELS is [-1, 0, 1] | Type MODEL.ROI_HEADS.IOU_THRESHOLDS "[0.5]"
MODEL.ROI_HEADS.SAMPLING hard MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True | MODEL.ROI_HEADS.SAMPLING is 'hard' | Type MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE False
MODEL.ROI_HEADS.NAME CascadeROIHeads | CascadeROIHeads predicts one box for all classes | Type MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True
MODEL.ROI_HEADS.NAME CaffeCascadeROIHeads MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True MODEL.ROI_HEADS.IOU_THRESHOLDS [0.4] | MODEL.ROI_HEADS.IOU_THRESHOLDS [0.4] and MODEL.ROI_BOX_CASCADE_HEAD.IOUS [0.5, 0.6, 0.7] disagree | Type MODEL.ROI_HEADS.IOU_THRESHOLDS "[0.5]"
MODEL.ROI_BOX_CASCADE_HEAD.SCORES_FROM all | MODEL.ROI_BOX_CASCADE_HEAD.SCORES_FROM is 'all' | use one of last, own
MODEL.META_ARCHITECTURE GeneralizedRCNN MODEL.PAPER_RCNN.PHASE rpn | MODEL.PAPER_RCNN.PHASE is 'rpn' | GeneralizedRCNN does not know | Type MODEL.META_ARCHITECTURE PaperRCNN
MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 1000 | MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION is 1000 | from 1 to 64
MODEL.ROI_BOX_HEAD.FC_DIM 100000000 | MODEL.ROI_BOX_HEAD.FC_DIM is 100000000 | Type for example MODEL.ROI_BOX_HEAD.FC_DIM 4096
MODEL.RPN.CONV_DIMS [0] | MODEL.RPN.CONV_DIMS is [0] | Type for example MODEL.RPN.CONV_DIMS "[-1]"
MODEL.PROPOSAL_GENERATOR.MIN_SIZE 1000 | MODEL.PROPOSAL_GENERATOR.MIN_SIZE 1000 is larger than INPUT.MIN_SIZE_TEST 224 | Type MODEL.PROPOSAL_GENERATOR.MIN_SIZE 0
MODEL.RPN.MIN_SIZE_IMAGE 2000.0 | MODEL.RPN.MIN_SIZE_IMAGE is 2000.0 | from 0 to 1000
MODEL.WEIGHTS_MAY_LACK ['box_head'] | MODEL.WEIGHTS_MAY_LACK: the model has no 'box_head' | did you mean roi_heads or roi_heads.box_head
DATASETS.TRAIN (1,) | DATASETS.TRAIN is (1,) | names of data sets
SOLVER.NESTEROV True SOLVER.MOMENTUM 0.0 | SOLVER.NESTEROV is True | SOLVER.MOMENTUM 0.9
SOLVER.BASE_LR_END 5.0 | SOLVER.BASE_LR_END 5.0 is above SOLVER.BASE_LR 0.01 | Type SOLVER.BASE_LR_END 0.0
SOLVER.NUM_DECAYS 0 | SOLVER.NUM_DECAYS is 0 | 1 or more
SOLVER.BIAS_LR_FACTOR 1000.0 | SOLVER.BIAS_LR_FACTOR is 1000.0 | from 0 to 100
TEST.EXPECTED_RESULTS ['x'] | TEST.EXPECTED_RESULTS is ['x'] | [task, metric, value, tolerance]
MODEL.PIXEL_MEAN [100.0] | MODEL.PIXEL_MEAN has 1 values | BGR have 3 | Type for example MODEL.PIXEL_MEAN "[
MODEL.PIXEL_MEAN [1.0,2.0,'x'] | MODEL.PIXEL_MEAN is [1.0, 2.0, 'x'] | one number per channel
MODEL.PIXEL_STD [1.0] | MODEL.PIXEL_STD has 1 values | Type for example MODEL.PIXEL_STD "[1.0, 1.0, 1.0]"
MODEL.PIXEL_STD [0.0,0.0,0.0] | MODEL.PIXEL_STD is [0.0, 0.0, 0.0] | more than 0
INPUT.FORMAT L | MODEL.PIXEL_MEAN has 3 values | INPUT.FORMAT L have 1 | Type for example MODEL.PIXEL_MEAN "[102.9801]"
MODEL.META_ARCHITECTURE PaperRCN | MODEL.META_ARCHITECTURE is 'PaperRCN' | use one of PaperRCNN
MODEL.BACKBONE.NAME VGG17 | MODEL.BACKBONE.NAME is 'VGG17' | use one of VGG16
MODEL.BACKBONE.FREEZE_AT 7 | MODEL.BACKBONE.FREEZE_AT is 7, but VGG16 has 5 blocks | use 0
MODEL.BACKBONE.FREEZE_AT -1 | MODEL.BACKBONE.FREEZE_AT is -1 | use 0 (nothing frozen) to 5
MODEL.PAPER_VGG.CHANNELS [4,4] | MODEL.PAPER_VGG.CHANNELS is [4, 4] | five whole numbers
MODEL.PAPER_VGG.CHANNELS [4,4,0,4,4] | MODEL.PAPER_VGG.CHANNELS is [4, 4, 0, 4, 4] | 1 or more
MODEL.PAPER_VGG.OUT_FEATURES ['conv6'] | MODEL.PAPER_VGG.OUT_FEATURES is ['conv6'] | one or more of conv1
MODEL.PAPER_VGG.OUT_FEATURES [] | MODEL.PAPER_VGG.OUT_FEATURES is [] | one or more of conv1
MODEL.PAPER_RCNN.PHASE detector | MODEL.PAPER_RCNN.PHASE is 'detector' | use one of
MODEL.PAPER_RCNN.PHASE fast_rcnn | MODEL.PAPER_RCNN.PHASE is 'fast_rcnn' | MODEL.LOAD_PROPOSALS True
MODEL.PAPER_RCNN.INFERENCE_DTYPE half | MODEL.PAPER_RCNN.INFERENCE_DTYPE is 'half' | use one of float32
MODEL.PROPOSAL_GENERATOR.NAME PaperRPM | MODEL.PROPOSAL_GENERATOR.NAME is 'PaperRPM' | use one of PaperRPN
MODEL.PROPOSAL_GENERATOR.MIN_SIZE -3 | MODEL.PROPOSAL_GENERATOR.MIN_SIZE is -3 | 0 or more
MODEL.ANCHOR_GENERATOR.NAME Anchors | MODEL.ANCHOR_GENERATOR.NAME is 'Anchors' | CaffeAnchorGenerator
MODEL.ANCHOR_GENERATOR.SIZES [] | MODEL.ANCHOR_GENERATOR.SIZES is [] | Type for example MODEL.ANCHOR_GENERATOR.SIZES "[[128, 256, 512]]"
MODEL.ANCHOR_GENERATOR.SIZES [[-32]] | MODEL.ANCHOR_GENERATOR.SIZES is [[-32]] | Type for example MODEL.ANCHOR_GENERATOR.SIZES
MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS [[0.0]] | MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS is [[0.0]] | Type for example MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS "[[0.5, 1.0, 2.0]]"
MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS ['1:2'] | MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS is ['1:2'] | Type for example
MODEL.ANCHOR_GENERATOR.OFFSET 8.0 | MODEL.ANCHOR_GENERATOR.OFFSET is 8.0 | Type for example MODEL.ANCHOR_GENERATOR.OFFSET 0.0
MODEL.ANCHOR_GENERATOR.OFFSET 0.5 | MODEL.ANCHOR_GENERATOR.OFFSET is 0.5 | set MODEL.ANCHOR_GENERATOR.OFFSET 0.0
MODEL.ANCHOR_GENERATOR.SIZES [[1000,2000]] | MODEL.ANCHOR_GENERATOR.SIZES [[1000, 2000]] | no anchor lies inside 5 of 5 images | Lower the former
MODEL.RPN.HEAD_NAME SoftmaxHead | MODEL.RPN.HEAD_NAME is 'SoftmaxHead' | SoftmaxRPNHead
MODEL.RPN.IN_FEATURES ['conv6'] | MODEL.RPN.IN_FEATURES is ['conv6'] | Type MODEL.RPN.IN_FEATURES "['conv5']"
MODEL.RPN.IN_FEATURES [] | MODEL.RPN.IN_FEATURES is [] | Type for example MODEL.RPN.IN_FEATURES "['conv5']"
MODEL.RPN.IOU_THRESHOLDS [0.7,0.3] | MODEL.RPN.IOU_THRESHOLDS is [0.7, 0.3] | Type for example MODEL.RPN.IOU_THRESHOLDS "[0.3, 0.7]"
MODEL.RPN.IOU_THRESHOLDS [0.5] | MODEL.RPN.IOU_THRESHOLDS [0.5] make 2 ranges | MODEL.RPN.IOU_LABELS [0, -1, 1] | Type for example
MODEL.RPN.IOU_THRESHOLDS [30,70] | MODEL.RPN.IOU_THRESHOLDS is [30, 70] | Type for example MODEL.RPN.IOU_THRESHOLDS "[0.3, 0.7]"
MODEL.RPN.IOU_LABELS [1,-1,0] | MODEL.RPN.IOU_LABELS is [1, -1, 0] | Type for example MODEL.RPN.IOU_LABELS "[0, -1, 1]"
MODEL.RPN.IOU_LABELS [0,2,1] | MODEL.RPN.IOU_LABELS is [0, 2, 1] | Type for example MODEL.RPN.IOU_LABELS
MODEL.RPN.BATCH_SIZE_PER_IMAGE 0 | MODEL.RPN.BATCH_SIZE_PER_IMAGE is 0 | Type for example MODEL.RPN.BATCH_SIZE_PER_IMAGE 256
MODEL.RPN.POSITIVE_FRACTION 25.0 | MODEL.RPN.POSITIVE_FRACTION is 25.0 | Type for example MODEL.RPN.POSITIVE_FRACTION 0.25
MODEL.RPN.POSITIVE_FRACTION 0.0 | MODEL.RPN.POSITIVE_FRACTION is 0.0 | Type for example MODEL.RPN.POSITIVE_FRACTION 0.5
MODEL.RPN.BBOX_REG_LOSS_TYPE l1 | MODEL.RPN.BBOX_REG_LOSS_TYPE is 'l1' | use one of smooth_l1
MODEL.RPN.BBOX_REG_LOSS_WEIGHT -1.0 | MODEL.RPN.BBOX_REG_LOSS_WEIGHT is -1.0 | 0 or more
MODEL.RPN.BBOX_REG_WEIGHTS (1.0,1.0) | MODEL.RPN.BBOX_REG_WEIGHTS is (1.0, 1.0) | four numbers
MODEL.RPN.SMOOTH_L1_BETA -0.1 | MODEL.RPN.SMOOTH_L1_BETA is -0.1 | 0 or more
MODEL.RPN.LOSS_WEIGHT nan | MODEL.RPN.LOSS_WEIGHT nan | write a number, such as 1.0
MODEL.RPN.LOSS_NORM batch | MODEL.RPN.LOSS_NORM is 'batch' | use one of samples, locations
MODEL.RPN.PRE_NMS_TOPK_TRAIN 0 | MODEL.RPN.PRE_NMS_TOPK_TRAIN is 0 | Type for example MODEL.RPN.PRE_NMS_TOPK_TRAIN 12000
MODEL.RPN.POST_NMS_TOPK_TRAIN 0 | MODEL.RPN.POST_NMS_TOPK_TRAIN is 0 | Type for example MODEL.RPN.POST_NMS_TOPK_TRAIN 2000
MODEL.RPN.POST_NMS_TOPK_TEST -1 | MODEL.RPN.POST_NMS_TOPK_TEST is -1 | Type for example MODEL.RPN.POST_NMS_TOPK_TEST 300
MODEL.RPN.NMS_THRESH 70.0 | MODEL.RPN.NMS_THRESH is 70.0 | Type for example MODEL.RPN.NMS_THRESH 0.7
MODEL.RPN.NMS_THRESH -0.5 | MODEL.RPN.NMS_THRESH is -0.5 | from 0 to 1
MODEL.RPN.MIN_SIZE_IMAGE -16.0 | MODEL.RPN.MIN_SIZE_IMAGE is -16.0 | from 0 to 1000
MODEL.RPN.SCALE_CLAMP 0.0 | MODEL.RPN.SCALE_CLAMP is 0.0 | more than 0
MODEL.ROI_HEADS.NAME CaffeRoIHeads | MODEL.ROI_HEADS.NAME is 'CaffeRoIHeads' | use one of CaffeROIHeads
MODEL.ROI_HEADS.IN_FEATURES ['res4'] | MODEL.ROI_HEADS.IN_FEATURES is ['res4'] | Type MODEL.ROI_HEADS.IN_FEATURES "['conv5']"
MODEL.ROI_HEADS.NUM_CLASSES 0 | MODEL.ROI_HEADS.NUM_CLASSES is 0 | 1 or more
MODEL.ROI_HEADS.NUM_CLASSES 4 | NUM_CLASSES is 4 | MODEL.ROI_HEADS.NUM_CLASSES 3
MODEL.ROI_HEADS.IOU_THRESHOLDS [1.5] | MODEL.ROI_HEADS.IOU_THRESHOLDS is [1.5] | Type for example MODEL.ROI_HEADS.IOU_THRESHOLDS
MODEL.ROI_HEADS.IOU_LABELS [1,0] | MODEL.ROI_HEADS.IOU_LABELS is [1, 0] | Type for example MODEL.ROI_HEADS.IOU_LABELS
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 0 | MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE is 0 | Type for example MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 64
MODEL.ROI_HEADS.POSITIVE_FRACTION 25.0 | MODEL.ROI_HEADS.POSITIVE_FRACTION is 25.0 | Type for example MODEL.ROI_HEADS.POSITIVE_FRACTION 0.25
MODEL.ROI_HEADS.SCORE_THRESH_TEST 5.0 | MODEL.ROI_HEADS.SCORE_THRESH_TEST is 5.0 | less than 1 | Type for example MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.05
MODEL.ROI_HEADS.NMS_THRESH_TEST 30.0 | MODEL.ROI_HEADS.NMS_THRESH_TEST is 30.0 | Type for example MODEL.ROI_HEADS.NMS_THRESH_TEST 0.3
MODEL.ROI_BOX_HEAD.NAME FC6 | MODEL.ROI_BOX_HEAD.NAME is 'FC6' | FC6FC7Head
MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS [1.0,2.0] | MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS is [1.0, 2.0] | needs 4 numbers
MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS [1.0,1.0,1.0,-1.0] | MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS is [1.0, 1.0, 1.0, -1.0] | 0 or more
MODEL.PAPER_RCNN.FREEZE ['backbon'] | MODEL.PAPER_RCNN.FREEZE | backbon | backbone
MODEL.PAPER_RCNN.FREEZE ['backbone'] | MODEL.WEIGHTS is empty and MODEL.PAPER_RCNN.FREEZE is ['backbone'] | Add MODEL.WEIGHTS
INPUT.BOX_SCALING inclusiv | INPUT.BOX_SCALING is 'inclusiv' | use one of inclusive, continuous
INPUT.BOX_SCALING inclusive MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE False | INPUT.BOX_SCALING is 'inclusive' | Type INPUT.BOX_SCALING continuous
INPUT.BOX_SCALING inclusive MODEL.META_ARCHITECTURE GeneralizedRCNN | INPUT.BOX_SCALING is 'inclusive' | Type INPUT.BOX_SCALING continuous
INPUT.BOX_SCALING corners MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE True | INPUT.BOX_SCALING is 'corners' | Type INPUT.BOX_SCALING continuous
INPUT.BOX_SCALING corners MODEL.MASK_ON True | INPUT.BOX_SCALING is 'corners' | Type INPUT.BOX_SCALING continuous
INPUT.BOX_SCALING corners MODEL.META_ARCHITECTURE GeneralizedRCNN | INPUT.BOX_SCALING is 'corners' | Type INPUT.BOX_SCALING continuous
TEST.LOSS_PERIOD -1 | TEST.LOSS_PERIOD is -1 | 0 or more
MODEL.ROI_BOX_HEAD.FC_DIM 0 | MODEL.ROI_BOX_HEAD.FC_DIM is 0 | Type for example MODEL.ROI_BOX_HEAD.FC_DIM 4096
MODEL.ROI_BOX_HEAD.DROPOUT 50.0 | MODEL.ROI_BOX_HEAD.DROPOUT is 50.0 | Type for example MODEL.ROI_BOX_HEAD.DROPOUT 0.5
MODEL.ROI_BOX_HEAD.DROPOUT 1.0 | MODEL.ROI_BOX_HEAD.DROPOUT is 1.0 | less than 1
MODEL.ROI_BOX_HEAD.POOLER_TYPE RoIPool | MODEL.ROI_BOX_HEAD.POOLER_TYPE is 'RoIPool' | use one of ROIPool
MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 0 | MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION is 0 | Type for example MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 7
MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS (0.0,0.0,1.0,1.0) | MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS is (0.0, 0.0, 1.0, 1.0) | four numbers more than 0
MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE iou | MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE is 'iou' | giou
DATALOADER.NUM_WORKERS -1 | DATALOADER.NUM_WORKERS is -1 | Type for example DATALOADER.NUM_WORKERS 4
DATALOADER.SAMPLER_TRAIN Repeat | DATALOADER.SAMPLER_TRAIN is 'Repeat' | RepeatFactorTrainingSampler
DATALOADER.SAMPLER_TRAIN RandomSubsetTrainingSampler | DATALOADER.SAMPLER_TRAIN is 'RandomSubsetTrainingSampler' | use one of TrainingSampler
DATALOADER.ON_BAD_IMAGE ignore | DATALOADER.ON_BAD_IMAGE is 'ignore' | use one of stop, skip
DATALOADER.REPEAT_THRESHOLD -0.1 | DATALOADER.REPEAT_THRESHOLD is -0.1 | from 0 to 1
SOLVER.MAX_ITER 0 | SOLVER.MAX_ITER is 0 | 1 or more
SOLVER.STEPS (2000,) | SOLVER.STEPS (2000,) | SOLVER.MAX_ITER 1200 | Type for example SOLVER.STEPS "(857,)"
SOLVER.STEPS (900,300) | SOLVER.STEPS (900, 300) must ascend | Type SOLVER.STEPS "(300, 900)"
SOLVER.STEPS (-5,) | SOLVER.STEPS is (-5,) | 1 or more
SOLVER.IMS_PER_BATCH -2 | SOLVER.IMS_PER_BATCH is -2 | Type for example SOLVER.IMS_PER_BATCH 2
SOLVER.REFERENCE_WORLD_SIZE 4 | SOLVER.REFERENCE_WORLD_SIZE 4 | SOLVER.IMS_PER_BATCH 2 | Type SOLVER.IMS_PER_BATCH 4
SOLVER.BASE_LR 0.0 | SOLVER.BASE_LR is 0.0 | Type for example SOLVER.BASE_LR 0.001
SOLVER.MOMENTUM 90.0 | SOLVER.MOMENTUM is 90.0 | Type for example SOLVER.MOMENTUM 0.9
SOLVER.GAMMA 0.0 | SOLVER.GAMMA is 0.0 | Type for example SOLVER.GAMMA 0.1
SOLVER.GAMMA 10.0 | SOLVER.GAMMA is 10.0 | Type for example SOLVER.GAMMA 0.1
SOLVER.WEIGHT_DECAY -0.1 | SOLVER.WEIGHT_DECAY is -0.1 | Type for example SOLVER.WEIGHT_DECAY 0.0005
SOLVER.WEIGHT_DECAY_BIAS zero | SOLVER.WEIGHT_DECAY_BIAS is 'zero' | from 0 to 1
SOLVER.BIAS_LR_FACTOR -2.0 | SOLVER.BIAS_LR_FACTOR is -2.0 | from 0 to 100
SOLVER.LR_SCHEDULER_NAME Cosine | SOLVER.LR_SCHEDULER_NAME is 'Cosine' | WarmupCosineLR
SOLVER.WARMUP_METHOD cosine | SOLVER.WARMUP_METHOD is 'cosine' | use one of linear, constant
SOLVER.WARMUP_ITERS -1 | SOLVER.WARMUP_ITERS is -1 | 0 or more
SOLVER.CLIP_GRADIENTS.CLIP_TYPE global | SOLVER.CLIP_GRADIENTS.CLIP_TYPE is 'global' | use one of value, norm
SOLVER.CLIP_GRADIENTS.CLIP_VALUE 0.0 | SOLVER.CLIP_GRADIENTS.CLIP_VALUE is 0.0 | more than 0
SOLVER.CHECKPOINT_PERIOD 0 | SOLVER.CHECKPOINT_PERIOD is 0 | Type for example SOLVER.CHECKPOINT_PERIOD 10000
SOLVER.CHECKPOINTS_KEPT -1 | SOLVER.CHECKPOINTS_KEPT is -1 | 0 or more
SOLVER.AMP.ENABLED True MODEL.META_ARCHITECTURE GeneralizedRCNN | GeneralizedRCNN: without CUDA only PaperRCNN | Type SOLVER.AMP.ENABLED False
SEED 99999999999 | SEED is 99999999999 | Type for example SEED 3
TEST.DETECTIONS_PER_IMAGE 0 | TEST.DETECTIONS_PER_IMAGE is 0 | Type for example TEST.DETECTIONS_PER_IMAGE 400
TEST.VOC_METRIC 11-point | TEST.VOC_METRIC is '11-point' | use one of 11point
TEST.VOC_MATCH => | TEST.VOC_MATCH is '=>' | use one of
DATASETS.TRAIN () | DATASETS.TRAIN is empty | name at least one data set
DATASETS.TRAIN ('shapes_trainvla',) | shapes_trainvla | shapes_trainval
DATASETS.TEST ('shapes_tset',) | shapes_tset | shapes_test
DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN 0 | DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN is 0 | 1 or more
MODEL.WEIGHTS none.pth | MODEL.WEIGHTS: there is no file none.pth | Give the path of a file
MODEL.WEIGHTS a_folder | MODEL.WEIGHTS: a_folder is a folder | such as a_folder/inside.pth
MODEL.WEIGHTS text.pth | text.pth is damaged | a .pth, .pkl or .caffemodel file of weights is needed
MODEL.WEIGHTS frcnn://vgg61_caffe_imagenet | vgg61_caffe_imagenet | Did you mean vgg16_caffe_imagenet
MODEL.WEIGHTS s3://bucket/model.pth | MODEL.WEIGHTS s3://bucket/model.pth | nothing here opens s3:// | give a file
MODEL.WEIGHTS http://127.0.0.1:9/model.pth | MODEL.WEIGHTS http://127.0.0.1:9/model.pth cannot be downloaded | Check the address
MODEL.BACKBONE.FREEZE_AT 2 | MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT is 2 | Add MODEL.WEIGHTS | from scratch with MODEL.BACKBONE.FREEZE_AT 0
SOLVER.STEPS (300.5,) | SOLVER.STEPS is (300.5,) | whole numbers
SOLVER.MAX_ITER 10000000000 | SOLVER.MAX_ITER is 10000000000 | at most 2147483647
MODEL.PAPER_VGG.CHANNELS [4.5,4,8,8,8] | MODEL.PAPER_VGG.CHANNELS is [4.5, 4, 8, 8, 8] | five whole numbers
MODEL.PAPER_VGG.CHANNELS [4,4,8,8,1000000000] | MODEL.PAPER_VGG.CHANNELS is [4, 4, 8, 8, 1000000000] | at most 16384
MODEL.PAPER_VGG.OUT_FEATURES ['conv5','conv5'] | MODEL.PAPER_VGG.OUT_FEATURES is ['conv5', 'conv5'] | nothing twice
MODEL.RPN.IN_FEATURES ['conv5','conv5'] | MODEL.RPN.IN_FEATURES is ['conv5', 'conv5'] | nothing twice
MODEL.RPN.CONV_DIMS [4.5] | MODEL.RPN.CONV_DIMS is [4.5] | whole numbers
MODEL.RPN.BATCH_SIZE_PER_IMAGE 1 | MODEL.RPN.BATCH_SIZE_PER_IMAGE 1 times MODEL.RPN.POSITIVE_FRACTION 0.5 | Type for example
MODEL.ROI_HEADS.POSITIVE_FRACTION 1e-9 | MODEL.ROI_HEADS.POSITIVE_FRACTION 1e-09 | no object would be learnt
MODEL.RPN.POST_NMS_TOPK_TRAIN 100000000000000000000 | MODEL.RPN.POST_NMS_TOPK_TRAIN is 1 | at most 2147483647
MODEL.RPN.BBOX_REG_WEIGHTS (1.0,1.0,1.0,1e999) | MODEL.RPN.BBOX_REG_WEIGHTS is (1.0, 1.0, 1.0, inf) | four numbers
MODEL.ANCHOR_GENERATOR.SIZES [[64],96] | MODEL.ANCHOR_GENERATOR.SIZES is [[64], 96] | in one list or one per map
MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS [0.0,0.0,0.0,0.0] | MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS is [0.0, 0.0, 0.0, 0.0] | "[]"
MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO 1000000000 | MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO is 1000000000 | from 0 to 64
MODEL.PIXEL_STD [1e999,1.0,1.0] | MODEL.PIXEL_STD is [inf, 1.0, 1.0] | more than 0
MODEL.PAPER_RCNN.FREEZE ['backbone','proposal_generator','roi_heads'] MODEL.WEIGHTS trained/model.pth | MODEL.PAPER_RCNN.FREEZE ['backbone', 'proposal_generator', 'roi_heads'] | nothing to train
INPUT.MIN_SIZE_TRAIN (224.5,) | INPUT.MIN_SIZE_TRAIN is (224.5,) | whole numbers
INPUT.MIN_SIZE_TRAIN (1000000,) INPUT.MAX_SIZE_TRAIN 2000000 | INPUT.MIN_SIZE_TRAIN is (1000000,) | at most 16384
INPUT.MIN_SIZE_TEST 1000000 INPUT.MAX_SIZE_TEST 2000000 | INPUT.MIN_SIZE_TEST is 1000000 | from 0 to 16384
INPUT.CROP.ENABLED True INPUT.CROP.TYPE absolute INPUT.CROP.SIZE [0.5,0.5] | INPUT.CROP.SIZE is [0.5, 0.5] | INPUT.CROP.TYPE relative
INPUT.FORMAT '' | INPUT.FORMAT is '' | use one of BGR, RGB
DATASETS.PROPOSAL_FILES_TRAIN (1,) | DATASETS.PROPOSAL_FILES_TRAIN is (1,) | names of files
DATASETS.TRAIN ('shapes_trainval',['x']) | DATASETS.TRAIN is ('shapes_trainval', ['x']) | names of data sets
TEST.EXPECTED_RESULTS [['bbox','AP',30,'x']] | TEST.EXPECTED_RESULTS is [['bbox', 'AP', 30, 'x']] | [task, metric, value, tolerance]
TEST.DETECTIONS_PER_IMAGE 10000000000 | TEST.DETECTIONS_PER_IMAGE is 10000000000 | at most 2147483647
RESUME_MAY_DIFFER [1] | RESUME_MAY_DIFFER is [1] | names of keys
VERSION 3 | VERSION is 3 | Type for example VERSION 2
OUTPUT_DIR s3://bucket/run | OUTPUT_DIR is 's3://bucket/run' | a folder on this machine
OUTPUT_DIR ~/run | OUTPUT_DIR is '~/run' | write the whole path
OUTPUT_DIR LONG | cannot be written to (File name too long) | Give another one
OUTPUT_DIR text.pth | OUTPUT_DIR text.pth cannot be written to | Give another one
OUTPUT_DIR text.pth/run | OUTPUT_DIR text.pth/run cannot be written to | Give another one
OUTPUT_DIR finished | OUTPUT_DIR finished holds a run | --overwrite
OUTPUT_DIR '' | OUTPUT_DIR is '' | name a folder
MODEL.LOAD_PROPOSALS True MODEL.PAPER_RCNN.PHASE fast_rcnn | DATASETS.PROPOSAL_FILES_TRAIN 0 files | give one file per data set
"""  # noqa: E501
IN_FOUR_STEPS = """
MODEL.RPN.SCORES random | MODEL.RPN.SCORES is 'random' | Type MODEL.RPN.SCORES learned
FOUR_STEP.ITERS [10,10,10] | FOUR_STEP.ITERS is [10, 10, 10] | four entries
FOUR_STEP.ITERS [0,10,10,10] | FOUR_STEP.ITERS 0 | 1 or more
FOUR_STEP.DROPS [300,1300,150,250] | FOUR_STEP.DROPS is [300, 1300, 150, 250] | four lists of whole numbers
FOUR_STEP.DROPS [[500],[],[],[]] | FOUR_STEP.DROPS [500] | FOUR_STEP.ITERS 300
FOUR_STEP.ITERS ['a',1,1,1] | FOUR_STEP.ITERS | 'a' | whole numbers
FOUR_STEP.IMS_PER_BATCH [1,2] | FOUR_STEP.IMS_PER_BATCH is [1, 2] | four entries
FOUR_STEP.START_AT 0 | FOUR_STEP.START_AT is 0 | from 1 to 4
FOUR_STEP.STOP_AFTER 5 | FOUR_STEP.STOP_AFTER 5 | from 1 to 4
FOUR_STEP.START_AT 3 | FOUR_STEP.START_AT 3 | MODEL.WEIGHTS path/to/stage2_final.pth
FOUR_STEP.PREDICTOR_START resume | FOUR_STEP.PREDICTOR_START is 'resume' | use one of continue, restart
FOUR_STEP.TARGET_STATISTICS class | FOUR_STEP.TARGET_STATISTICS is 'class' | use one of per_class, fixed
FOUR_STEP.MIRRORED_PROPOSALS flip | FOUR_STEP.MIRRORED_PROPOSALS is 'flip' | use one of mirror, recompute
MODEL.PROPOSAL_GENERATOR.NAME RPN | MODEL.PROPOSAL_GENERATOR.NAME RPN cannot be trained in four stages | Type MODEL.PROPOSAL_GENERATOR.NAME PaperRPN
MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals | MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals cannot | Type MODEL.PROPOSAL_GENERATOR.NAME PaperRPN
MODEL.RPN.HEAD_NAME StandardRPNHead | MODEL.RPN.HEAD_NAME StandardRPNHead cannot be trained in four stages | Type MODEL.RPN.HEAD_NAME SoftmaxRPNHead
MODEL.ROI_HEADS.NAME StandardROIHeads | MODEL.ROI_HEADS.NAME StandardROIHeads cannot | Type MODEL.ROI_HEADS.NAME CaffeROIHeads
MODEL.ROI_HEADS.NAME CaffeCascadeROIHeads MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True | FOUR_STEP.TARGET_STATISTICS 'per_class' needs ROI heads with one box_predictor | type FOUR_STEP.TARGET_STATISTICS fixed
FOUR_STEP.POST_NMS_TOPK 0 | FOUR_STEP.POST_NMS_TOPK is 0 | Type for example FOUR_STEP.POST_NMS_TOPK 2000
FOUR_STEP.PRE_NMS_TOPK 0 | FOUR_STEP.PRE_NMS_TOPK is 0 | Type for example FOUR_STEP.PRE_NMS_TOPK -1
FOUR_STEP.INITIAL_WEIGHTS none.pth | there is no file none.pth | name a file that has them with FOUR_STEP.INITIAL_WEIGHTS
FOUR_STEP.INITIAL_WEIGHTS small.yaml | small.yaml is damaged | name a file that has them with FOUR_STEP.INITIAL_WEIGHTS
FOUR_STEP.INITIAL_WEIGHTS a_folder/inside.pth | a_folder/inside.pth holds no weights | name a file that has them with FOUR_STEP.INITIAL_WEIGHTS
FOUR_STEP.INITIAL_WEIGHTS a_folder | a_folder is a folder | a_folder/inside.pth | FOUR_STEP.INITIAL_WEIGHTS
MODEL.META_ARCHITECTURE GeneralizedRCNN | MODEL.META_ARCHITECTURE PaperRCNN | GeneralizedRCNN
"""  # noqa: E501


def rows(table: str) -> Iterator[tuple[list[str], list[str]]]:
    for line in table.strip().splitlines():
        typed, *parts = (part.strip() for part in line.split("|"))
        words = {"''": "", "LONG": 300 * "x"}
        yield [words.get(word, word) for word in typed.split()], parts


@META_ARCH_REGISTRY.register()
class SubclassOfOurs(PaperRCNN):
    """As another project may have."""


class Accepted(Exception):
    """A run would start."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, written_shapes: Path) -> Path:
    """Files that the tables name, beside the demo's data."""
    root = tmp_path_factory.mktemp("mistakes")
    (root / "demo_shapes").symlink_to(written_shapes)
    (root / "text.pth").write_text("no weights")
    (root / "small.yaml").write_text("SEED: 1\n")
    for name in ("a_folder", "finished"):
        (root / name).mkdir()
    torch.save({"model": {}}, root / "a_folder" / "inside.pth")
    (root / "finished" / "last_checkpoint").write_text("model_final.pth")
    (root / "trained").mkdir()
    random_weights(root / "trained")
    photo = next(written_shapes.glob("JPEGImages/*.jpg"))
    (root / "photo.jpg").write_bytes(photo.read_bytes())
    return root


@pytest.fixture
def start(
    folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[bool, str]]:  # fmt: skip
    """A function that types a command; returns whether a run would start, and what was said."""

    def accept(*args: object, **kwargs: object) -> None:
        raise Accepted

    monkeypatch.chdir(folder)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    monkeypatch.setattr(train, "launch", accept)
    monkeypatch.setattr(train, "lock_output", nullcontext)
    monkeypatch.setattr(schedule, "_MANY_PASSES", 10_000)

    def call(config: str, *words: str) -> tuple[bool, str]:
        before = sorted(folder.rglob("*"))
        try:
            status: int | None = main(["train", "--config-file", config, *words])
        except Accepted:
            status = None
        said = capsys.readouterr().err
        assert sorted(folder.rglob("*")) == before  # no folder that then holds a run
        assert status in (None, 1), said
        return status is None, said

    return call


MISTAKES = [
    pytest.param(config, typed, parts, id=" ".join(typed))
    for config, table in ((DEMO, VALUES), (FOUR_STEPS, IN_FOUR_STEPS))
    for typed, parts in rows(table)
]


def test_there_are_many() -> None:
    assert len(MISTAKES) >= 120


@pytest.mark.parametrize(("config", "typed", "parts"), MISTAKES)
def test_mistakes(start, config: str, typed: list[str], parts: list[str]) -> None:
    accepted, said = start(config, *SMALL, *typed)
    assert not accepted, said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert any(all(part in line for part in parts) for line in lines), said


# What is unusual, but right: nothing is said about it.
ALLOWED = """
MODEL.META_ARCHITECTURE SubclassOfOurs INPUT.BOX_SCALING inclusive MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE True
MODEL.META_ARCHITECTURE SubclassOfOurs INPUT.BOX_SCALING corners MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE False
MODEL.RPN.PRE_NMS_TOPK_TRAIN -1
MODEL.RPN.PRE_NMS_TOPK_TEST -1
MODEL.RPN.NMS_THRESH 1.0
MODEL.RPN.NMS_THRESH 0.0
MODEL.RPN.SCALE_CLAMP 1e999
MODEL.RPN.MIN_SIZE_IMAGE 0.0
MODEL.RPN.BOUNDARY_THRESH -1
MODEL.RPN.BBOX_REG_LOSS_WEIGHT 0.0
MODEL.RPN.SMOOTH_L1_BETA 0.0
MODEL.RPN.POSITIVE_FRACTION 1.0
MODEL.RPN.IOU_THRESHOLDS [0.5] MODEL.RPN.IOU_LABELS [0,1]
MODEL.RPN.IOU_THRESHOLDS [0.5,0.5]
MODEL.ROI_HEADS.IOU_THRESHOLDS [0.1,0.5] MODEL.ROI_HEADS.IOU_LABELS [-1,0,1]
MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0
MODEL.ROI_HEADS.SCORE_THRESH_TEST -1.0
MODEL.ROI_BOX_HEAD.DROPOUT 0.0
MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS [1.0,2.0,0.0,1.0]
MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO 0
MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlign
MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True
MODEL.PAPER_VGG.OUT_FEATURES ['conv4','conv5'] MODEL.RPN.IN_FEATURES ['conv4','conv5'] MODEL.ROI_HEADS.IN_FEATURES ['conv4','conv5'] MODEL.ANCHOR_GENERATOR.SIZES [[64],[96]]
SOLVER.NESTEROV True
MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True
MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS [1.0,1.0,1.0,1.0]
MODEL.ANCHOR_GENERATOR.SIZES [64,96]
MODEL.ANCHOR_GENERATOR.NAME DefaultAnchorGenerator MODEL.ANCHOR_GENERATOR.OFFSET 0.5
MODEL.BACKBONE.NAME ZF MODEL.PAPER_ZF.CHANNELS [4,4,8,8,8]
MODEL.META_ARCHITECTURE GeneralizedRCNN
MODEL.PROPOSAL_GENERATOR.NAME RPN
MODEL.ROI_HEADS.NAME StandardROIHeads MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead MODEL.ROI_BOX_HEAD.NUM_FC 1
MODEL.PAPER_RCNN.PHASE rpn
MODEL.PAPER_RCNN.INFERENCE_DTYPE bfloat16
INPUT.MIN_SIZE_TEST 0
INPUT.MIN_SIZE_TRAIN (0,)
INPUT.MIN_SIZE_TRAIN (200,224,256)
INPUT.MIN_SIZE_TRAIN (200,256) INPUT.MIN_SIZE_TRAIN_SAMPLING range
INPUT.FORMAT L MODEL.PIXEL_MEAN [110.0] MODEL.PIXEL_STD [10.0]
INPUT.FORMAT RGB
INPUT.FORMAT HSV
INPUT.RESIZE opencv
INPUT.RANDOM_FLIP vertical DATALOADER.MIRRORED_COPIES False
INPUT.RANDOM_FLIP vertical
INPUT.CROP.ENABLED True
DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler DATALOADER.REPEAT_THRESHOLD 0.01
DATALOADER.ON_BAD_IMAGE skip
INPUT.CROP.ENABLED True DATALOADER.MIRRORED_COPIES False
DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler DATALOADER.REPEAT_THRESHOLD 0.001 DATALOADER.MIRRORED_COPIES False
DATALOADER.NUM_WORKERS 1
SOLVER.STEPS ()
SOLVER.GAMMA 1.0
SOLVER.MOMENTUM 0.0
SOLVER.WEIGHT_DECAY 0.0
SOLVER.WEIGHT_DECAY_BIAS 0.0
SOLVER.BIAS_LR_FACTOR 1.0
SOLVER.WARMUP_ITERS 100 SOLVER.WARMUP_FACTOR 0.001
SOLVER.LR_SCHEDULER_NAME WarmupCosineLR
SOLVER.CHECKPOINTS_KEPT 0
SOLVER.CLIP_GRADIENTS.CLIP_TYPE value
SEED -1
SEED 0
VIS_PERIOD 100
TEST.EVAL_PERIOD -1
TEST.DETECTIONS_PER_IMAGE -1
TEST.VOC_METRIC area
TEST.VOC_MATCH >
MODEL.RPN.BATCH_SIZE_PER_IMAGE 2
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 4
MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS [0,0,1,1]
INPUT.CROP.ENABLED True INPUT.CROP.TYPE absolute INPUT.CROP.SIZE [200,200]
INPUT.CROP.ENABLED True INPUT.CROP.SIZE [1,0.5]
INPUT.MAX_SIZE_TEST 99999999 INPUT.MAX_SIZE_TRAIN 99999999
MODEL.RPN.PRE_NMS_TOPK_TEST 1000000000
MODEL.ANCHOR_GENERATOR.SIZES [[64.5,96.0]]
MODEL.RPN.CONV_DIMS [16]
MODEL.RPN.SCORES random MODEL.PAPER_RCNN.PHASE rpn MODEL.RPN.NMS_THRESH 1.0
TEST.EXPECTED_RESULTS [['bbox','AP50',90.0,1]]
RESUME_MAY_DIFFER ['SOLVER.BASE_LR']
VERSION 2
OUTPUT_DIR ./a~b
OUTPUT_DIR a_folder
"""  # noqa: E501
ALLOWED_IN_FOUR_STEPS = """
SOLVER.WARMUP_ITERS 0
SOLVER.MAX_ITER 2050 SOLVER.STEPS (220,300,1000,1300,1410,1450,1850)
FOUR_STEP.PRE_NMS_TOPK 6000
MODEL.PAPER_RCNN.ONE_BY_ONE True
MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True
FOUR_STEP.DROPS [[],[],[],[]]
FOUR_STEP.STOP_AFTER 1
DATALOADER.MIRRORED_COPIES False
"""
# The run starts, and is told what comes to nothing.
WARNINGS = """
FOUR_STEP.ITERS [10,10,10,10] | FOUR_STEP.ITERS [10, 10, 10, 10] is ignored | Use SOLVER.MAX_ITER
FOUR_STEP.STOP_AFTER 2 | FOUR_STEP.STOP_AFTER 2 is ignored | FOUR_STEP.ENABLED
INPUT.RANDOM_FLIP horizontal | INPUT.RANDOM_FLIP horizontal does nothing | set it to "none"
DATALOADER.ASPECT_RATIO_GROUPING False | DATALOADER.ASPECT_RATIO_GROUPING False does nothing | batches are of one orientation
DATALOADER.REPEAT_THRESHOLD 0.01 | DATALOADER.REPEAT_THRESHOLD 0.01 is ignored | Use DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler
DATASETS.PROPOSAL_FILES_TRAIN ('x.pkl',) | DATASETS.PROPOSAL_FILES_TRAIN ('x.pkl',) is ignored | Use MODEL.LOAD_PROPOSALS True
MODEL.PROPOSAL_GENERATOR.NAME RPN MODEL.RPN.SCORES random | MODEL.RPN.SCORES random is ignored | Use MODEL.PROPOSAL_GENERATOR.NAME PaperRPN
MODEL.META_ARCHITECTURE GeneralizedRCNN MODEL.PAPER_RCNN.MEAN_IMAGE mean.npy | MODEL.PAPER_RCNN.MEAN_IMAGE mean.npy is ignored | Use MODEL.META_ARCHITECTURE PaperRCNN
MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlignGrad MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO 4 | MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO 4 is ignored
DATASETS.TEST () DATASETS.CLASS_MAP [["circle","circle"]] | DATASETS.CLASS_MAP [['circle', 'circle']] is ignored
MODEL.HYPER.CHANNELS 20 | MODEL.HYPER.CHANNELS 20 is ignored | Use MODEL.BACKBONE.NAME HyperVGG16
TEST.AUG.ENABLED True | TEST.AUG.ENABLED True is ignored | Leave TEST.AUG.ENABLED out
SOLVER.LR_SCHEDULER_NAME WarmupCosineLR SOLVER.STEPS (5,) | SOLVER.STEPS (5,) is ignored | WarmupCosineLR
SOLVER.WARMUP_ITERS 1200 | SOLVER.WARMUP_ITERS 1200 | SOLVER.MAX_ITER 1200 | Type SOLVER.WARMUP_ITERS 120
SOLVER.IMS_PER_BATCH 8 | a batch is 4 times that of vgg16_shapes_joint.yaml | SOLVER.BASE_LR is still 0.01 | SOLVER.BASE_LR 0.04 | divided by 4
SOLVER.MAX_ITER 2 SOLVER.STEPS () | sees 4 images, less than one pass | Raise SOLVER.MAX_ITER
SOLVER.MAX_ITER 6000 SOLVER.CHECKPOINT_PERIOD 6000 | an interruption loses everything | Type SOLVER.CHECKPOINT_PERIOD 600
TEST.EVAL_PERIOD 1 | fewer images are trained on (2) than evaluated (3) | Type TEST.EVAL_PERIOD 120
SOLVER.BASE_LR 1.0 | SOLVER.BASE_LR 1 is 100 times that of vgg16_shapes_joint.yaml | In proportion to the batch: SOLVER.BASE_LR 0.01
DATASETS.TEST () | DATASETS.TEST is empty | nothing is evaluated
DATASETS.TRAIN ('shapes_trainval','shapes_trainval') | names shapes_trainval 2 times | Type DATASETS.TRAIN "('shapes_trainval',)"
DATASETS.TEST ('shapes_trainval',) | shapes_trainval is trained on and tested on | Name another set in DATASETS.TEST
INPUT.MIN_SIZE_TRAIN (112,) | INPUT.MIN_SIZE_TRAIN is (112,) | INPUT.MIN_SIZE_TEST 224 | Type INPUT.MIN_SIZE_TEST 112
MODEL.ANCHOR_GENERATOR.SIZES [[8,16]] | 0 % of the objects | MODEL.ANCHOR_GENERATOR.SIZES [[8, 16]] | Type for example MODEL.ANCHOR_GENERATOR.SIZES "[[
TEST.EVAL_PERIOD 100 | TEST.EVAL_PERIOD 100 | chosen by its score on shapes_test | DATASETS.TEST "('my_val', 'shapes_test')"
DATALOADER.NUM_WORKERS 99 | DATALOADER.NUM_WORKERS 99 | CPU core | Type DATALOADER.NUM_WORKERS
"""  # noqa: E501
WARNINGS_IN_FOUR_STEPS = """
SOLVER.MAX_ITER 100 | SOLVER.MAX_ITER 100 is ignored | Use FOUR_STEP.ITERS
SOLVER.STEPS (50,) | SOLVER.STEPS (50,) is ignored | Use FOUR_STEP.DROPS
SOLVER.IMS_PER_BATCH 8 | SOLVER.IMS_PER_BATCH 8 is ignored | Use FOUR_STEP.IMS_PER_BATCH
SOLVER.LR_SCHEDULER_NAME WarmupCosineLR | SOLVER.LR_SCHEDULER_NAME WarmupCosineLR is ignored | Use FOUR_STEP.DROPS
SOLVER.WARMUP_ITERS 500 | SOLVER.WARMUP_ITERS 500 is ignored | Leave SOLVER.WARMUP_ITERS out
MODEL.PAPER_RCNN.PHASE rpn | MODEL.PAPER_RCNN.PHASE rpn is ignored | Use FOUR_STEP.START_AT
MODEL.RPN.POST_NMS_TOPK_TRAIN 500 | MODEL.RPN.POST_NMS_TOPK_TRAIN 500 is ignored | Use FOUR_STEP.POST_NMS_TOPK
"""  # noqa: E501


def cases(joint: str, four_steps: str) -> list[object]:
    return [
        pytest.param(config, typed, parts, id=" ".join(typed))
        for config, table in ((DEMO, joint), (FOUR_STEPS, four_steps))
        for typed, parts in rows(table)
    ]


@pytest.mark.parametrize(("config", "typed", "parts"), cases(ALLOWED, ALLOWED_IN_FOUR_STEPS))
def test_what_is_allowed(start, config: str, typed: list[str], parts: list[str]) -> None:
    accepted, said = start(config, *SMALL, *typed)
    assert accepted, said
    assert "warning: " not in said


@pytest.mark.parametrize(("config", "typed", "parts"), cases(WARNINGS, WARNINGS_IN_FOUR_STEPS))
def test_warnings(start, config: str, typed: list[str], parts: list[str]) -> None:
    accepted, said = start(config, *SMALL, *typed)
    assert accepted, said
    lines = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert any(all(part in line for part in parts) for line in lines), said


# ---- the other commands -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        ("MODEL.RPN.NMS_THRESH 70.0", ("MODEL.RPN.NMS_THRESH is 70.0", "MODEL.RPN.NMS_THRESH 0.7")),
        ("MODEL.ANCHOR_GENERATOR.SIZES []", ("MODEL.ANCHOR_GENERATOR.SIZES is []", "Type for")),
        ("INPUT.FORMAT XYZ", ("INPUT.FORMAT is 'XYZ'", "use one of BGR")),
        ("INPUT.MIN_SIZE_TEST -1", ("INPUT.MIN_SIZE_TEST is -1", "INPUT.MIN_SIZE_TEST 600")),
    ],
)
@pytest.mark.parametrize("command", ["doctor", "predict", "visualize", "proposals dump"])
def test_other_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], command: str, typed: str, parts: tuple[str, str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    weights = "trained/model.pth"
    words = {
        "doctor": ["--config-file", DEMO],
        "predict": ["--weights", weights, "photo.jpg", "--config-file", DEMO, "--json", "x"],
        "visualize": ["--mode", "anchors", "--config-file", DEMO],
        "proposals dump": ["--config-file", DEMO, "--dataset", "shapes_test", "--output", "p.pkl"],
    }[command]
    if command == "proposals dump":
        typed += f" MODEL.WEIGHTS {weights}"
    before = sorted(folder.rglob("*"))
    assert main([*command.split(), *words, *SMALL, *typed.split()]) == 1
    said = capsys.readouterr()
    line = next(x for x in (said.out + said.err).splitlines() if x.startswith(("error: ", "FAIL")))
    assert all(part in line for part in parts), line
    assert sorted(folder.rglob("*")) == before
