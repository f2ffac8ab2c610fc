// Kernels of perturb_int8 and update_int8: codes change by whole numbers, never dequantized.
#pragma once
#include "code_steps.h"

namespace sopt {
namespace {

// The scales of the codes of a tile.
struct Scales {
  alignas(64) float each[kTile];
  Filled filled;
};

SOPT_INLINE void fill_scales(const sopt_codes& x, int64_t begin, int64_t end, Scales& scales) {
  for_each_row(x, begin, end, scales.filled, [&](int64_t row, int64_t i, int64_t stop) {
    for (int64_t j = i; j < stop; ++j) scales.each[j - begin] = x.scales[row];
  });
}

// deltas = the changes of the codes [begin, end), at most a tile. Writes whole vectors of `deltas`,
// which has kTile elements.
template <class P, class Noise>
SOPT_INLINE void code_deltas(const sopt_codes& x, int64_t begin, int64_t end, const Sum& sum,
                             int headroom, uint64_t rounding_seed, Steps& steps, Scales& scales,
                             int8_t* deltas) {
  const int64_t count = end - begin;
  if (std::is_same<Noise, Rademacher>::value && sum.terms == 1) {
    fill_steps(x, begin, end, sum.coefficients[0], headroom, steps);
    return step_deltas<P>(steps, sum.coefficients[0] < 0 ? 255 : 0, begin, count, x.stream,
                          sum.seeds[0], rounding_seed, deltas);
  }
  alignas(64) float tile[kTile] = {};
  fill_scales(x, begin, end, scales);
  add_terms<P, Noise>(tile, tile, begin, end, x.stream, sum, 0, sum.terms, nullptr);
  for_each_words<P>(begin, count, x.stream, rounding_seed,
                    [&](int64_t i, int64_t, typename P::U words) SOPT_LAMBDA {
                      const typename P::F v = P::load(tile + i) / P::load(scales.each + i);
                      const typename P::F delta = stochastic_integer<P>(v, float(headroom), words);
                      P::store(deltas + i, delta);
                    });
}

template <class P, class Noise>
void perturb_int8(const sopt_codes& x, int64_t begin, int64_t end, const Sum& sum, int headroom,
                  uint64_t rounding_seed) {
  using B = typename P::B;
  constexpr int64_t N = sizeof(B);
  alignas(64) int8_t deltas[kTile];
  Steps steps;
  Scales scales;
  for (; begin < end; begin += kTile) {
    const int64_t stop = begin + kTile < end ? begin + kTile : end, count = stop - begin;
    code_deltas<P, Noise>(x, begin, stop, sum, headroom, rounding_seed, steps, scales, deltas);
    int8_t* codes = x.codes + begin;
    for (int64_t i = 0; i < count; i += N) {
      B change, code = {};
      memcpy(&change, deltas + i, sizeof change);
      if (i + N <= count) {
        memcpy(&code, codes + i, sizeof code);
        code += change;
        memcpy(codes + i, &code, sizeof code);
      } else {
        memcpy(&code, codes + i, size_t(count - i));
        code += change;
        memcpy(codes + i, &code, size_t(count - i));
      }
    }
  }
}

// tile = sum_n coefficients[n] delta_n, the changes that perturb_int8 made under each seed.
template <class P, class Noise>
SOPT_INLINE void realised_sum(const sopt_codes& x, int64_t begin, int64_t end,
                              const CodeUpdate& update, Steps& steps, Scales& scales, float* tile) {
  alignas(64) int8_t deltas[kTile];
  memset(tile, 0, kTile * sizeof(float));
  for (int64_t n = 0; n < update.terms; ++n) {
    const Sum sum = sum_of(update.seeds + n, &update.eps, 1);
    code_deltas<P, Noise>(x, begin, end, sum, update.headroom, update.delta_rounding_seeds[n],
                          steps, scales, deltas);
    const typename P::F c = P::splat(update.coefficients[n]);
    for (int64_t i = 0; i < end - begin; i += P::kLanes) {
      const typename P::F delta = P::load(deltas + i);
      P::store(tile + i, P::fma(c, delta, P::load(tile + i)));
    }
  }
  memset(tile + (end - begin), 0, size_t(begin + kTile - end) * sizeof(float));
}

// Returns how many codes were clamped.
template <class P, class Noise>
int64_t update_int8(const sopt_codes& x, int64_t begin, int64_t end, const CodeUpdate& update) {
  using F = typename P::F;
  alignas(64) float tile[kTile];
  Steps steps;
  Scales scales;
  const F limit = P::splat(float(127 - update.headroom));
  int64_t clamped = 0;
  for (; begin < end; begin += kTile) {
    const int64_t stop = begin + kTile < end ? begin + kTile : end, count = stop - begin;
    realised_sum<P, Noise>(x, begin, stop, update, steps, scales, tile);
    int8_t* codes = x.codes + begin;
    typename P::I outside = {};  // -1 for each code that was clamped
    for_each_words<P>(begin, count, x.stream, update.rounding_seed,
                      [&](int64_t i, int64_t n, typename P::U words) SOPT_LAMBDA {
                        const F change = stochastic_integer<P>(P::load(tile + i), 255.0f, words);
                        const F moved = load_some<P>(codes + i, n) + change;
                        const auto above = moved > limit, below = moved < -limit;
                        store_some<P>(codes + i, n, above ? limit : below ? -limit : moved);
                        outside += above | below;
                      });
    for (int lane = 0; lane < P::kLanes; ++lane) clamped -= outside[lane];
  }
  return clamped;
}

}  // namespace
}  // namespace sopt
