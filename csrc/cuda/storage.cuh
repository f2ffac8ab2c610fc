// Elements of memory as float32 and back: sixteen bytes at a time where the address allows it.
#pragma once
#include <cuda_runtime.h>

#include "../common/dtypes.h"

namespace sopt {

// The sums of this file are the GPU's own conversions where there is one: the same values as
// common/dtypes.h, which the CPU compiles instead. NaN stays NaN, with whatever payload.
#if defined(__CUDA_ARCH__)
SOPT_INLINE uint32_t to_bfloat16_pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
SOPT_INLINE uint32_t to_float16_pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
SOPT_INLINE float from_float16(uint32_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(uint16_t(bits)));
  return value;
}
#else
SOPT_INLINE uint32_t to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  return value == value ? (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16 : bits >> 16 | 0x40u;
}
SOPT_INLINE uint32_t to_bfloat16_pair(float low, float high) {
  return to_bfloat16(low) | to_bfloat16(high) << 16;
}
SOPT_INLINE uint32_t to_float16_pair(float low, float high) {
  return to_float16(low).bits | uint32_t{to_float16(high).bits} << 16;
}
SOPT_INLINE float from_float16(uint32_t bits) { return to_float(float16{uint16_t(bits)}); }
#endif

// How T lies in memory: kVector elements at an address that is a multiple of 16, or one.
template <class T>
struct Storage;

template <>
struct Storage<float> {
  static constexpr int kVector = 4;
  SOPT_INLINE void load(const float* from, float* x) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  }
  SOPT_INLINE void store(float* to, const float* x) {
    *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
  }
  SOPT_INLINE float load_one(const float* from) { return *from; }
  SOPT_INLINE void store_one(float* to, float x) { *to = x; }
  SOPT_INLINE void round_two(float*) {}  // to T, of which these are two
};

// Two elements in each word of a vector, the first one in the low half.
template <class Pair>
struct HalfWords {
  static constexpr int kVector = 8;
  template <class T>
  SOPT_INLINE void load(const T* from, float* x) {
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    const uint32_t words[] = {v.x, v.y, v.z, v.w};
    SOPT_UNROLL
    for (int j = 0; j < 4; ++j) {
      x[2 * j] = Pair::low(words[j]);
      x[2 * j + 1] = Pair::high(words[j]);
    }
  }
  template <class T>
  SOPT_INLINE void store(T* to, const float* x) {
    *reinterpret_cast<uint4*>(to) = make_uint4(Pair::of(x[0], x[1]), Pair::of(x[2], x[3]),
                                               Pair::of(x[4], x[5]), Pair::of(x[6], x[7]));
  }
  template <class T>
  SOPT_INLINE float load_one(const T* from) {
    return Pair::low(from->bits);
  }
  template <class T>
  SOPT_INLINE void store_one(T* to, float x) {
    to->bits = uint16_t(Pair::of(x, 0.0f));
  }
  SOPT_INLINE void round_two(float* x) {
    const uint32_t word = Pair::of(x[0], x[1]);
    x[0] = Pair::low(word), x[1] = Pair::high(word);
  }
};

struct BFloat16Pair {
  SOPT_INLINE float low(uint32_t word) { return float_of(word << 16); }
  SOPT_INLINE float high(uint32_t word) { return float_of(word & 0xFFFF0000u); }
  SOPT_INLINE uint32_t of(float low, float high) { return to_bfloat16_pair(low, high); }
};

struct Float16Pair {
  SOPT_INLINE float low(uint32_t word) { return from_float16(word & 0xFFFFu); }
  SOPT_INLINE float high(uint32_t word) { return from_float16(word >> 16); }
  SOPT_INLINE uint32_t of(float low, float high) { return to_float16_pair(low, high); }
};

// Codes, which change by whole numbers: what is stored is their low byte.
template <>
struct Storage<int8_t> {
  static constexpr int kVector = 8;
  SOPT_INLINE void load(const int8_t* from, float* x) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    const uint32_t words[] = {v.x, v.y};
    SOPT_UNROLL
    for (int i = 0; i < 8; ++i) x[i] = float(int8_t(words[i / 4] >> 8 * (i % 4) & 0xFFu));
  }
  SOPT_INLINE void store(int8_t* to, const float* x) {
    uint32_t words[] = {0, 0};
    SOPT_UNROLL
    for (int i = 0; i < 8; ++i) words[i / 4] |= (uint32_t(int(x[i])) & 0xFFu) << 8 * (i % 4);
    *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
  }
  SOPT_INLINE float load_one(const int8_t* from) { return float(*from); }
  SOPT_INLINE void store_one(int8_t* to, float x) { *to = int8_t(uint32_t(int(x)) & 0xFFu); }
};

template <>
struct Storage<bfloat16> : HalfWords<BFloat16Pair> {};
template <>
struct Storage<float16> : HalfWords<Float16Pair> {};

}  // namespace sopt
