// Operands of attention_forward: float32 on every level, pairs of bfloat16 where AVX512_BF16 is.
#pragma once
#include "../common/dtypes.h"
#include "rounding.h"

namespace sopt {
namespace {

// A tile of products held in registers: rows by packs of queries. Sixteen sums where there are 32
// registers, eight where there are 16: as many as two multiply-adds a cycle of four cycles keep
// busy.
constexpr int kTilePacks = 2;
template <class M>
constexpr int kTileRows = M::kLanes == 16 ? 8 : 4;
template <class M>
constexpr int kTileQueries = kTilePacks * M::kLanes;

SOPT_INLINE int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// 2^x by a polynomial for 2^(x - floor(x)), of least relative error on [0, 1).
// Six coefficients: relative error 7.5e-8 and its float32 rounding; four: 7.5e-5.
template <class M, int N>
SOPT_INLINE typename M::F exp2_by(const float (&coefficients)[N], typename M::F x) {
  const typename M::F fraction = M::fraction(x);
  typename M::F y = M::fill(coefficients[N - 1]);
  SOPT_UNROLL
  for (int i = N - 2; i >= 0; --i) y = M::multiply_add(y, fraction, M::fill(coefficients[i]));
  return M::times_exp2_of_floor(y, x);
}

// float32 words.
template <class P>
struct Singles {
  static constexpr int kLanes = P::kLanes, kDepth = 1;
  using F = typename P::F;
  using Word = float;
  using Words = F;

  SOPT_INLINE F fill(float x) { return P::splat(x); }
  SOPT_INLINE F load(const float* from) { return P::load(from); }
  SOPT_INLINE void store(float* to, F x) { P::store(to, x); }
  SOPT_INLINE F max(F x, F y) { return P::max(x, y); }
  SOPT_INLINE F fraction(F x) { return P::fraction(x); }
  SOPT_INLINE F times_exp2_of_floor(F y, F x) { return P::times_exp2_of_floor(y, x); }
  SOPT_INLINE F multiply_add(F a, F b, F c) {
#if defined(__FMA__) || defined(__ARM_NEON)
    return P::fma(a, b, c);
#else  // levels need not agree to the bit here, and fma would be a function call
    return a * b + c;
#endif
  }
  SOPT_INLINE F exp2(F x) {
    static constexpr float c[] = {0x1.fffffep-1f, 0x1.62e4f6p-1f, 0x1.ebd5a8p-3f,
                                  0x1.c95446p-5f, 0x1.26900cp-7f, 0x1.ec320ap-10f};
    return exp2_by<Singles>(c, x);
  }

  SOPT_INLINE Words splat(Word x) { return P::splat(x); }
  SOPT_INLINE F dot(Words a, Words b, F c) { return multiply_add(a, b, c); }
  SOPT_INLINE Words join(const F x[1]) { return x[0]; }

  SOPT_INLINE Word word(const float* from) { return *from; }
  SOPT_INLINE Word word(const bfloat16* from) { return float_of(uint32_t{from->bits} << 16); }
  template <class T>
  SOPT_INLINE Word pair(T first, T) {
    return word(&first);
  }

  // The first `count` words of a row, the others zero.
  template <class T>
  SOPT_INLINE Words load_row(const T* from, int64_t count) {
    return load_some<P>(from, count);
  }
  template <class T>
  SOPT_INLINE void store_row(T* to, int64_t count, Words x) {
    store_some<P>(to, count, x);
  }
  SOPT_INLINE void transpose(Words (&x)[kLanes]) { P::transpose(x); }
};

#if defined(__AVX512BF16__)
// Pairs of bfloat16, multiplied and summed in float32 by one instruction.
template <class P>
struct Pairs : Singles<P> {
  static constexpr int kDepth = 2;
  using F = typename P::F;
  using Word = uint32_t;
  using Words = typename P::U;
  using Singles<P>::load;
  using Singles<P>::store;

  SOPT_INLINE F exp2(F x) {  // its error is a hundredth of the weights' rounding
    static constexpr float c[] = {0x1.fff632p-1f, 0x1.64444cp-1f, 0x1.cefc4cp-3f, 0x1.3f96a4p-4f};
    return exp2_by<Singles<P>>(c, x);
  }

  SOPT_INLINE Words load(const Word* from) { return (Words)_mm512_loadu_si512(from); }
  SOPT_INLINE void store(Word* to, Words x) { _mm512_storeu_si512(to, (__m512i)x); }
  SOPT_INLINE Words splat(Word x) { return (Words)_mm512_set1_epi32(int(x)); }
  SOPT_INLINE F dot(Words a, Words b, F c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
  // In each lane, both rounded.
  SOPT_INLINE Words join(const F x[2]) {
    const __m512i apart = (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]);
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (Words)_mm512_permutexvar_epi16(order, apart);
  }

  SOPT_INLINE Word word(const bfloat16* from) {
    Word word;
    memcpy(&word, from, sizeof word);
    return word;
  }
  SOPT_INLINE Word pair(bfloat16 first, bfloat16 second) {
    return first.bits | uint32_t{second.bits} << 16;
  }
  SOPT_INLINE __mmask16 first(int64_t count) {
    return count < 16 ? __mmask16((1u << count) - 1) : __mmask16(0xFFFF);
  }
  SOPT_INLINE Words load_row(const bfloat16* from, int64_t count) {
    return (Words)_mm512_maskz_loadu_epi32(first(count), from);
  }
  SOPT_INLINE void store_row(bfloat16* to, int64_t count, Words x) {
    _mm512_mask_storeu_epi32(to, first(count), (__m512i)x);
  }
  SOPT_INLINE void transpose(Words (&x)[16]) { P::transpose((F(&)[16])x); }
};
template <class P>
using Bfloat16Operands = Pairs<P>;
#else
template <class P>
using Bfloat16Operands = Singles<P>;
#endif

}  // namespace
}  // namespace sopt
