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
  using Q = Twice<Twice<P>>;
  constexpr int64_t N = P::kLanes;
  const RoundKeys keys = round_keys(seed);
  for (int64_t i = 0; i < count; i += 8 * N) {
    typename Q::U even, odd;
    block_words<Q>(uint64_t(begin + i) / 4, stream, keys, even, odd);
    for_each_pack<P>(Q::float_of(even), Q::float_of(odd),
                     [&](int j, typename P::F words) SOPT_LAMBDA {
                       const int64_t at = i + j * N;
                       if (i + 8 * N <= count)
                         body(at, N, P::bits_of(words));
                       else if (at < count)
                         body(at, count - at, P::bits_of(words));
                     });
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
