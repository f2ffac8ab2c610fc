// Stochastic rounding on tiles: element i takes word i % 4 of block i / 4.
#pragma once
#include "../common/rounding.h"
#include "philox4x32.h"

namespace sopt {
namespace {

// Loads count <= kLanes elements, the others zero.
template <class P, class T>
SOPT_INLINE typename P::F load_some(const T* from, int64_t count) {
  if (count >= P::kLanes) return P::load(from);
  T buffer[P::kLanes] = {};
  if (count > 0) memcpy(buffer, from, size_t(count) * sizeof(T));
  return P::load(buffer);
}

template <class P, class T>
SOPT_INLINE void store_some(T* to, int64_t count, typename P::F value) {
  if (count >= P::kLanes) return P::store(to, value);
  T buffer[P::kLanes];
  P::store(buffer, value);
  if (count > 0) memcpy(to, buffer, size_t(count) * sizeof(T));
}

// Calls body(i, n, words) for i = 0, kLanes, .. < count with the words of the n <= kLanes elements
// from begin + i on; n is a constant but at the end. `begin` is a multiple of kTile.
template <class P, class Body>
SOPT_INLINE void for_each_words(int64_t begin, int64_t count, uint64_t stream, uint64_t seed,
                                Body body) {
  constexpr int64_t N = P::kLanes;
  const RoundKeys keys = round_keys(seed);
  for (int64_t i = 0; i < count; i += 8 * N) {
    Two<typename P::U> words[4];
    block_words<P>(uint64_t(begin + i) / 4, stream, keys, words);
    typename P::F rows[2][4];
    for (int j = 0; j < 4; ++j) {
      rows[0][j] = P::float_of(words[j].a);
      rows[1][j] = P::float_of(words[j].b);
    }
    P::transpose(rows[0]);
    P::transpose(rows[1]);
    if (i + 8 * N <= count)
      for (int64_t j = 0; j < 8; ++j) body(i + j * N, N, P::bits_of(rows[j / 4][j % 4]));
    else
      for (int64_t j = 0; i + j * N < count; ++j)
        body(i + j * N, count - i - j * N, P::bits_of(rows[j / 4][j % 4]));
  }
}

// Elements [begin, end) of a tile of sums, rounded.
template <class P, class T>
SOPT_INLINE void round_tile(const float* tile, T* to, int64_t begin, int64_t end, uint64_t stream,
                            uint64_t seed) {
  for_each_words<P>(begin, end - begin, stream, seed,
                    [&](int64_t i, int64_t n, typename P::U words) SOPT_LAMBDA {
                      const typename P::F x = load_some<P>(tile + i, n);
                      store_some<P>(to + i, n, round_stochastically<P>(T{}, x, words));
                    });
}

}  // namespace
}  // namespace sopt
