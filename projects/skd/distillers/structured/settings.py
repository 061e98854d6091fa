"""The keys ``MODEL.DISTILLER.STRUCTURED.*``, and the presets. docs/method.md explains them."""

from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Union

from ..attention import MASK_FUSIONS, POOLS, REDUCTIONS
from ..settings import Settings, by_stride, choice, flag, number
from .non_local import AFFINITIES, NORMS

_NON_LOCAL_TWO_STAGE = {"non_local_width": {4: 64, 8: 64}, "key_stride": {4: 8, 8: 4}}
_NON_LOCAL_ONE_STAGE = {"non_local_width": {8: 64, 16: 64}, "key_stride": {8: 8, 16: 4}}
_CODE = {"mask_fusion": "mean_of_softmaxes", "pool": "mean", "adapter": True}
_PAPER = {"mask_fusion": "softmax_of_sum", "pool": "abs", "adapter": False, "channel_mask": True}

PRESETS: Dict[str, Dict[str, Any]] = {
    # the authors' released training code
    "two_stage": {
        "temperature": 0.5, "weight_am": 7e-5, "weight_at": 4e-3, "weight_nl": 7e-5,
        "channel_mask": False, **_CODE, **_NON_LOCAL_TWO_STAGE,
    },
    "one_stage": {
        "temperature": 0.1, "weight_am": 4.2e-4, "weight_at": 2.4e-2, "weight_nl": 4.2e-4,
        "channel_mask": True, **_CODE, **_NON_LOCAL_ONE_STAGE,
    },
    # the paper's text
    "two_stage_paper": {
        "temperature": 0.1, "weight_am": 7e-5, "weight_at": 4e-3, "weight_nl": 7e-5,
        **_PAPER, **_NON_LOCAL_TWO_STAGE,
    },
    "one_stage_paper": {
        "temperature": 0.5, "weight_am": 4e-4, "weight_at": 2e-2, "weight_nl": 4e-4,
        **_PAPER, **_NON_LOCAL_ONE_STAGE,
    },
}  # fmt: skip

ByStride = Union[Mapping[int, int], Sequence[Tuple[int, int]]]


@dataclass(frozen=True)
class StructuredSettings(Settings):
    """None: as the preset has it."""

    # "two_stage" and "one_stage" are the released code's settings, "two_stage_paper" and
    # "one_stage_paper" the paper's text. "auto": "two_stage" if the student's finest map has
    # stride 4 or less (P2-P6), distilled or not, else "one_stage" (P3-P7).
    preset: str = choice("auto", ("auto", *PRESETS))
    # Softmax temperature of the attention masks.
    temperature: Optional[float] = number(None, positive=True)
    # Weights of the attention-masked feature loss, attention transfer, and non-local loss.
    # A term of weight 0 is not computed and has no parameters.
    weight_am: Optional[float] = number(None)
    weight_at: Optional[float] = number(None)
    weight_nl: Optional[float] = number(None)
    # "mean_of_softmaxes" (released code) or "softmax_of_sum" (paper).
    mask_fusion: Optional[str] = choice(None, MASK_FUSIONS)
    # Whether the feature loss is weighted by the channel mask too.
    channel_mask: Optional[bool] = flag(None)
    # What attention transfer compares: "mean" or "abs" (mean of absolute values).
    pool: Optional[str] = choice(None, POOLS)
    # Whether attention transfer sends the student's side through a learned layer.
    adapter: Optional[bool] = flag(None)
    # "sum": the paper's norms over the whole batch, which grow with batch and image size.
    # "mean": independent of both, and equal to "sum" for two images of 800x1344.
    # None: "mean" with MODEL.DISTILLER.BALANCE, else "sum".
    reduction: Optional[str] = choice(None, REDUCTIONS)
    # "dot_product" (released code) or "embedded_gaussian" (softmax attention).
    affinity: str = choice("dot_product", AFFINITIES, key="NON_LOCAL.AFFINITY")
    # Norm at the end of the block: "BN", "SyncBN", "naiveSyncBN" (for CPUs), "GN", "" for none.
    non_local_norm: str = choice("BN", NORMS, key="NON_LOCAL.NORM")
    # Width of the embeddings: list of [stride, channels]. Other strides: half the channels.
    non_local_width: Optional[ByStride] = by_stride(None, key="NON_LOCAL.WIDTHS")
    # Max-pooling of keys and values: list of [stride, pool]. Other strides: 2.
    key_stride: Optional[ByStride] = by_stride(None, key="NON_LOCAL.KEY_STRIDES")
