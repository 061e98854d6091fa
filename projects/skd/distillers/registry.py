"""The methods, by name. Who builds them from a config is ``skd/config/methods.py``."""

from detectron2.utils.registry import Registry

DISTILLER_REGISTRY = Registry("DISTILLER")
DISTILLER_REGISTRY.__doc__ = """
Distillation methods: subclasses of :class:`Distiller`, named by ``MODEL.DISTILLER.NAME``. Each is
called with the config.
"""
