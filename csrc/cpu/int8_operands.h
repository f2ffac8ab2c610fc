// Operands of the products of int8 layers. A word is what one lane multiplies in one instruction:
// kDepth elements of a pixel by as many codes of an output.
//   Integers: elements are quantized, sums are int32 and exact.
//   Reals: codes are converted, sums are float32; pairs of bfloat16 where AVX512_BF16 is.
#pragma once
#include "../common/int8_layers.h"
#include "attention_math.h"
#include "kernels.h"

namespace sopt {
namespace {

// What all have in common: words of 32 bits in the lanes of a pack, in tiles as attention has them.
template <class P, int depth, class element>
struct Int8Words {
  static constexpr int kDepth = depth;
  static constexpr int64_t kColumns = kTilePacks * P::kLanes;  // of a panel
  using Pack = P;
  using Element = element;
  using F = typename P::F;
  using Word = uint32_t;
  using Words = typename P::U;

  SOPT_INLINE Words load(const Word* from) {
    Words x;
    memcpy(&x, from, sizeof x);
    return x;
  }
  SOPT_INLINE void store(Word* to, Words x) { memcpy(to, &x, sizeof x); }
  SOPT_INLINE Words splat(Word x) { return Words{} + x; }
};

template <class P, int depth, class element>
struct IntegerWords : Int8Words<P, depth, element> {
  static constexpr bool kQuantized = true;
  static constexpr float kOffset = 0;  // of elements: subtracted again from sums
  using F = typename P::F;
  using Sum = typename P::I;
  SOPT_INLINE F add(F total, Sum sum, F scale) { return P::fma(P::to_float(sum), scale, total); }
  // store_codes takes the bits of codes plus kRounder plus kOffset: the lowest are the code's.
};

template <class P, int depth, class element>
struct RealWords : Int8Words<P, depth, element> {
  static constexpr bool kQuantized = false;
  static constexpr float kOffset = 0;
  using F = typename P::F;
  using Sum = F;
  SOPT_INLINE F add(F total, Sum sum, F) { return total + sum; }
};

// Any processor: one product a lane.
template <class P>
struct IntegerSingles : IntegerWords<P, 1, int32_t> {
  using typename IntegerWords<P, 1, int32_t>::F;
  using typename IntegerWords<P, 1, int32_t>::Sum;
  using typename IntegerWords<P, 1, int32_t>::Words;
  SOPT_INLINE Sum dot(Words a, Words b, Sum c) { return (Sum)a * (Sum)b + c; }
  SOPT_INLINE void store_codes(int32_t* to, Words x) {
    x -= bits_of(kRounder);
    memcpy(to, &x, sizeof x);
  }
  SOPT_INLINE Words load_codes(const int8_t* from) { return (Words)P::to_int(P::load(from)); }
};

#if defined(__SSE4_1__)
// Pairs of int16: the sum of two products takes 16 bits and one more at most.
template <class P>
struct IntegerPairs : IntegerWords<P, 2, int16_t> {
  using typename IntegerWords<P, 2, int16_t>::F;
  using typename IntegerWords<P, 2, int16_t>::Sum;
  using typename IntegerWords<P, 2, int16_t>::Words;
  SOPT_INLINE Sum dot(Words a, Words b, Sum c) {
#if defined(__AVX512BW__)
    return c + (Sum)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return c + (Sum)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return c + (Sum)_mm_madd_epi16((__m128i)a, (__m128i)b);
#endif
  }
  SOPT_INLINE void store_codes(int16_t* to, Words x) {
    typedef int16_t Halves __attribute__((vector_size(2 * P::kLanes)));
    const Halves halves = __builtin_convertvector(x, Halves);
    memcpy(to, &halves, sizeof halves);
  }
  SOPT_INLINE Words load_codes(const int8_t* from) {
#if defined(__AVX512BW__)
    return (Words)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
    return (Words)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)from));
#else
    return (Words)_mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)from));
#endif
  }
};
#endif

