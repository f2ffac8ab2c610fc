// Philox on vectors: the words of consecutive blocks, and of arbitrary counters.
#pragma once
#include "../common/philox.h"
#include "twice.h"

namespace sopt {
namespace {

// Words 0 and 2, and words 1 and 3, of the blocks first + 0 .. kLanes / 2 - 1, each block in two
// lanes side by side, in the order that P::zip expects. `first` is a multiple of kLanes / 2, so
// that the blocks have the high word in common.
template <class P>
SOPT_INLINE void block_words(uint64_t first, uint64_t stream, const RoundKeys& keys,
                             typename P::U& even, typename P::U& odd) {
  const typename P::W p0 = P::blocks() * uint64_t{kPhilox0} + uint64_t{kPhilox0} * uint32_t(first);
  typename P::W c[4];
  philox4x32_10<P>(p0, uint32_t(first >> 32), stream, keys, c);
  even = P::interleave(c[0], c[2]);
  odd = P::interleave(c[1], c[3]);
}

// words[i] = Philox(counters[i]), rows of four.
template <class P>
void philox4x32_10_rows(const uint32_t* counters, int64_t n, uint64_t key, uint32_t* words) {
  constexpr int kHalf = P::kLanes / 2;  // 64-bit lanes of a vector
  const RoundKeys keys = round_keys(key);
  for (int64_t i = 0; i < n; i += kHalf) {
    const int rows = n - i < kHalf ? int(n - i) : kHalf;
    typename P::W c[4] = {};
    for (int row = 0; row < rows; ++row)
      for (int j = 0; j < 4; ++j) c[j][row] = counters[4 * (i + row) + j];
    philox_rounds<P>(c, keys, 0);
    for (int row = 0; row < rows; ++row)
      for (int j = 0; j < 4; ++j) words[4 * (i + row) + j] = uint32_t(c[j][row]);
  }
}

}  // namespace
}  // namespace sopt
