"""
What distillation costs, each row as a ratio of two sides measured in turns: tools/benchmark.py.

    run.py       all parts, and what they write
    loss.py      rows about the loss
    step.py      rows about a training step and inference
    methods.py   rows about the training step of every method
    teacher.py   rows about the teacher's forward
    loader.py    rows about data
    scaling.py   rows about several processes
    cases.py     what is measured
    literal.py   the loss as the released code computes it, to compare with
    peer.py      the loss of MMRazor, to compare with
    dataset.py   a dataset of COCO's size
    measure.py   time, memory and operations of a function
"""
