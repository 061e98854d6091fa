"""
What would serve any Detectron2 project: checkpoints, safe files, the loader, the training step,
preemption, resuming and the record of a run. Nothing in here knows of distillation, and nothing
imports from the package's other rooms.
"""
