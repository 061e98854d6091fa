#!/usr/bin/env python
"""
A trained detector as one file, TorchScript or ONNX, in the way of Detectron2's
tools/deploy/export_model.py (tracing). Of a config that distils it is the student. The file takes
images of any size and needs neither this project nor Detectron2. It is run beside the model on two
images before the command ends.

    python tools/export.py output/student.yaml --weights output/model_final.pth --format onnx \\
        --output output/export
"""

import sys

from skd.study.common.command import add_setup_arguments, command_parser, run_command
from skd.study.export import FORMATS, export


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument("config_file", metavar="CONFIG", help="a .yaml or a LazyConfig .py")
    parser.add_argument("--weights", default="", help="a checkpoint (default: the config's)")
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="of the file")
    parser.add_argument("--output", required=True, help="folder of model.ts or model.onnx")
    parser.add_argument(
        "--sample-image", default="", help="to trace with (default: the first of the test set)"
    )
    add_setup_arguments(parser)
    parser.add_argument(
        "--opts", nargs="*", default=[], help="KEY VALUE ..., or key=value ... of a LazyConfig"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(lambda: export(argument_parser().parse_args())))
