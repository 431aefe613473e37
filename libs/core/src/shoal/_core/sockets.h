// System calls of the shell, in the shape that the engine wants them: no exceptions, -errno on failure.
#pragma once
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <vector>
#include "system_calls.h"

namespace shoal {

inline int unix_address(const char* path, sockaddr_un* address) {
  std::memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  size_t n = std::strlen(path);
  if (n >= sizeof address->sun_path) return -ENAMETOOLONG;
  std::memcpy(address->sun_path, path, n + 1);
  return 0;
}

inline void size_buffers(int fd) {
  int bytes = 1 << 20;
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
}

// The other end of a connection may have gone without a word: its machine, or its last packet. Who only waits for an answer would never know.
inline void keep_alive(int fd) {
  int on = 1, idle_s = 15, pause_s = 5, tries = 4;
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &pause_s, sizeof pause_s);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &tries, sizeof tries);
}

inline int unix_connect(const char* path) {
  sockaddr_un address;
  if (int e = unix_address(path, &address)) return e;
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  size_buffers(fd);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0) {
    int e = errno;
    close(fd);
    return -e;
  }
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  return fd;
}

inline int unix_listen(const char* path) {
  sockaddr_un address;
  if (int e = unix_address(path, &address)) return e;
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -errno;
  unlink(path);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0 || listen(fd, 1024) < 0) {
    int e = errno;
    close(fd);
    return -e;
  }
  return fd;
}

// Accepts a peer of this user only.
inline int unix_accept(int listener) {
  int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) return -errno;
  ucred peer;
  socklen_t n = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n) < 0 || (peer.uid != geteuid() && peer.uid != 0)) {
    close(fd);
    return -EPERM;
  }
  size_buffers(fd);
  return fd;
}

inline long send_some(int fd, const char* data, size_t n) {
  counted(SENDS);
  long r = send(fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT);
  return r < 0 ? -errno : r;
}

// Receives bytes and the descriptors that came with them.
inline long receive_some(int fd, char* data, size_t n, std::vector<int>& descriptors) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 8)];
  iovec iov{data, n};
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  counted(RECEIVES);
  long r = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (r < 0) return -errno;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int got;
      std::memcpy(&got, CMSG_DATA(c) + i * sizeof(int), sizeof got);
      descriptors.push_back(got);
    }
  }
  return r;
}

inline long receive_bytes(int fd, char* data, size_t n) {
  counted(RECEIVES);
  long r = recv(fd, data, n, MSG_DONTWAIT);
  return r < 0 ? -errno : r;
}

inline int watch(int epoll, int fd, uint64_t key, bool writable, bool add) {
  epoll_event event{};
  event.events = EPOLLIN | (writable ? uint32_t(EPOLLOUT) : 0u);
  event.data.u64 = key;
  return epoll_ctl(epoll, add ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event) < 0 ? -errno : 0;
}

constexpr int EVENTS_AT_ONCE = 256;
struct Ready {
  epoll_event events[EVENTS_AT_ONCE];
  uint64_t key(int i) const { return events[i].data.u64; }
  uint32_t what(int i) const { return events[i].events; }
};

inline int wait_ready(int epoll, Ready& ready, int timeout_ms) {
  counted(timeout_ms ? SLEEPS : POLLS);
  int n = epoll_wait(epoll, ready.events, EVENTS_AT_ONCE, timeout_ms);
  return n < 0 ? -errno : n;
}

inline void kick(int fd) {
  counted(KICKS);
  uint64_t one = 1;
  ssize_t ignored = write(fd, &one, sizeof one);
  (void)ignored;
}
inline void drain(int fd) {
  counted(DRAINS);
  uint64_t count;
  ssize_t ignored = read(fd, &count, sizeof count);
  (void)ignored;
}

inline void* map_control(int fd, size_t offset) {
  void* page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, long(offset & ~size_t(4095)));
  return page == MAP_FAILED ? nullptr : static_cast<char*>(page) + (offset & 4095);
}

// What map_control gave, or nothing.
inline void unmap_control(void* record) {
  if (record) munmap(reinterpret_cast<void*>(uintptr_t(record) & ~uintptr_t(4095)), 4096);
}

// The word behind the 4,096 records: until when the node's lease holds.
inline const uint64_t* map_lease(int fd) {
  constexpr off_t offset = 4096 * 256;
  struct stat info;
  if (fstat(fd, &info) != 0 || info.st_size < offset + 4096) return nullptr;
  void* page = mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, offset);
  return page == MAP_FAILED ? nullptr : static_cast<const uint64_t*>(page);
}

// Behind that page, 64 bytes for each record: what the process may hold of its job's limits.
inline void* map_allowance(int fd, size_t index) {
  const size_t offset = 4096 * 256 + 4096 + index * 64;
  struct stat info;
  if (fstat(fd, &info) != 0 || size_t(info.st_size) < offset + 64) return nullptr;
  return map_control(fd, offset);
}

}  // namespace shoal
