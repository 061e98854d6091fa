"""
What the commands in ``tools/`` stand on. Each has the file or folder of its own name here:

    benchmark/              ``make bench``: what distillation costs
    calibrate.py            weights of a method's terms, from one pass
    compare/                many runs side by side, their results and the HTML report
    demo.py                 ``make demo``
    doctor/                 whether a distillation is going to help
    export.py               a detector as one file, TorchScript or ONNX
    fetch_lite_weights.py   ImageNet weights of EfficientNet-Lite
    generalize.py           models on datasets they were not trained on
    gpu_day.py              all that needs a GPU, part by part
    originals.py            public photographs in COCO's format (convert_photographs.py)
    results.py              ``make results``: the tables and pictures of the documents, made in
        corrupted.py        what distillation gives on corrupted images
        fewer_steps.py      what is left of it where the teacher runs less
        gains.py            what the flag gives
        log_pictures.py     what a log looks like
        more_to_learn.py    what images without labels, and the teacher's heads, give
        photographs.py      what other methods, single terms and another domain give
        pieces.py           how the pieces fit
        teachers.py         what teachers of several strengths give
        zoo.py              all that was trained
    robustness.py           models on corrupted images
    speed.py                images a second of student and teacher
    slim_checkpoint.py      the student alone, in half precision
    tune/                   a search for a method's settings
    visualize_attention.py  pictures of attention of trained models
    common/                 what several of them use

``check_dataset.py`` and ``split_dataset.py`` stand on :mod:`skd.data`.
"""

from ..runtime import interrupt

interrupt.hide_traceback()  # for what commands import; Ctrl-C after that is theirs
