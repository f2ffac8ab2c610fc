// Philox on vectors: the words of consecutive blocks, and of arbitrary counters.
#pragma once
#include "../common/philox.h"
#include "twice.h"

namespace sopt {
namespace {

// words[j] = word j of the blocks first + 0 .. kLanes - 1, in the lanes that P::transpose expects.
// `first` is a multiple of kLanes, so that the blocks have the high word in common.
template <class P>
SOPT_INLINE void block_words(uint64_t first, uint64_t stream, const RoundKeys& keys,
                             typename P::U (&words)[4]) {
  const Two<typename P::W> low = {P::even_blocks() + first, P::odd_blocks() + first};
  Two<typename P::W> c[4];
  philox4x32_10<Twice<P>>(low, uint32_t(first >> 32), stream, keys, c);
  for (int j = 0; j < 4; ++j) words[j] = P::interleave(c[j].a, c[j].b);
}

// The same of two packs: `first` is a multiple of 2 * kLanes.
template <class P>
SOPT_INLINE void block_words(uint64_t first, uint64_t stream, const RoundKeys& keys,
                             Two<typename P::U> (&words)[4]) {
  const Two<typename P::W> low = {P::even_blocks() + first, P::odd_blocks() + first};
  Two<Two<typename P::W>> c[4];
  philox4x32_10<Twice<Twice<P>>>({low, low + uint64_t{P::kLanes}}, uint32_t(first >> 32), stream,
                                 keys, c);
  for (int j = 0; j < 4; ++j)
    words[j] = {P::interleave(c[j].a.a, c[j].a.b), P::interleave(c[j].b.a, c[j].b.b)};
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
