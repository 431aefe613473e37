"""`init(local_mode=True)`: a whole cluster inside this process, for the debugger.

The engine is the real one, connected to nobody: references, values and waits are as on a cluster. What it would send away runs here instead, in the thread
that calls `.remote()`, before that returns; only async actors have a thread, for their event loop.
"""
