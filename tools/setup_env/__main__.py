"""Entry point of `python3 tools/setup_env`; it has to parse under any Python in order to say which one it needs."""

import os
import sys

if sys.version_info < (3, 8):
    sys.exit(
        "setup: Python %d.%d (%s) is too old even to run the set-up; install Python 3.11 and name it: "
        "make setup PYTHON=python3.11" % (sys.version_info[0], sys.version_info[1], sys.executable)
    )

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from setup_env.cli import main

if __name__ == "__main__":
    sys.exit(main())
