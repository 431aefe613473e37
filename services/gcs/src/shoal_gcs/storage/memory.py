"""Records in this process's memory: for tests, and for clusters that need not survive a restart of the control store."""

from __future__ import annotations

from .backend import Backend, Batch, Claim, Fenced, Opened, lost


class Cells:
    """What stays when a back end is opened again, in the place of a disk."""

    def __init__(self) -> None:
        self.epoch = 0
        self.cluster_id = b""
        self.records: dict[tuple[str, bytes], bytes] = {}


class MemoryBackend(Backend):
    name = "memory"
    blocks = False

    def __init__(self, cells: Cells | None = None) -> None:
        self._cells = cells or Cells()
        self._epoch = 0

    def open(self, fresh_cluster_id: bytes, *, expected: bytes = b"", claim: Claim | None = None) -> Opened:
        cells = self._cells
        if expected and cells.cluster_id != expected:
            raise lost("this process's memory", expected, cells.cluster_id)
        cells.epoch += 1
        cells.cluster_id = cells.cluster_id or fresh_cluster_id
        self._epoch = cells.epoch
        opened = Opened(cells.epoch, cells.cluster_id)
        for (table, key), record in cells.records.items():
            opened.records.setdefault(table, []).append((key, record))
        return opened

    def apply(self, batch: Batch) -> None:
        if self._epoch != self._cells.epoch:
            raise Fenced(f"epoch {self._epoch} was replaced by {self._cells.epoch}")
        for place, record in batch.items():
            if record is None:
                self._cells.records.pop(place, None)
            else:
                self._cells.records[place] = record

    def close(self) -> None:
        pass
