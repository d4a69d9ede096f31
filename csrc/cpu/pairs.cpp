#include "pairs.h"

#include <ATen/Context.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <vector>

namespace memmod::cpu {
namespace {

// Rows of one call of the library: their sums, and a panel's part of B, fit in the first-level cache.
constexpr int64_t kBlockRows = 64;
// Of them, rows that are finished at once.
constexpr int64_t kFinishedRows = 8;

// Whether the library's block product works here: it raises where torch was built without it, or where a variable of
// the environment keeps it from the processor's instructions.
bool library_has_pairs() {
  const std::vector<at::BFloat16> a(2, 1.0f), b(2, 1.0f);
  float c = 0.0f;
  try {
    at::native::cpublas::brgemm(1, 1, 2, 2, 1, 1, false, a.data(), b.data(), &c, true);
    at::native::cpublas::brgemm_release(true);
  } catch (const c10::Error&) {
    return false;
  }
  return c == 2.0f;
}

bool processor_has_pairs() {
#ifdef MEMMOD_X86
  return &kernels() == &kAvx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace

bool in_pairs(at::ScalarType type) {
  if (type != at::kBFloat16 || !at::globalContext().userEnabledMkldnn()) {
    return false;
  }
  static const bool works = processor_has_pairs() && library_has_pairs();
  return works;
}

PairCopy::PairCopy(int64_t count, int64_t channels) : stride_(even(channels)) {
  thread_local std::vector<c10::BFloat16> buffer;
  if (static_cast<int64_t>(buffer.size()) < count * stride_) {
    buffer.resize(count * stride_);
  }
  data_ = buffer.data();
  if (stride_ > channels) {
    for (int64_t i = 0; i < count; ++i) {
      row(i)[channels] = 0.0f;
    }
  }
}

void multiply_pairs(
    Rows& rows, const Packed& b, const PairRows& a, int64_t first_panel, int64_t last_panel, const Epilogue& epilogue) {
  const Kernels& kernel = kernels();
  const auto& finish = kernel.tile[static_cast<int>(epilogue.type)];
  thread_local std::vector<float> product;
  thread_local std::vector<const float*> partial;
  product.resize(std::max<size_t>(product.size(), kBlockRows * b.width));
  partial.resize(kBlockRows);
  for (int64_t row = 0; row < kBlockRows; ++row) {
    partial[row] = product.data() + row * b.width;
  }
  // A tile without taps: the product is in its partial sums.
  Tile t = tile_of(epilogue);
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    const int64_t first_column = panel * b.width, columns = std::min(b.width, b.columns - first_column);
    t.partial_column = first_column;
    for (int64_t first = 0; first < rows.count(); first += kBlockRows) {
      const int64_t count = std::min(kBlockRows, rows.count() - first);
      at::native::cpublas::brgemm(
          count, columns, even(b.channels), a.stride, b.width, b.width, false, a.data + first * a.stride,
          b.pair_panel(panel), product.data(), true);
      for (int64_t some = 0; some < count; some += kFinishedRows) {
        const int64_t together = std::min(kFinishedRows, count - some), row = first + some;
        t.partial_in = partial.data() + some;
        t.out = rows.out.data() + row;
        t.kept = epilogue.kept ? rows.kept.data() + row : nullptr;
        t.gates = epilogue.gated ? rows.gates.data() + row : nullptr;
        for (int64_t column = 0; column < columns; column += kernel.columns) {
          t.column = first_column + column;
          t.columns = std::min(kernel.columns, columns - column);
          finish[together - 1](t);
        }
      }
    }
  }
  // The library leaves the processor's tiles set up for its last call.
  at::native::cpublas::brgemm_release(true);
}

}  // namespace memmod::cpu
