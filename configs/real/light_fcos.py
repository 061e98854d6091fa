"""
FCOS on the backbone and photographs of light_retinanet.yaml. Detectron2 has FCOS as a LazyConfig
only. The datasets are given on the command line.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler

from skd.modeling.timm_backbone import TimmBackbone

_fcos = model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py")
dataloader, train = _fcos.dataloader, _fcos.train
optimizer, lr_multiplier = _fcos.optimizer, _fcos.lr_multiplier

model = _fcos.model
model.pixel_mean = model.pixel_std = [127.5, 127.5, 127.5]
model.num_classes = 13
model.backbone.bottom_up = L(TimmBackbone)(
    name="tf_efficientnet_lite0", weights="weights/tf_efficientnet_lite0.pth", norm="FrozenBN"
)
model.backbone.out_channels = model.backbone.top_block.in_channels = 64
model.backbone.norm = "GN"
for _shape in model.head.input_shape:
    _shape.channels = 64
model.head.conv_dims = [64, 64]

for _mapper in (dataloader.train.mapper, dataloader.test.mapper):
    _mapper.augmentations[0].update(short_edge_length=128, max_size=128)
dataloader.train.mapper.update(image_format="RGB", use_instance_mask=False)
dataloader.train.update(total_batch_size=4, num_workers=1)
dataloader.test.num_workers = 1

optimizer.lr = 0.01
# those of light_retinanet.yaml's studies: WarmupMultiStepLR with the steps 800 and 1000 of 1500
lr_multiplier.scheduler = L(MultiStepParamScheduler)(
    values=[1.0, 0.1, 0.01], milestones=[800, 1000, 1500]
)
lr_multiplier.warmup_length = 100 / 1500
train.update(init_checkpoint="", device="cpu", max_iter=1500)
train.checkpointer.period = 500
