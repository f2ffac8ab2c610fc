// Kernels of restore_accumulate: noise once into a tile, then added to parameters and gradients.
#pragma once
#include "add_noise.h"

namespace sopt {
namespace {

// Elements [begin, end) of at most one tile.
template <class P, class Noise>
void noise_tile(float* tile, int64_t begin, int64_t end, uint64_t stream, uint64_t seed) {
  memset(tile, 0, size_t(end - begin) * sizeof(float));
  const float one = 1.0f;
  add_terms<P, Noise>(tile, tile, begin, end, stream, sum_of(&seed, &one, 1), 0, 1, nullptr);
}

// out = fma(coefficient, z, base), rounded to nearest.
template <class P, class T>
void add_scaled(const void* base, void* out, int64_t begin, int64_t end, const float* z,
                float coefficient) {
  const T* from = static_cast<const T*>(base) + begin;
  T* to = static_cast<T*>(out) + begin;
  const typename P::F c = P::splat(coefficient);
  const int64_t count = end - begin;
  for (int64_t i = 0; i < count; i += P::kLanes) {
    const typename P::F x = load_some<P>(from + i, count - i);
    store_some<P>(to + i, count - i, P::fma(c, load_some<P>(z + i, count - i), x));
  }
}

}  // namespace
}  // namespace sopt
