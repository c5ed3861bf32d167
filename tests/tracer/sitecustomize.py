"""Notes which functions of ours a process and its children run, for `tests/test_notebooks.py`.

Python imports this by itself where the folder is on PYTHONPATH. Each process leaves a file below
FOREDRAFT_TRACE with a line per function: its file and first line, or 0 for a module's own body.
"""

import atexit
import cProfile
import inspect
import os
import threading
import time
from pathlib import Path
from types import CodeType, FrameType

OTHER_THREADS: set[CodeType] = set()
SECONDS = 2.0
PROFILE = cProfile.Profile(subcalls=False, builtins=False)


def note(frame: FrameType, event: str, argument: object) -> None:
    """Note a call in a thread, which the profiler of the main one does not see."""
    if event == "call":
        OTHER_THREADS.add(frame.f_code)


def write() -> None:
    """Leave what has run so far."""
    codes = {each.code for each in PROFILE.getstats() if isinstance(each.code, CodeType)}
    lines = set()
    for code in codes | OTHER_THREADS:
        if code.co_name == "<module>":
            lines.add(f"0 {code.co_filename}")
        elif code.co_flags & inspect.CO_OPTIMIZED:  # a class's body runs with its module
            lines.add(f"{code.co_firstlineno} {code.co_filename}")
    folder = Path(os.environ["FOREDRAFT_TRACE"])
    part = folder / f".{os.getpid()}.part"
    part.write_text("\n".join(sorted(lines)))
    part.replace(folder / f"{os.getpid()}.txt")


def keep_writing() -> None:
    """Leave it again and again: a kernel may be killed before it could do so at its end."""
    while True:
        time.sleep(SECONDS)
        write()


if "FOREDRAFT_TRACE" in os.environ:
    atexit.register(write)
    threading.setprofile(note)
    threading.Thread(target=keep_writing, daemon=True).start()
    PROFILE.enable()
