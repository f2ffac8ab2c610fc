// Box-Muller on given words, for known answers.
#pragma once
#include "../common/noise.h"

namespace sopt {
namespace {

template <class P>
void box_muller_pairs(const uint32_t* words, int64_t pairs, float* samples) {
  for (int64_t i = 0; i < pairs; i += P::kLanes) {
    const int lanes = pairs - i < P::kLanes ? int(pairs - i) : P::kLanes;
    typename P::U w0 = {}, w1 = {};
    for (int lane = 0; lane < lanes; ++lane) {
      w0[lane] = words[2 * (i + lane)];
      w1[lane] = words[2 * (i + lane) + 1];
    }
    typename P::F z0, z1;
    box_muller<P>(w0, w1, z0, z1);
    for (int lane = 0; lane < lanes; ++lane) {
      samples[2 * (i + lane)] = z0[lane];
      samples[2 * (i + lane) + 1] = z1[lane];
    }
  }
}

}  // namespace
}  // namespace sopt
