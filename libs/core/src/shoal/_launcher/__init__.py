"""`shoal up` and `shoal down`: clusters described by a file, on this machine or on machines over SSH.

- `config`: the file, read and checked; what each node is started with.
- `plan`: from the file, the record and what runs, to what is to be done. No I/O.
- `script`: the shell text that does it on a machine. No I/O.
- `machine`, `ssh`: where it is run. `mounts`: files that travel there.
- `record`: what was launched, in the user's state directory, under a lock.
- `launcher`: carries a plan out.
"""
