"""Throw damaged files at every reader and count what must not happen: the work behind `tools/fuzz.py`.

A target (`targets.py`) names a reader, writes files to start from, and says how they are damaged. `run.py` makes the
inputs and feeds them to worker processes (`worker.py`), so that a reader that crashes, hangs or takes all memory is a
line of a table and not the end of the run. A new reader joins by one `@target` in one of the modules named in `TOPICS`.
"""
