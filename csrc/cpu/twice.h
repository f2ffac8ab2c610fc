// Two packs handled as one, operation by operation: what Twice<P> computes is what P computes, but
// with two independent chains of instructions side by side. A processor looks some hundred
// instructions ahead and a chain waits for each result, so one chain alone leaves it idle.
#pragma once
#include <type_traits>

#include "../common/portable.h"

namespace sopt {
namespace {

template <class T>
struct Two {
  T a, b;
};

#define SOPT_TWO(op)                                                                  \
  template <class T>                                                                  \
  SOPT_INLINE Two<T> operator op(Two<T> x, Two<T> y) {                                \
    return {x.a op y.a, x.b op y.b};                                                  \
  }                                                                                   \
  template <class T, class S, class = std::enable_if_t<std::is_arithmetic<S>::value>> \
  SOPT_INLINE Two<T> operator op(Two<T> x, S y) {                                     \
    return {x.a op y, x.b op y};                                                      \
  }                                                                                   \
  template <class T, class S, class = std::enable_if_t<std::is_arithmetic<S>::value>> \
  SOPT_INLINE Two<T> operator op(S x, Two<T> y) {                                     \
    return {x op y.a, x op y.b};                                                      \
  }
SOPT_TWO(+)
SOPT_TWO(-)
SOPT_TWO(*)
SOPT_TWO(&)
SOPT_TWO(|)
SOPT_TWO(^)
SOPT_TWO(<<)
SOPT_TWO(>>)
#undef SOPT_TWO

template <class T>
SOPT_INLINE Two<T> operator-(Two<T> x) {
  return {-x.a, -x.b};
}

template <class P>
struct Twice {
  using F = Two<typename P::F>;
  using U = Two<typename P::U>;
  using I = Two<typename P::I>;
  using W = Two<typename P::W>;
  using M = Two<typename P::M>;
  static constexpr int kLanes = 2 * P::kLanes;

  SOPT_INLINE F splat(float x) { return {P::splat(x), P::splat(x)}; }
  SOPT_INLINE W splat_wide(uint64_t x) { return {P::splat_wide(x), P::splat_wide(x)}; }
  SOPT_INLINE U bits_of(F x) { return {P::bits_of(x.a), P::bits_of(x.b)}; }
  SOPT_INLINE F float_of(U x) { return {P::float_of(x.a), P::float_of(x.b)}; }
  SOPT_INLINE I signed_of(U x) { return {P::signed_of(x.a), P::signed_of(x.b)}; }
  SOPT_INLINE F to_float(I x) { return {P::to_float(x.a), P::to_float(x.b)}; }
  SOPT_INLINE F exponent(F x) { return {P::exponent(x.a), P::exponent(x.b)}; }
  SOPT_INLINE F mantissa(F x) { return {P::mantissa(x.a), P::mantissa(x.b)}; }
  SOPT_INLINE M test(U x, uint32_t bit) { return {P::test(x.a, bit), P::test(x.b, bit)}; }
  SOPT_INLINE U flip(M m, U x) { return {P::flip(m.a, x.a), P::flip(m.b, x.b)}; }
  SOPT_INLINE F select(M m, F x, F y) {
    return {P::select(m.a, x.a, y.a), P::select(m.b, x.b, y.b)};
  }
  SOPT_INLINE F fma(F x, F y, F z) { return {P::fma(x.a, y.a, z.a), P::fma(x.b, y.b, z.b)}; }
  SOPT_INLINE F sqrt(F x) { return {P::sqrt(x.a), P::sqrt(x.b)}; }
  SOPT_INLINE W multiply_wide(W x, uint32_t m) {
    return {P::multiply_wide(x.a, m), P::multiply_wide(x.b, m)};
  }
  SOPT_INLINE W xor3(W x, W y, uint64_t z) { return {P::xor3(x.a, y.a, z), P::xor3(x.b, y.b, z)}; }
  SOPT_INLINE W blocks() { return {P::blocks(), P::blocks() + uint64_t{P::kLanes / 2}}; }
  SOPT_INLINE U interleave(W x, W y) { return {P::interleave(x.a, y.a), P::interleave(x.b, y.b)}; }
};

// Samples or words of consecutive blocks, the even and the odd ones of each: calls body(j, x) with
// the packs x of consecutive elements, from j kLanes on.
template <class P, class F, class Body>
SOPT_INLINE void for_each_pack(F even, F odd, Body body, int j = 0) {
  if constexpr (std::is_same<F, typename P::F>::value) {
    P::zip(even, odd);
    body(j, even);
    body(j + 1, odd);
  } else {
    for_each_pack<P>(even.a, odd.a, body, j);
    for_each_pack<P>(even.b, odd.b, body, j + int(sizeof(even.a) / sizeof(typename P::F)) * 2);
  }
}

}  // namespace
}  // namespace sopt
