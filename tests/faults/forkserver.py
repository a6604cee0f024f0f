"""Runs a stage many times in a row, each time in a process of its own, without importing its packages anew.

Started with a stage's own interpreter: forkserver.py <stage>. Reads one JSON object a line: {"environment": {...}, "log": path}.
Answers one a line: {"code": exit code or minus the signal's number, "bytes": most memory that was used}.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path

# Longer than this is a hang: the kernel ends the process.
SECONDS = 10

stage = sys.argv[1]
command = getattr(importlib.import_module(stage), stage)
for module in sys.argv[2:]:
    importlib.import_module(module)

for line in sys.stdin:
    told = json.loads(line)
    log = Path(told["log"])
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        os.environ.update(told["environment"])
        for descriptor, suffix in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{log}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        try:
            command.main(args=[], prog_name=stage)
            os._exit(0)
        except SystemExit as ended:
            os._exit(ended.code if isinstance(ended.code, int) else 1)
        except BaseException:  # noqa: BLE001 - whatever it is, it is found out
            os._exit(70)
    _, status, usage = os.wait4(child, 0)
    print(json.dumps({"code": os.waitstatus_to_exitcode(status), "bytes": usage.ru_maxrss * 1024}), flush=True)
