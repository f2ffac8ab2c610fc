// Kernels of perturb_int8 and update_int8: codes change by whole numbers, never dequantized.
#pragma once
#include <type_traits>

#include "add_noise.h"

namespace sopt {
namespace {

template <class P>
struct CodeLanes {
  typedef int8_t Lanes __attribute__((vector_size(P::kLanes)));

  SOPT_INLINE typename P::F load(const int8_t* from, int64_t count) {
    Lanes x = {};
    count >= P::kLanes ? memcpy(&x, from, sizeof x) : memcpy(&x, from, size_t(count));
    return P::to_float(__builtin_convertvector(x, typename P::I));
  }
  // Wraps modulo 256, so that the opposite change comes back even past the end of the range.
  SOPT_INLINE void store(int8_t* to, int64_t count, typename P::F value) {
    const Lanes x = __builtin_convertvector(P::to_int(value), Lanes);
    count >= P::kLanes ? memcpy(to, &x, sizeof x) : memcpy(to, &x, size_t(count));
  }
};

// tile = sum_k c_k z_k / scale of the row, for the elements [begin, end) of at most one tile.
template <class P, class Noise>
SOPT_INLINE void scaled_noise(const sopt_codes& x, int64_t begin, int64_t end, const Sum& sum,
                              float* tile) {
  using F = typename P::F;
  // One sign times c, over the scale, is the sign times the one quotient of a row: no divisions.
  const bool signs = std::is_same<Noise, Rademacher>::value && sum.terms == 1;
  const float one = 1.0f;
  const Sum terms = signs ? sum_of(sum.seeds, &one, 1) : sum;
  memset(tile, 0, size_t(end - begin) * sizeof(float));
  add_terms<P, Noise>(tile, tile, begin, end, x.stream, terms, 0, terms.terms, nullptr);
  const int64_t length = x.numel / x.rows;
  for (int64_t i = begin; i < end;) {
    const int64_t row = i / length;
    const int64_t stop = (row + 1) * length < end ? (row + 1) * length : end;
    const F scale = P::splat(x.scales[row]);
    if (signs) {
      const F quotient = P::splat(sum.coefficients[0] / x.scales[row]);
      for (int64_t j = i; j < stop; j += P::kLanes) {
        float* part = tile + (j - begin);
        store_some<P>(part, stop - j, load_some<P>(part, stop - j) * quotient);
      }
    } else {
      for (int64_t j = i; j < stop; j += P::kLanes) {
        float* part = tile + (j - begin);
        store_some<P>(part, stop - j, load_some<P>(part, stop - j) / scale);
      }
    }
    i = stop;
  }
}

template <class P, class Noise>
void perturb_int8(const sopt_codes& x, int64_t begin, int64_t end, const Sum& sum, int headroom,
                  uint64_t rounding_seed) {
  alignas(64) float tile[kTile];
  for (; begin < end; begin += kTile) {
    const int64_t stop = begin + kTile < end ? begin + kTile : end, count = stop - begin;
    scaled_noise<P, Noise>(x, begin, stop, sum, tile);
    int8_t* codes = x.codes + begin;
    for_each_words<P>(begin, count, x.stream, rounding_seed,
                      [&](int64_t i, int64_t n, typename P::U words) SOPT_LAMBDA {
                        const typename P::F v = load_some<P>(tile + i, n);
                        const typename P::F delta =
                            stochastic_integer<P>(v, float(headroom), words);
                        CodeLanes<P>::store(codes + i, n, CodeLanes<P>::load(codes + i, n) + delta);
                      });
  }
}

// tile = sum_n coefficients[n] delta_n, the changes that perturb_int8 made under each seed.
template <class P, class Noise>
SOPT_INLINE void realised_sum(const sopt_codes& x, int64_t begin, int64_t end,
                              const CodeUpdate& update, float* tile) {
  alignas(64) float noise[kTile];
  const int64_t count = end - begin;
  memset(tile, 0, size_t(count) * sizeof(float));
  for (int64_t n = 0; n < update.terms; ++n) {
    const Sum sum = sum_of(update.seeds + n, &update.eps, 1);
    scaled_noise<P, Noise>(x, begin, end, sum, noise);
    const typename P::F c = P::splat(update.coefficients[n]);
    for_each_words<P>(begin, count, x.stream, update.delta_rounding_seeds[n],
                      [&](int64_t i, int64_t n, typename P::U words) SOPT_LAMBDA {
                        const typename P::F v = load_some<P>(noise + i, n);
                        const typename P::F delta =
                            stochastic_integer<P>(v, float(update.headroom), words);
                        const typename P::F total = load_some<P>(tile + i, n);
                        store_some<P>(tile + i, n, P::fma(c, delta, total));
                      });
  }
}

// Returns how many codes were clamped.
template <class P, class Noise>
int64_t update_int8(const sopt_codes& x, int64_t begin, int64_t end, const CodeUpdate& update) {
  using F = typename P::F;
  alignas(64) float tile[kTile];
  const F limit = P::splat(float(127 - update.headroom));
  int64_t clamped = 0;
  for (; begin < end; begin += kTile) {
    const int64_t stop = begin + kTile < end ? begin + kTile : end, count = stop - begin;
    realised_sum<P, Noise>(x, begin, stop, update, tile);
    int8_t* codes = x.codes + begin;
    for_each_words<P>(begin, count, x.stream, update.rounding_seed,
                      [&](int64_t i, int64_t n, typename P::U words) SOPT_LAMBDA {
                        const F change =
                            stochastic_integer<P>(load_some<P>(tile + i, n), 255.0f, words);
                        const F moved = CodeLanes<P>::load(codes + i, n) + change;
                        const auto above = moved > limit, below = moved < -limit;
                        CodeLanes<P>::store(codes + i, n, above ? limit : below ? -limit : moved);
                        typename P::I outside = above | below;  // -1 in each
                        for (int lane = 0; lane < P::kLanes; ++lane) clamped -= outside[lane];
                      });
  }
  return clamped;
}

}  // namespace
}  // namespace sopt
