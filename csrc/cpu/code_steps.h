// Changes of codes along one Rademacher seed. As |v| is one number for a whole row, a change is a
// whole number or one more, up to the sign: one comparison of the random word, and bytes.
#pragma once
#include "add_noise.h"

namespace sopt {
namespace {

// What a table of one value per code of a tile was filled for: the tile, and its row if it is one.
struct Filled {
  int64_t begin = -1, row = -1;
};

// Calls body(row, i, stop) for the parts of rows in [begin, end), the last until begin + kTile; not
// if the table has these values already.
template <class Body>
SOPT_INLINE void for_each_row(const sopt_codes& x, int64_t begin, int64_t end, Filled& filled,
                              Body body) {
  const int64_t length = x.numel / x.rows, first = begin / length, last = (end - 1) / length;
  if (begin == filled.begin || (first == last && first == filled.row)) return;
  filled = {begin, first == last ? first : -1};
  for (int64_t row = first, i = begin; row <= last; ++row) {
    const int64_t stop = row < last ? (row + 1) * length : begin + kTile;
    body(row, i, stop);
    i = stop;
  }
}

// Of each code of a tile: |change| = high, less 1 where the random word is <= limit.
struct Steps {
  alignas(64) uint32_t limits[kTile];
  alignas(64) int8_t highs[kTile];
  Filled filled;
};

// |v| = |coefficient / scale|, of which stochastic_integer() gives the whole part, or one more for
// words w with (w >> 8) + fraction * 2^24 >= 2^24.
SOPT_INLINE void fill_steps(const sopt_codes& x, int64_t begin, int64_t end, float coefficient,
                            int headroom, Steps& steps) {
  for_each_row(x, begin, end, steps.filled, [&](int64_t row, int64_t i, int64_t stop) {
    const float v = __builtin_fabsf(coefficient / x.scales[row]);
    const float size = v < float(headroom) ? v : float(headroom);
    const int whole = int(size);
    const uint32_t fraction = uint32_t((size - float(whole)) * 0x1p24f);
    const uint32_t limit = (((1u << 24) - fraction) << 8) - 1u;
    for (int64_t j = i; j < stop; ++j) steps.limits[j - begin] = limit;
    memset(steps.highs + (i - begin), whole + 1, size_t(stop - i));
  });
}

// deltas = the changes of count <= kTile codes from `begin` on; `flip` is 255 where the coefficient
// is negative, else 0. Writes whole vectors of `deltas`, which has kTile elements.
template <class P>
SOPT_INLINE void step_deltas(const Steps& steps, uint8_t flip, int64_t begin, int64_t count,
                             uint64_t stream, uint64_t seed, uint64_t rounding_seed,
                             int8_t* deltas) {
  using B = typename P::B;
  using U = typename P::U;
  constexpr int N = P::kLanes;
  alignas(64) uint32_t signs[kTile / 32];
  alignas(64) uint8_t less[kTile];
  const RoundKeys keys = round_keys(seed);
  for (int64_t i = 0; i < count; i += 128 * N) {
    typename Twice<P>::U even, odd;
    block_words<Twice<P>>(uint64_t(begin + i) / 128, stream, keys, even, odd);
    for_each_pack<P>(Twice<P>::float_of(even), Twice<P>::float_of(odd),
                     [&](int j, typename P::F words)
                         SOPT_LAMBDA { memcpy(signs + i / 32 + j * N, &words, sizeof words); });
  }
  for_each_words<P>(begin, count, stream, rounding_seed,
                    [&](int64_t i, int64_t, U words) SOPT_LAMBDA {
                      U limits;
                      memcpy(&limits, steps.limits + i, sizeof limits);
                      P::store_at_most(less + i, words, limits);
                    });
  for (int64_t i = 0; i < count; i += int64_t(sizeof(B))) {
    B size, one;
    memcpy(&size, steps.highs + i, sizeof size);
    memcpy(&one, less + i, sizeof one);
    const B negative = P::bytes_of_bits((const uint8_t*)signs + i / 8) ^ flip;
    const B delta = ((size + one) ^ negative) - negative;
    memcpy(deltas + i, &delta, sizeof delta);
  }
}

}  // namespace
}  // namespace sopt
