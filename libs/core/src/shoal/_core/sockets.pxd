# sockets.h, and the numbers of the system's that go with it.
from libc.stdint cimport uint32_t, uint64_t
from shoal._core.std cimport vector

cdef extern from "sockets.h" namespace "shoal" nogil:
    void keep_alive(int)
    int unix_connect(const char*)
    int unix_listen(const char*)
    int unix_accept(int)
    long send_some(int, const char*, size_t)
    long receive_some(int, char*, size_t, vector[int]&)
    long receive_bytes(int, char*, size_t)
    int watch(int, int, uint64_t, bint, bint)
    cdef cppclass Ready:
        uint64_t key(int)
        uint32_t what(int)
    int wait_ready(int, Ready&, int)
    void kick(int)
    void drain(int)
    void* map_control(int, size_t)
    void unmap_control(void*)
    const uint64_t* map_lease(int)
    void* map_allowance(int, size_t)
    uint64_t count_of(int)
cdef extern from "sockets.h" nogil:
    int EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP
    int epoll_create1(int)
    int eventfd(unsigned int, int)
    int EPOLL_CLOEXEC, EFD_CLOEXEC, EFD_NONBLOCK
    int EAGAIN, EINTR
