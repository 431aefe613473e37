// The shell's system calls, counted where they are made: what a call costs can be told without a clock. By threads that hold no lock, so
// the counts are atomic; an addition is a hundredth of the system call beside it.
#pragma once
#include <cstdint>

namespace shoal {

enum SystemCall {
  SENDS,     // bytes to a socket
  RECEIVES,  // bytes from a socket
  POLLS,     // epoll_wait that does not sleep: a waiter that spins, an event loop that looks
  SLEEPS,    // epoll_wait until something comes
  PARKS,     // futex: a thread waits for another one
  WAKES,     // futex: a thread wakes another one
  KICKS,     // eventfd: whoever sleeps in epoll_wait is woken
  DRAINS,    // eventfd: a kick is taken away
  SYSTEM_CALLS,
};

inline uint64_t system_calls[SYSTEM_CALLS];

inline void counted(SystemCall call) noexcept { __atomic_fetch_add(&system_calls[call], 1, __ATOMIC_RELAXED); }
inline uint64_t count_of(int call) noexcept { return __atomic_load_n(&system_calls[call], __ATOMIC_RELAXED); }

}  // namespace shoal
