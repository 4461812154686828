"""One row in a process of its own: `worker.py NAME TRIES SEED FOLDER RESULT` writes its outcome to RESULT."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmsmlp.files import atomic_file
from stress.rows import ROWS


def main() -> None:
    name, tries, seed, folder, result = sys.argv[1:]
    row = next(row for row in ROWS if row.name == name)
    outcome = row.run(int(tries), int(seed), Path(folder))
    with atomic_file(result) as new:
        new.write_text(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
