"""A web page on this machine: upload a photograph, move a slider, see what a model finds at that size.

python tools/web_demo.py CONFIG CHECKPOINT
python tools/web_demo.py configs/demo/mask-rcnn_smlpnet-mini_coins.py work_dirs/demo --port 7861

Seen from this machine only. Through ssh: ssh -L 7860:127.0.0.1:7860 MACHINE, then http://127.0.0.1:7860 here.
"""

import argparse
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a detector's, segmentor's or classifier's config")
    parser.add_argument("checkpoint", help="a checkpoint, or a work directory whose latest one is taken")
    parser.add_argument("--host", default="127.0.0.1", help="address to answer at (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--device", help="such as cpu or cuda:0; default: a GPU where there is one")
    parser.add_argument("--score", type=float, default=0.3, help="least score of a detection (default: %(default)s)")
    args = parser.parse_args()
    try:
        from mmsmlp.web_demo.page import listen, serve
        from mmsmlp.web_demo.predictor import Predictor

        listener = listen(args.host, args.port)
        predictor = Predictor(args.config, args.checkpoint, args.device, args.score)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"web_demo: {error}")
    serve(predictor, listener)


if __name__ == "__main__":
    main()
