"""Mask R-CNN on a ResNet-50, distilled on P2-P6 from one on ViTDet-B."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from skd import DistillRCNN, FrozenTeacher, StructuredDistiller

from ..common.lsj_100ep import dataloader, train
from ..common.transformers import VITDET_URL, mask_rcnn_vitdet

_r50 = model_zoo.get_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py")

model = L(DistillRCNN)(
    student=_r50.model,
    teacher=L(FrozenTeacher)(
        model=mask_rcnn_vitdet("B"),
        weights=VITDET_URL + "mask_rcnn_vitdet_b/f325346929/model_final_61ccd1.pkl",
    ),
    distiller=L(StructuredDistiller)(preset="two_stage"),
)

# the student trains as Detectron2's own baseline does, from scratch, on BGR images
optimizer, lr_multiplier = _r50.optimizer, _r50.lr_multiplier
dataloader.train.mapper.image_format = _r50.model.input_format
