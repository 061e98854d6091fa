"""
The detectors of a distillation, and one training step of them.

    meta_arch.py        DistillRCNN: the student's own class, with a teacher and a distiller
    attach.py           makes a student distil: what is checked, paired and bound
    parts.py            the teacher, the distiller and the settings, from a YAML config
    student_class.py    the class a distilling student has, its copies and pickles, the way back
    state.py            what a distilling model knows besides its parts
    distill_step.py     a training step: student, teacher, pairs of maps, terms, balance
    losses.py           the student's losses, read and written back
    unlabelled.py       images without labels in a training step

    features.py         reads feature maps from a module; pairs and checks maps by stride
    partial_forward.py  runs a detector as far as one of its modules; measures what comes out

    teacher.py          FrozenTeacher
    teacher_runner.py   the two ways to run one: its backbone alone, or its own forward
    teacher_speed.py    folded batch norms, half the image size
    heads/              learning from the teacher's heads too
    inherit.py          the teacher's FPN and heads, copied into the student

    build_detector.py   any detector from a config file or a name in the model zoo
    model_zoo.py        configs and checkpoints of Detectron2's model zoo
    load.py             weights: a teacher's all or none
    classes.py          names of the classes a detector was trained on
    timm_backbone.py    timm's networks below Detectron2's FPN
"""
