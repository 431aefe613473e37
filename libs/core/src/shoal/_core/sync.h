// What Cython cannot say: a mutex that nogil code can hold, futexes, the monotonic clock.
#pragma once
#include <cerrno>
#include <cstdint>
#include <ctime>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "system_calls.h"

namespace shoal {

class Mutex {
 public:
  Mutex() {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&mutex_, &attributes);
    pthread_mutexattr_destroy(&attributes);
  }
  ~Mutex() { pthread_mutex_destroy(&mutex_); }
  void lock() noexcept { pthread_mutex_lock(&mutex_); }
  void unlock() noexcept { pthread_mutex_unlock(&mutex_); }

 private:
  pthread_mutex_t mutex_;
};

inline uint64_t now_ns() noexcept {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return uint64_t(t.tv_sec) * 1000000000ull + uint64_t(t.tv_nsec);
}

// Waits while *word == expected, at most timeout_ns. Returns -EINTR when a signal came.
inline int futex_wait(int32_t* word, int32_t expected, int64_t timeout_ns) noexcept {
  counted(PARKS);
  timespec t;
  t.tv_sec = timeout_ns / 1000000000;
  t.tv_nsec = timeout_ns % 1000000000;
  long r = syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, timeout_ns < 0 ? nullptr : &t, nullptr, 0);
  return r < 0 ? -errno : 0;
}

inline void futex_wake(int32_t* word, int32_t count) noexcept {
  counted(WAKES);
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

inline void store_release(int32_t* word, int32_t value) noexcept { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
inline int32_t load_acquire(int32_t* word) noexcept { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

inline void cpu_relax() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace shoal
