from .launch import launch
from .lazy import distill_lazy, do_test, do_train
from .trainer import SKDTrainer, wrap_data_parallel

__all__ = ["SKDTrainer", "distill_lazy", "do_test", "do_train", "launch", "wrap_data_parallel"]
