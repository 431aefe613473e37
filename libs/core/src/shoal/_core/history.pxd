from libc.stdint cimport uint8_t, uint32_t, uint64_t
from shoal._core.state cimport Id16, RunTask

cdef extern from "history.h" namespace "shoal" nogil:
    cdef cppclass HistoryRing:
        pass
    HistoryRing* map_history(int, uint32_t, uint32_t, const Id16&)
    void remember_task(HistoryRing*, const RunTask&, uint8_t, uint64_t)
