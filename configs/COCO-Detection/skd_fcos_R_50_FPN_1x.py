"""FCOS, which Detectron2 has as a LazyConfig only, distilled on P3-P6 from a Mask R-CNN."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from skd import DistillRCNN, StructuredDistiller, build_teacher

_fcos = model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py")
dataloader, train = _fcos.dataloader, _fcos.train
optimizer, lr_multiplier = _fcos.optimizer, _fcos.lr_multiplier

model = L(DistillRCNN)(
    student=_fcos.model,
    teacher=L(build_teacher)(config_file="COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml"),
    distiller=L(StructuredDistiller)(preset="one_stage"),
    input_format="${dataloader.train.mapper.image_format}",
)
