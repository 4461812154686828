"""Times sMLPNet beside its peers and measures their memory, for docs/performance.md and the bars of bars.py.

python benchmarks/speed                                    everything, an hour on 2 idle CPU cores
python benchmarks/speed --resume                           go on with a run that was stopped
python benchmarks/speed --part backbones --only sMLPNet-T Swin-T --shapes 8x224x224 --out work_dirs/try
python benchmarks/speed --check                            the tables and bars of the last run; fails if a bar does
python benchmarks/speed --check --docs                     put them into docs/performance.md

Needs Linux (or a GPU: --device cuda). Results go to results.json below --out, written after each group of rows.
"""

import argparse
import json
import math
import platform
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmsmlp.ops.products import linear
from speed import bars, onnx_file, plan, report, wholes
from speed.backbones import BACKBONES
from speed.matrix_peak import SIZES, peak_rate, product_rates
from speed.timing import Settings, measure
from speed.worker import Row, import_beforehand


def main() -> None:
    args = _arguments()
    path = args.out / "results.json"
    try:
        results = _load(path) if args.check or (args.resume and path.exists()) else []
        if not args.check:
            results = _measure(args, results, path)
        console = Console(width=None if sys.stdout.isatty() else 200)
        for table in report.terminal_tables(results):
            console.print(table)
        if args.docs:
            report.write_page(results)
            console.print(f"wrote {report.PAGE} and {report.COMMITTED.name}")
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"speed: {error}")
    if args.check and any(row[-1] != "yes" for row in report.tables(results)["Bars"][1:]):
        sys.exit("speed: not all bars hold")


def _measure(args: argparse.Namespace, results: list[dict], path: Path) -> list[dict]:
    """Measure what is planned and not among the results; all results together, in the plan's order."""
    groups = list(plan.groups(args.device, args.part, args.shapes, args.modes, args.dtypes, args.only))
    settings = Settings(args.device, args.threads, args.sessions, args.repeats, peak_sizes=tuple(args.peak_sizes))
    torch.set_num_threads(args.threads)
    console = Console(stderr=True)
    if any(row.run == plan.ONNX for group in groups for row in group):
        try:
            settings = replace(settings, onnx=onnx_file.write_file(args.out))
        except (ModuleNotFoundError, ValueError) as error:
            console.print(f"without the rows of onnxruntime: {error}")
            groups = plan.without_onnx(groups)
    import_beforehand(plan.packages(groups))
    where = {"device": args.device, "machine": _machine(args.device), "threads": args.threads}
    where["torch"] = torch.__version__
    console.print(f"{where['machine']}, {args.threads} threads, torch {torch.__version__}")
    if others := [row for row in results if any(row[key] != value for key, value in where.items())]:
        found = f"{others[0]['machine']}, {others[0]['threads']} threads, torch {others[0]['torch']}"
        raise ValueError(f"cannot resume {path}, which is of {found}: leave --resume out to start anew")
    measured = {_key(row): row for row in results}
    if args.device == "cpu":  # what sMLPNet's blocks multiply by
        where["onednn_gflops"] = peak_rate([product_rates("fp32", "cpu", settings.peak_sizes, product=linear)])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(groups))
        for group in groups:
            if not all(_key(vars(row)) in measured for row in group):
                judged = all((row.mode, row.dtype, row.shape) in bars.JUDGED for row in group)
                chosen = replace(settings, limit=math.inf) if judged else settings
                rows = measure(group, chosen, lambda row: progress.update(task, description=_text(row)))
                measured.update((_key(row), row | where) for row in rows)
                report.write_results(list(measured.values()), path)
            progress.advance(task)
    results = [measured[_key(vars(row))] for group in groups for row in group]
    report.write_results(results, path)
    console.print(f"wrote {path}")
    return results


def _key(row: dict) -> tuple:
    return tuple(tuple(row[key]) if key == "shape" else row[key] for key in Row.__dataclass_fields__)


def _text(row: Row) -> str:
    return f"{row.model}, {row.mode}, {row.dtype}, {report.shape_text(row.shape)}"


def _load(path: Path) -> list[dict]:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no {path}: run the benchmark first") from None


def _machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    # The name alone may stand for several: virtual machines say "AMD EPYC" of all its generations.
    cpu = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M))
    if len(cpu) < 3:  # on other processors than x86
        return platform.machine()
    return f"{cpu['model name']} (family {cpu['cpu family']}, model {cpu['model']})"


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"a shape is like 8x224x224 (images, height, width), got {text!r}")
    return tuple(map(int, text.split("x")))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=plan.PARTS, default=plan.PARTS)
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="by name; an unknown one lists them")
    parser.add_argument("--shapes", nargs="+", type=_shape, default=plan.SHAPES, metavar="NxHxW", help="of backbones")
    parser.add_argument("--modes", nargs="+", choices=plan.MODES, default=plan.MODES)
    parser.add_argument("--dtypes", nargs="+", choices=plan.DTYPES, help="of the backbones; on a GPU bf16 alone")
    parser.add_argument("--sessions", type=int, help="fresh processes for each row; default 3, 1 on a GPU")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of a row in all, where they are quick")
    parser.add_argument("--peak-sizes", nargs="+", type=int, default=SIZES, help="rows of the peak's matrix products")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/bench"))
    parser.add_argument("--resume", action="store_true", help="keep the rows that are in results.json")
    parser.add_argument("--check", action="store_true", help="measure nothing, judge the results that are there")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/performance.md, too")
    args = parser.parse_args()
    args.dtypes = args.dtypes or (("bf16",) if args.device == "cuda" else plan.DTYPES)
    args.sessions = args.sessions or (1 if args.device == "cuda" else 3)
    if min(args.sessions, args.repeats, args.threads, *args.peak_sizes) < 1:
        parser.error("--sessions, --repeats, --threads and --peak-sizes take positive numbers")
    names = [*BACKBONES, *wholes.WHOLES]
    if unknown := [name for name in args.only or () if name not in names]:
        parser.error(f"unknown model {unknown[0]!r}, choose from: {'; '.join(names)}")
    return args


if __name__ == "__main__":
    main()
