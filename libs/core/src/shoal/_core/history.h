// The tasks that a worker has ended, in a ring that it alone writes: no message and no lock, and the ring outlives the worker. The raylet reads it.
#pragma once
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "state.h"
#include "wire.h"

namespace shoal {

constexpr uint32_t HISTORY_MAGIC = 0x54534948;  // "HIST"
constexpr uint64_t HISTORY_EVENTS = 2048;       // Limit: of one worker; older ones are overwritten

struct TaskEvent {
  char task[16], actor[16];
  uint64_t started_ns, ended_ns;  // CLOCK_MONOTONIC
  uint32_t job, attempt, depth;
  uint8_t kind, status, zeros[2];
  char name[64];
};
static_assert(sizeof(TaskEvent) == 128, "an event is 128 bytes");

struct HistoryRing {
  uint32_t magic, pid;
  uint64_t written;        // events ever; event n lies in slot n % HISTORY_EVENTS
  int64_t wall_offset_ns;  // CLOCK_REALTIME - CLOCK_MONOTONIC
  char worker[16];
  char zeros[4096 - 40];
  TaskEvent events[HISTORY_EVENTS];
};
static_assert(sizeof(HistoryRing) == 4096 + 128 * HISTORY_EVENTS, "rings begin at pages");

inline HistoryRing* map_history(int fd, uint32_t index, uint32_t pid, const Id16& worker) {
  struct stat file;
  if (fstat(fd, &file) || size_t(file.st_size) < (index + 1) * sizeof(HistoryRing)) return nullptr;
  void* at = mmap(nullptr, sizeof(HistoryRing), PROT_READ | PROT_WRITE, MAP_SHARED, fd, long(index * sizeof(HistoryRing)));
  if (at == MAP_FAILED) return nullptr;
  HistoryRing* ring = static_cast<HistoryRing*>(at);
  timespec wall, steady;
  clock_gettime(CLOCK_REALTIME, &wall);
  clock_gettime(CLOCK_MONOTONIC, &steady);
  ring->pid = pid;
  ring->wall_offset_ns = (int64_t(wall.tv_sec) - steady.tv_sec) * 1000000000 + (wall.tv_nsec - steady.tv_nsec);
  store_id(ring->worker, worker);
  ring->magic = HISTORY_MAGIC;
  return ring;
}

// One writer at a time: the engine's mutex is held.
inline void remember_task(HistoryRing* ring, const RunTask& task, uint8_t status, uint64_t now_ns) noexcept {
  uint64_t n = ring->written;
  TaskEvent& event = ring->events[n % HISTORY_EVENTS];
  store_id(event.task, task.id);
  store_id(event.actor, task.actor);
  event.started_ns = task.started_ns;
  event.ended_ns = now_ns;
  event.job = task.job;
  event.attempt = task.attempt;
  event.depth = task.depth;
  event.kind = task.kind;
  event.status = status;
  copy_text(event.name, sizeof(event.name), task.name.data(), task.name.size());
  __atomic_store_n(&ring->written, n + 1, __ATOMIC_RELEASE);
}

}  // namespace shoal
