// A hash table that never doubles at once. Whoever queues the task that met a doubling of a million waited for a second: every record is visited, in memory
// that no cache holds.
#pragma once
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>

namespace shoal {

// In parts, each an ordinary table that grows by itself, and each at its own fill, so that the doublings are spread evenly between one size and its double.
// Records stay where they are for life. `Hash` must mix all bits into the upper ones: those choose the part.
template <typename K, typename V, typename Hash>
class Table {
  using Part = std::unordered_map<K, V, Hash>;
  static constexpr unsigned BITS = 6;
  static constexpr size_t PARTS = size_t(1) << BITS;

 public:
  class iterator {
   public:
    iterator() noexcept = default;
    std::pair<const K, V>& operator*() const noexcept { return *at_; }
    std::pair<const K, V>* operator->() const noexcept { return &*at_; }
    iterator& operator++() noexcept {
      ++at_;
      settle();
      return *this;
    }
    bool operator==(const iterator& o) const noexcept { return part_ == o.part_ && at_ == o.at_; }
    bool operator!=(const iterator& o) const noexcept { return !(*this == o); }

   private:
    friend class Table;
    iterator(Part* part, Part* last, typename Part::iterator at) noexcept : part_(part), last_(last), at_(at) {}
    void settle() noexcept {
      while (at_ == part_->end()) {
        if (++part_ == last_) {
          at_ = {};
          return;
        }
        at_ = part_->begin();
      }
    }
    Part* part_ = nullptr;
    Part* last_ = nullptr;
    typename Part::iterator at_{};
  };

  size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return !size_; }
  iterator begin() noexcept {
    iterator first(parts_, parts_ + PARTS, parts_[0].begin());
    first.settle();
    return first;
  }
  iterator end() noexcept { return iterator(parts_ + PARTS, parts_ + PARTS, {}); }
  iterator find(const K& key) noexcept {
    Part& part = part_of(key);
    auto at = part.find(key);
    return at == part.end() ? end() : iterator(&part, parts_ + PARTS, at);
  }
  size_t count(const K& key) noexcept { return part_of(key).count(key); }
  V& operator[](const K& key) {
    Part& part = part_of(key);
    size_t before = part.size();
    V& value = part[key];
    if (part.size() != before) {
      ++size_;
      // A part of number i is full at (PARTS + i + 1) / (2 * PARTS) of its buckets: from half full to full.
      if (2 * PARTS * part.size() >= part.bucket_count() * (PARTS + size_t(&part - parts_) + 1)) part.rehash(2 * part.bucket_count());
    }
    return value;
  }
  size_t erase(const K& key) noexcept {
    size_t erased = part_of(key).erase(key);
    size_ -= erased;
    return erased;
  }

 private:
  Part& part_of(const K& key) noexcept { return parts_[size_t(Hash{}(key)) >> (8 * sizeof(size_t) - BITS)]; }

  Part parts_[PARTS];
  size_t size_ = 0;
};

}  // namespace shoal
