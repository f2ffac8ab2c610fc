// Philox on vectors: the words of consecutive blocks, and of arbitrary counters.
#pragma once
#include "../common/philox.h"

namespace sopt {
namespace {

// words[j] = word j of the blocks first + 0 .. kLanes - 1, in the lanes that P::transpose expects.
template <class P>
SOPT_INLINE void block_words(uint64_t first, uint64_t stream, const RoundKeys& keys,
                             typename P::U (&words)[4]) {
  using W = typename P::W;
  const W low = W{} + stream, high = W{} + (stream >> 32);
  const W even = P::even_blocks() + first, odd = P::odd_blocks() + first;
  W a[4] = {even, even >> 32, low, high};
  W b[4] = {odd, odd >> 32, low, high};
  philox4x32_10<P>(a, keys);
  philox4x32_10<P>(b, keys);
  for (int j = 0; j < 4; ++j) words[j] = P::interleave(a[j], b[j]);
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
    philox4x32_10<P>(c, keys);
    for (int row = 0; row < rows; ++row)
      for (int j = 0; j < 4; ++j) words[4 * (i + row) + j] = uint32_t(c[j][row]);
  }
}

}  // namespace
}  // namespace sopt
