// How fast is the generator alone? ns per random word on one thread, and per byte of a stream in
// place. Each code of perturb_int8_ takes a word of its own, so no kernel of it can be faster.
//
//   g++ -O3 -std=c++17 -fschedule-insns -march=native -Icsrc/include -Icsrc/cpu bench/words.cpp
//   ./a.out
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "kernels.h"
#if defined(__AVX512BW__)
#include "pack_512.h"
#elif defined(__AVX2__)
#include "pack_256.h"
#else
#include "pack_128.h"
#endif
#include "rounding.h"

namespace {

using namespace sopt;

double seconds_of_this_thread() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

template <class Body>
double median_ns(int64_t items, Body body) {
  std::vector<double> times;
  for (int round = 0; round < 9; ++round) {
    const double start = seconds_of_this_thread();
    body();
    times.push_back(1e9 * (seconds_of_this_thread() - start) / double(items));
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

uint32_t words_together(int64_t count) {
  Pack::U all = {};
  for_each_words<Pack>(0, count, 1, 2,
                       [&](int64_t, int64_t, Pack::U words) SOPT_LAMBDA { all ^= words; });
  uint32_t result = 0;
  for (int lane = 0; lane < Pack::kLanes; ++lane) result ^= all[lane];
  return result;
}

void negate(uint8_t* codes, int64_t count) {
  for (int64_t i = 0; i < count; i += int64_t(sizeof(Pack::B))) {
    Pack::B x;
    memcpy(&x, codes + i, sizeof x);
    x = -x;
    memcpy(codes + i, &x, sizeof x);
  }
}

}  // namespace

int main() {
  constexpr int64_t kCount = 1 << 26;
  std::vector<uint8_t> codes(kCount, 1);
  volatile uint32_t sink = 0;
  const double word = median_ns(kCount, [&] { sink = words_together(kCount); });
  const double stream = median_ns(kCount, [&] { negate(codes.data(), kCount); });
  printf("%d lanes: %.3f ns a word, %.3f ns a byte of the stream: share of the stream <= %.2f\n",
         Pack::kLanes, word, stream, stream / word);
}
