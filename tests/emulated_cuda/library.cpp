/* All of libsopt_cuda, and what it needs of libsopt_cpu, for the CPU. Build:
 *   c++ -std=c++17 -O1 -ffp-contract=off -shared -fPIC -I tests/emulated_cuda -I csrc/include */
#include "../../csrc/common/status.cpp"
#include "../../csrc/cuda/add_noise.cu"
#include "../../csrc/cuda/box_muller.cu"
#include "../../csrc/cuda/check.cu"
#include "../../csrc/cuda/int8.cu"
#include "../../csrc/cuda/int8_layer.cu"
#include "../../csrc/cuda/philox4x32.cu"
#include "../../csrc/cuda/restore_accumulate.cu"
