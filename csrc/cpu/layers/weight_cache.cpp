#include "layers/weight_cache.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "micro/cpu_features.h"

namespace memmod::cpu {
namespace {

// Elements that a stamp looks at: writes through `.data` leave the version as it was.
constexpr int64_t kProbes = 16;

// What tells one state of a weight from another.
struct Stamp {
  const void* data = nullptr;
  uint32_t version = 0;
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> sizes, strides;
  Isa isa = memmod::cpu::isa();
  std::array<uint32_t, kProbes> probes{};

  bool operator==(const Stamp& other) const = default;
};

Stamp stamp_of(const at::Tensor& weight) {
  Stamp stamp{
      weight.const_data_ptr(), static_cast<uint32_t>(weight.unsafeGetTensorImpl()->version_counter().current_version()),
      weight.scalar_type(), weight.sizes().vec(), weight.strides().vec()};
  const auto* bytes = static_cast<const char*>(stamp.data);
  // The span of elements between the first and the last, in memory order.
  int64_t span = 0;
  for (int64_t d = 0; d < weight.dim(); ++d) {
    span += (weight.size(d) - 1) * weight.stride(d);
  }
  if (weight.numel() != span + 1) {
    return stamp;
  }
  for (int64_t i = 0; i < kProbes; ++i) {
    std::memcpy(
        &stamp.probes[i], bytes + i * span / (kProbes - 1) * weight.element_size(),
        std::min<size_t>(sizeof(uint32_t), weight.element_size()));
  }
  return stamp;
}

struct Entry {
  Stamp stamp;
  std::array<PackedWeight, 2> packed;
};

// Never destroyed: weights may be freed while the process ends.
struct Cache {
  std::mutex mutex;
  std::unordered_map<const void*, Entry> entries;
  CallWhenFreed call_when_freed = nullptr;
};

Cache& cache() {
  static auto* instance = new Cache;
  return *instance;
}

void forget(const void* key) {
  Entry freed;
  const std::lock_guard lock(cache().mutex);
  const auto found = cache().entries.find(key);
  if (found != cache().entries.end()) {
    freed = std::move(found->second);
    cache().entries.erase(found);
  }
}

}  // namespace

void keep_weights_until_freed(CallWhenFreed call_when_freed) {
  cache().call_when_freed = call_when_freed;
}

PackedWeight packed_weight(const at::Tensor& weight, Direction direction, WeightLayout layout) {
  // An inference tensor has no version, and what autograd records is a new tensor in every step.
  if (weight.is_inference() || !weight.is_leaf()) {
    return pack(weight, direction, layout);
  }
  const void* key = weight.unsafeGetTensorImpl();
  const Stamp stamp = stamp_of(weight);
  const auto which = static_cast<size_t>(direction);
  bool known = false;
  {
    const std::lock_guard lock(cache().mutex);
    const auto found = cache().entries.find(key);
    known = found != cache().entries.end();
    if (known && found->second.stamp == stamp) {
      const PackedWeight& held = found->second.packed[which];
      if (held.storage.defined() && held.layout == layout) {
        return held;
      }
    }
  }
  const PackedWeight fresh = pack(weight, direction, layout);
  const CallWhenFreed call_when_freed = cache().call_when_freed;
  if (!known && (call_when_freed == nullptr || !call_when_freed(weight, [key] { forget(key); }))) {
    return fresh;
  }
  PackedWeight freed;
  const std::lock_guard lock(cache().mutex);
  Entry& entry = cache().entries[key];
  if (!(entry.stamp == stamp)) {
    entry = Entry{stamp, {}};
  }
  std::swap(freed, entry.packed[which]);
  entry.packed[which] = fresh;
  return fresh;
}

int64_t packed_bytes() {
  const std::lock_guard lock(cache().mutex);
  int64_t total = 0;
  for (const auto& [key, entry] : cache().entries) {
    for (const PackedWeight& packed : entry.packed) {
      total += packed.storage.defined() ? static_cast<int64_t>(packed.storage.nbytes()) : 0;
    }
  }
  return total;
}

}  // namespace memmod::cpu
