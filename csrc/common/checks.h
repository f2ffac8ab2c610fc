// Checks of arguments that the entry points of all devices share, before anything is written;
// `function` is the name of the caller.
#pragma once
#include <cinttypes>
#include <cstdint>

#include "sopt.h"

namespace sopt {

// What every op on lists takes.
template <class Tensor>
sopt_status check_list(const char* function, const Tensor* tensors, int64_t count, int64_t terms,
                       sopt_noise kind) {
  if (count < 0)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: count must be >= 0, got %" PRId64, function,
                     count);
  if (terms < 0)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: terms must be >= 0, got %" PRId64, function,
                     terms);
  if (kind != SOPT_GAUSSIAN && kind != SOPT_RADEMACHER)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: unknown kind %d", function, int(kind));
  for (int64_t i = 0; i < count; ++i)
    if (tensors[i].numel < 0)
      return sopt_fail(SOPT_INVALID_ARGUMENT,
                       "%s: numel of tensor %" PRId64 " must be >= 0, got %" PRId64, function, i,
                       tensors[i].numel);
  return SOPT_OK;
}

inline sopt_status check_dtypes(const char* function, const sopt_tensor* tensors, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (tensors[i].dtype < SOPT_FLOAT32 || tensors[i].dtype > SOPT_FLOAT16)
      return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: unknown dtype %" PRId64 " of tensor %" PRId64,
                       function, tensors[i].dtype, i);
  return SOPT_OK;
}

inline sopt_status check_add_noise(const char* function, const sopt_tensor* tensors, int64_t count,
                                   int64_t terms, sopt_noise kind, const int64_t* round_after,
                                   int64_t rounds) {
  sopt_status status = check_list(function, tensors, count, terms, kind);
  if (status == SOPT_OK) status = check_dtypes(function, tensors, count);
  if (status != SOPT_OK) return status;
  if (rounds < 0)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: rounds must be >= 0, got %" PRId64, function,
                     rounds);
  for (int64_t i = 0, last = 0; i < rounds; last = round_after[i++])
    if (round_after[i] <= last || round_after[i] >= terms)
      return sopt_fail(SOPT_INVALID_ARGUMENT,
                       "%s: round_after must increase and lie between 0 and %" PRId64
                       ", got %" PRId64 " at %" PRId64,
                       function, terms, round_after[i], i);
  return SOPT_OK;
}

inline sopt_status check_restore_accumulate(const char* function, const sopt_tensor* params,
                                            const sopt_tensor* grads, int64_t count,
                                            sopt_noise kind) {
  sopt_status status = check_list(function, params, count, 1, kind);
  if (status == SOPT_OK) status = check_dtypes(function, params, count);
  if (status == SOPT_OK) status = check_dtypes(function, grads, count);
  if (status != SOPT_OK) return status;
  for (int64_t i = 0; i < count; ++i)
    if (params[i].numel != grads[i].numel)
      return sopt_fail(SOPT_INVALID_ARGUMENT,
                       "%s: tensor %" PRId64
                       " must have as many elements in both lists, got %" PRId64 " and %" PRId64,
                       function, i, params[i].numel, grads[i].numel);
  return SOPT_OK;
}

inline sopt_status check_codes(const char* function, const sopt_codes* tensors, int64_t count,
                               int64_t terms, sopt_noise kind, int64_t headroom) {
  const sopt_status status = check_list(function, tensors, count, terms, kind);
  if (status != SOPT_OK) return status;
  if (headroom < 1 || headroom > 64)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: headroom must be in [1, 64], got %" PRId64,
                     function, headroom);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t numel = tensors[i].numel, rows = tensors[i].rows;
    if (numel > 0 && (rows < 1 || numel % rows != 0))
      return sopt_fail(SOPT_INVALID_ARGUMENT,
                       "%s: rows of tensor %" PRId64 " must divide its %" PRId64
                       " elements, got %" PRId64,
                       function, i, numel, rows);
  }
  return SOPT_OK;
}

}  // namespace sopt
