"""Writes a config's model as an ONNX file that runs at every input size, and checks it against PyTorch.

python tools/export_onnx.py configs/demo/upernet_smlpnet-mini_coins.py work_dirs/demo-segmentation --out upernet.onnx
"""

import argparse
import sys

from mmengine.config import DictAction
from mmengine.logging import MMLogger

from mmsmlp.onnx_export.parts import PARTS, read_part
from mmsmlp.onnx_export.quantize import training_images
from mmsmlp.onnx_export.write import OPSET, PRECISIONS, export_onnx
from mmsmlp.running import read_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a classifier's, detector's or segmentor's config")
    parser.add_argument("checkpoint", nargs="?", help="that you trust, or a work directory; else the weights are new")
    parser.add_argument("--out", required=True, help="the file to write; replaced when the new one has passed")
    parser.add_argument("--part", choices=PARTS, default="model", help="default: %(default)s")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: %(default)s")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="changes to the config, as key=value")
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel("WARNING")
    try:
        config = read_config(args.config, args.cfg_options)
        part = read_part(config, args.checkpoint, args.part)
        images = training_images(config) if args.precision == "int8" else ()
        errors = export_onnx(part, args.out, args.precision, images)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"export_onnx: {error}")
    print(f"wrote {args.out}: {args.part} in {args.precision}, opset {OPSET}, outputs {', '.join(part.outputs)}")
    if args.checkpoint is None:
        print("no checkpoint was given: the weights are new")
    for (count, height, width), error in errors.items():
        print(f"{count} x {height} x {width}: differs from PyTorch by {error:.1e} of the largest value")


if __name__ == "__main__":
    main()
