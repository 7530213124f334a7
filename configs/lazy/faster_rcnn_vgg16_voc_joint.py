# faster_rcnn_vgg16_voc_joint.yaml for tools/lazyconfig_train_net.py of Detectron2's repository: the
# same model, optimizer and schedule. docs/other_projects.md says what is lost there.
import torch
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler

from frcnn_plugin.data import ImageMapper
from frcnn_plugin.evaluation import VOCEvaluator
from frcnn_plugin.modeling import (
    VGG16,
    AsyncMatcher,
    CaffeAnchorGenerator,
    CaffeBox2BoxTransform,
    CaffeROIHeads,
    FC6FC7Head,
    PaperFastRCNNOutputLayers,
    PaperRCNN,
    PaperRPN,
    SoftmaxRPNHead,
)

model = L(PaperRCNN)(
    backbone=L(VGG16)(
        channels=[64, 128, 256, 512, 512],
        out_features=["conv5"],
        freeze_at=2,  # conv1_1 .. conv2_2
    ),
    proposal_generator=L(PaperRPN)(
        in_features=["conv5"],
        head=L(SoftmaxRPNHead)(in_channels="${...backbone.channels[4]}", num_anchors=9),
        anchor_generator=L(CaffeAnchorGenerator)(
            sizes=[[128, 256, 512]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[16]
        ),
        anchor_matcher=L(Matcher)(
            thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        box2box_transform=L(CaffeBox2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0], decode_growth=1.0),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(12000, 6000),  # in training, in evaluation
        post_nms_topk=(2000, 300),
        nms_thresh=0.7,
        min_size_image=16.0,
        anchor_boundary_thresh=0,  # anchors across the border are not trained on
        loss_norm="samples",  # N_reg
        loss_weight=1.0,  # lambda
        smooth_l1_beta=1 / 9,  # 1 / sigma^2, sigma = 3
    ),
    roi_heads=L(CaffeROIHeads)(
        num_classes=20,
        batch_size_per_image=128,
        positive_fraction=0.25,
        proposal_append_gt=True,
        proposal_matcher=L(AsyncMatcher)(thresholds=[0.5], labels=[0, 1]),
        box_in_features=["conv5"],
        # Of this type, CaffeROIHeads pools as Caffe does.
        box_pooler=L(ROIPooler)(
            output_size=7, scales=[1 / 16], sampling_ratio=0, pooler_type="ROIPool"
        ),
        box_head=L(FC6FC7Head)(
            input_shape=L(ShapeSpec)(channels="${....backbone.channels[4]}", height=7, width=7),
            fc_dim=4096,
            dropout=0.5,
        ),
        box_predictor=L(PaperFastRCNNOutputLayers)(
            input_shape=L(ShapeSpec)(channels="${...box_head.fc_dim}"),
            box2box_transform=L(CaffeBox2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
            num_classes="${..num_classes}",
            smooth_l1_beta=1.0,
            test_score_thresh=0.05,
            test_nms_thresh=0.3,
            test_topk_per_image=100,
            decode_growth=1.0,
            decode_in_image=True,
            keep_ties=True,
        ),
    ),
    pixel_mean=[102.9801, 115.9465, 122.7717],  # BGR
    pixel_std=[1.0, 1.0, 1.0],
    input_format="BGR",
    one_by_one=True,  # Caffe's iter_size 2: two single images, gradients averaged
    short_sides=[600],  # of dataloader's images
)

_resize = L(T.ResizeShortestEdge)(short_edge_length=[600], max_size=1000, sample_style="choice")

dataloader = dict(
    train=L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="voc07_trainval"),
        mapper=L(ImageMapper)(
            is_train=True,
            augmentations=[
                _resize,
                L(T.RandomFlip)(horizontal=True),  # in the YAML, each image and its mirrored copy
            ],
            image_format="BGR",
        ),
        total_batch_size=2,
        num_workers=4,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="voc07_test", filter_empty=False),
        mapper=L(ImageMapper)(
            is_train=False,
            augmentations=[_resize],
            image_format="BGR",
        ),
        num_workers=4,
    ),
    evaluator=L(VOCEvaluator)(
        dataset_name="${..test.dataset.names}",
        output_dir="${...train.output_dir}/inference",
        match=">",
    ),
)

optimizer = L(torch.optim.SGD)(
    # lazyconfig_train_net.py adds the model to these arguments.
    params=L(get_default_optimizer_params)(
        base_lr="${..lr}", bias_lr_factor=2.0, weight_decay_norm=0.0
    ),
    lr=0.001,
    momentum=0.9,
    weight_decay=0.0005,
)

lr_multiplier = L(MultiStepParamScheduler)(values=[1.0, 0.1], num_updates=70000, milestones=[50000])

train = dict(
    output_dir="output/faster_rcnn_vgg16_voc_joint",
    # Made by: frcnn weights convert frcnn://vgg16_caffe_imagenet vgg16_caffe_imagenet.pth
    init_checkpoint="vgg16_caffe_imagenet.pth",
    max_iter=70000,
    seed=3,
    amp=dict(enabled=False),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=10000, max_to_keep=100),
    eval_period=10000,
    log_period=20,
    device="cuda",
)
