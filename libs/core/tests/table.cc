// What a table in parts promises, told by the largest number of records that one insertion ever moves. Ends with 1 and a line of what did not hold.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <unordered_map>

#include "state.h"
#include "table.h"

namespace {

size_t hashed = 0;  // an insertion that makes a part grow hashes each of its records again

struct CountingHash {
  size_t operator()(const shoal::Id16& id) const noexcept {
    ++hashed;
    return shoal::Id16Hash{}(id);
  }
};

shoal::Id16 id_of(uint64_t number) {
  shoal::Id16 id;
  id.low = 0x1234567890abcdefull;  // one process makes them all, and counts
  id.high = number;
  return id;
}

#define HOLDS(what) \
  if (!(what)) { std::printf("line %d: %s\n", __LINE__, #what); return 1; }

}  // namespace

int main() {
  constexpr uint64_t MANY = 400000;
  shoal::Table<shoal::Id16, std::unique_ptr<uint64_t>, CountingHash> table;
  HOLDS(table.empty() && table.begin() == table.end() && table.find(id_of(1)) == table.end());
  size_t most = 0;
  uint64_t* first = nullptr;
  for (uint64_t n = 0; n < MANY; ++n) {
    hashed = 0;
    table[id_of(n)] = std::make_unique<uint64_t>(n);
    if (hashed > most) most = hashed;
    if (!n) first = table.find(id_of(0))->second.get();
  }
  HOLDS(table.size() == MANY && first == table.find(id_of(0))->second.get());
  HOLDS(most < MANY / 32);  // one part of 64, and the few that no two parts share evenly
  uint64_t sum = 0, seen = 0;
  for (auto it = table.begin(); it != table.end(); ++it, ++seen) sum += *(*it).second;
  HOLDS(seen == MANY && sum == MANY * (MANY - 1) / 2);
  for (uint64_t n = 0; n < MANY; n += 2) HOLDS(table.erase(id_of(n)) == 1 && table.erase(id_of(n)) == 0);
  for (uint64_t n = 0; n < MANY; ++n) HOLDS(table.count(id_of(n)) == n % 2);
  HOLDS(table.size() == MANY / 2);
  for (uint64_t n = 1; n < MANY; n += 2) table.erase(id_of(n));
  HOLDS(table.empty() && table.begin() == table.end());
  return 0;
}
