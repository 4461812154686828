"""Makes the virtual environment of this repository: `python3 tools/setup_env --help`.

Standard library only, since it runs before anything is installed; and in the syntax of Python 3.8, since the Python
that starts it need not be the one that the environment gets. Each file has one subject:

- `stacks`: the two sets of packages, as data;
- `preflight`: what the machine must have (a fitting Python, headers, a compiler, disk space), before any download;
- `environment`: the virtual environment, its lock and its stamp;
- `process`: child processes, their progress, and their failures in one clear line;
- `sources`: the pins, with or without hashes, as pip's options;
- `operators`: CPU or CUDA, and mmcv with its compiled operators;
- `verify`: run inside the environment: does everything import, and do the operators work;
- `constraints`: regenerates the pins in `constraints/`;
- `audit`: asks a vulnerability service about the pins;
- `cli`: the order of the steps.
"""
