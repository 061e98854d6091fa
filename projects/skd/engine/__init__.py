from .launch import launch
from .lazy import do_test, do_train
from .trainer import SKDTrainer, wrap_data_parallel

__all__ = ["SKDTrainer", "do_test", "do_train", "launch", "wrap_data_parallel"]
