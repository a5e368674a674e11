#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ei/base/error.h"
#include "ei/base/math.h"
#include "ei/ops/buffer.h"
#include "ei/ops/page_layout.h"
#include "tests/support/array.h"

namespace ei::test {

// Rows of activations on a backend, in its own number type.
class DeviceAct {
 public:
  // So many units into an allocation, misaligned on purpose: as far as the backend allows it.
  DeviceAct(Backend& backend, const Matrix& values, int64_t units = 0);

  Act act() const { return act_; }
  operator Act() const { return act_; }
  Matrix values() const;  // as the backend holds them: what an oracle should compute with

 private:
  Backend* backend_;
  Buffer buffer_;
  Act act_;
};

// A weight of the checkpoint: its bytes on the host, and the values they stand for.
struct HostWeight {
  HostWeight(const Matrix& wanted, DType dtype, int64_t misaligned_bytes = 0);
  // Random blocks of a quantized format, whose values have deviations around 1.
  HostWeight(WeightFormat format, int64_t rows, int64_t cols, uint64_t seed,
             int64_t misaligned_bytes = 0);
  Weight weight() const { return {bytes.data() + offset, format, values.dim(0), values.dim(1)}; }

  WeightFormat format;
  int64_t offset;
  std::vector<char> bytes;
  Matrix values;
};

// Every test runs on every backend of this build, on a second GPU as well ("second_cuda"), and on
// the CPU with every instruction set that the machine has.
class BackendTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override;
  void TearDown() override;

  Backend& backend() { return *backend_; }
  std::unique_ptr<Backend> make_backend(int n_threads);
  virtual Math gpu_math() const { return Math::kBF16; }

  // The tolerance an op states is for floats. In bf16 the result is rounded, by up to 2^-8 of every
  // value, a sixth of that squared on average; and so is what goes into a tensor core (f32 weights,
  // probabilities). One rounding of the worst kind leaves room for some of the average one.
  // In the CPU's tile unit both factors are rounded, the result is not.
  double tolerance(double nmse) { return nmse + (rounds() ? 1.6e-5 : 0); }
  // Whether it multiplies numbers in bf16.
  bool rounds();

  // What keys and values of heads of d numbers may be stored in: caches of q8_0 are the CPU's,
  // those of fp8 the GPU's.
  std::vector<DType> kv_types(int64_t d) {
    if (backend().act_bytes() == 4) return {DType::kBF16, DType::kF32, DType::kQ8};
    if (!PageLayout::has_fp8(d)) return {DType::kBF16, DType::kF32};
    return {DType::kBF16, DType::kF32, DType::kFP8};
  }

  DeviceAct act(const Matrix& values, int64_t offset = 0) { return {backend(), values, offset}; }
  // An output, every value of which is NaN.
  DeviceAct poisoned(int64_t rows, int64_t cols, int64_t offset = 0);

  template <class T, class U, int N>
  DeviceArray<T, N> upload(const Array<U, N>& array) {
    const std::vector<T> values(array.v.begin(), array.v.end());
    DeviceArray<T, N> on_device(backend(), array.dims);
    backend().copy_in(on_device.view().data, values.data(),
                      static_cast<int64_t>(values.size() * sizeof(T)));
    return on_device;
  }
  template <class T, int N>
  DeviceArray<T, N> poisoned_array(std::array<int64_t, N> dims) {
    const T poison = std::is_same_v<T, float> ? std::numeric_limits<T>::quiet_NaN() : T(-7777);
    return upload<T>(Array<T, N>(dims, poison));
  }
  template <class T, int N>
  Array<T, N> download(const DeviceArray<T, N>& on_device) {
    Array<T, N> array(on_device.view().dims);
    array.v = on_device.to_host(backend());
    return array;
  }

 private:
  std::unique_ptr<Backend> backend_;
};

std::vector<std::string> backend_names(bool tiles = false);
// The tile unit, or loops in its place, with Math::kF32.
std::string tiles_of_halves();
// "cuda" in a build with CUDA, else none.
std::vector<std::string> gpu_names();

inline std::string backend_name(const testing::TestParamInfo<std::string>& info) {
  return info.param;
}

// "two_cuda" in a build with CUDA, else none.
std::vector<std::string> gpu_pair_names();

// Defines `name` as a suite of BackendTest run on all backends.
#define EI_BACKEND_TEST(name)                                                      \
  using name = ei::test::BackendTest;                                              \
  INSTANTIATE_TEST_SUITE_P(On, name, testing::ValuesIn(ei::test::backend_names()), \
                           ei::test::backend_name)
// The same for ops that the CPU's tile unit computes: where there is none, with loops in its place
// too.
#define EI_TILES_TEST(name)                                                                      \
  using name = ei::test::BackendTest;                                                            \
  INSTANTIATE_TEST_SUITE_P(On, name, testing::ValuesIn(ei::test::backend_names(/*tiles=*/true)), \
                           ei::test::backend_name)
// Runs the suite `name` on the GPU, and not at all in a build without CUDA, where it compiles.
#define EI_GPU_TEST(name)                                                      \
  GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(name);                         \
  INSTANTIATE_TEST_SUITE_P(On, name, testing::ValuesIn(ei::test::gpu_names()), \
                           ei::test::backend_name)

// The same for what two GPUs do together.
#define EI_TWO_GPUS_TEST(name)                                                      \
  GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(name);                              \
  INSTANTIATE_TEST_SUITE_P(On, name, testing::ValuesIn(ei::test::gpu_pair_names()), \
                           ei::test::backend_name)

}  // namespace ei::test
