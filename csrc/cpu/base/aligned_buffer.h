// Memory that is aligned to lines of the cache.
#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace memmod::cpu {

// A thread's memory that tiles are loaded from: half as fast where it is not aligned to lines.
template <typename T>
class AlignedBuffer {
 public:
  T* get(int64_t count) {
    if (count > size_) {
      const size_t bytes = ((count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment);
      data_.reset(static_cast<T*>(std::aligned_alloc(kAlignment, bytes)));
      TORCH_CHECK(data_ != nullptr, "memmod: no memory for ", bytes, " bytes");
      size_ = count;
    }
    return data_.get();
  }

 private:
  static constexpr size_t kAlignment = 64;
  struct Free {
    void operator()(T* p) const {
      std::free(p);
    }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

}  // namespace memmod::cpu
