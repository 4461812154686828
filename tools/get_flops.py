"""Counts a config's parameters and multiply-accumulates, split by what they are spent on.

python tools/get_flops.py configs/demo/mask-rcnn_smlpnet-mini_coins.py --shape 153 384
"""

import argparse
import sys

from mmengine.config import Config, DictAction
from rich.console import Console
from rich.table import Table

from mmsmlp.flops import count_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a classifier's, detector's or segmentor's config")
    parser.add_argument("--shape", type=int, nargs="+", default=[224], metavar="PIXELS", help="H W, or one number")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="changes to the config, as key=value")
    args = parser.parse_args()
    if len(args.shape) > 2 or min(args.shape) < 1:
        parser.error(f"--shape takes one or two positive numbers, got {args.shape}")
    try:
        config = Config.fromfile(args.config)
        config.merge_from_dict(args.cfg_options or {})
        count = count_config(config, (args.shape[0], args.shape[-1]))
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: parts of the model do not fit each other
        sys.exit(f"get_flops: {error}")
    shape = " x ".join(map(str, count.input_shape))
    table = Table(title=f"{args.config}\ninput {shape}, {count.parameters:,} parameters")
    for heading in ("part", "GMAC", "share"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for part, macs in {**count.macs, "all": count.total_macs}.items():
        table.add_row(part, f"{macs / 1e9:.3f}", f"{macs / count.total_macs:.1%}", end_section=part == "head")
    Console().print(table)


if __name__ == "__main__":
    main()
