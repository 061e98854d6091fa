"""Several methods at once."""

from typing import Dict, List, Tuple

from torch import nn

from .base import Distiller, Maps, ObjectBoxes, Shapes, Terms


class CombinedDistiller(Distiller):
    """
    The terms of several methods, those of each times its weight; with a balance, their gradients
    are in proportion to these weights.
    """

    def __init__(self, methods: Dict[str, Tuple[Distiller, float]]):
        """
        Args:
            methods: distiller and weight by name.
        """
        super().__init__()
        self.methods = nn.ModuleDict({name: method for name, (method, _) in methods.items()})
        self.weights = {name: weight for name, (_, weight) in methods.items()}
        self.needs_boxes = any(method.needs_boxes for method in self.methods.values())

    def bind(self, shapes: Shapes) -> None:
        for method in self.methods.values():
            method.balanced, method.student_stride = self.balanced, self.student_stride
            method.bind(shapes)

    def methods_in_use(self) -> List[Distiller]:
        return list(self.methods.values())

    @property
    def has_published_weights(self) -> bool:
        return any(method.has_published_weights for method in self.methods.values())

    def forward(self, student: Maps, teacher: Maps, boxes: ObjectBoxes = None) -> Terms:
        terms: Terms = {}
        for name, method in self.methods.items():
            own = method(student, teacher, boxes if method.needs_boxes else None)
            for term, levels in own.items():
                if term in terms:
                    raise ValueError(f"{name} and another method both have a term '{term}'.")
                self.proportions[term] = self.weights[name] * method.proportions.get(term, 1.0)
                terms[term] = {k: self.weights[name] * loss for k, loss in levels.items()}
        return terms