#if defined(__AVX512VNNI__)
// Fours of bytes. The instruction takes one factor without sign: elements carry an offset.
template <class P>
struct IntegerFours : IntegerWords<P, 4, uint8_t> {
  static constexpr float kOffset = 128;
  using typename IntegerWords<P, 4, uint8_t>::F;
  using typename IntegerWords<P, 4, uint8_t>::Sum;
  using typename IntegerWords<P, 4, uint8_t>::Words;
  SOPT_INLINE Sum dot(Words a, Words b, Sum c) {
    return (Sum)_mm512_dpbusd_epi32((__m512i)c, (__m512i)a, (__m512i)b);
  }
  SOPT_INLINE void store_codes(uint8_t* to, Words x) {
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)x));
  }
  SOPT_INLINE Words load_codes(const int8_t* from) { return (Words)_mm512_loadu_si512(from); }
};
template <class P>
using Integers = IntegerFours<P>;
#elif defined(__ARM_FEATURE_DOTPROD)
// Fours of bytes, both factors with their signs.
template <class P>
struct IntegerFours : IntegerWords<P, 4, int8_t> {
  using typename IntegerWords<P, 4, int8_t>::F;
  using typename IntegerWords<P, 4, int8_t>::Sum;
  using typename IntegerWords<P, 4, int8_t>::Words;
  SOPT_INLINE Sum dot(Words a, Words b, Sum c) {
    return (Sum)vdotq_s32((int32x4_t)c, (int8x16_t)a, (int8x16_t)b);
  }
  SOPT_INLINE void store_codes(int8_t* to, Words x) {
    typedef int8_t Bytes __attribute__((vector_size(P::kLanes)));
    const Bytes bytes = __builtin_convertvector(x, Bytes);
    memcpy(to, &bytes, sizeof bytes);
  }
  SOPT_INLINE Words load_codes(const int8_t* from) {
    Words x;
    memcpy(&x, from, sizeof x);
    return x;
  }
};
template <class P>
using Integers = IntegerFours<P>;
#elif defined(__SSE4_1__)
template <class P>
using Integers = IntegerPairs<P>;
#else
template <class P>
using Integers = IntegerSingles<P>;
#endif

// float32 words.
template <class P>
struct RealSingles : RealWords<P, 1, float> {
  using typename RealWords<P, 1, float>::F;
  using typename RealWords<P, 1, float>::Words;
  SOPT_INLINE F dot(Words a, Words b, F c) {
    return Singles<P>::multiply_add(P::float_of(a), P::float_of(b), c);
  }
  SOPT_INLINE void store_elements(float* to, F x) { P::store(to, x); }
  SOPT_INLINE Words load_codes(const int8_t* from) { return P::bits_of(P::load(from)); }
  // Words of the codes of one column in each lane, from rows one `stride` apart.
  SOPT_INLINE Words join_rows(const int8_t* from, int64_t) { return load_codes(from); }
};

#if defined(__AVX512BF16__)
// Pairs of bfloat16, which hold all codes exactly.
template <class P>
struct RealPairs : RealWords<P, 2, bfloat16> {
  using typename RealWords<P, 2, bfloat16>::F;
  using typename RealWords<P, 2, bfloat16>::Words;
  SOPT_INLINE F dot(Words a, Words b, F c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
  SOPT_INLINE void store_elements(bfloat16* to, F x) { P::store(to, x); }
  SOPT_INLINE Words load_codes(const int8_t* from) {
    return (Words)_mm512_cvtne2ps_pbh(P::load(from + 16), P::load(from));
  }
  SOPT_INLINE Words join_rows(const int8_t* from, int64_t stride) {
    const F rows[2] = {P::load(from), P::load(from + stride)};
    return Pairs<P>::join(rows);
  }
};
template <class P>
using Bfloat16Reals = RealPairs<P>;
#else
template <class P>
using Bfloat16Reals = RealSingles<P>;
#endif

}  // namespace
}  // namespace sopt
