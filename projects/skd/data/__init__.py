from .shapes import SHAPES_CLASSES, register_shapes

__all__ = ["SHAPES_CLASSES", "register_shapes"]
