#include "ei/cuda/backend.h"

#include <gtest/gtest.h>

#include "ei/base/error.h"
#include "ei/engine/make_backend.h"
#include "tests/support/backend_fixture.h"

namespace ei {
namespace {

// Of a build without CUDA, or on a machine without a GPU.
TEST(CudaBackend, IsAnErrorWhereThereIsNone) {
  if (cuda_available()) GTEST_SKIP() << "this machine has a GPU that the kernels run on";
  EXPECT_THROW(make_cuda_backend(), Error);
}

TEST(CudaBackend, AloneMultipliesInFp8) {
  EXPECT_THROW(make_backend({.device = Device::kCpu, .math = Math::kFP8}), Error);
}

class CudaBackendTest : public testing::TestWithParam<std::string> {};
EI_GPU_TEST(CudaBackendTest);

TEST_P(CudaBackendTest, OpensTheGpu) {
  if (!cuda_available()) GTEST_SKIP() << "this machine has no GPU that the kernels run on";
  const auto backend = make_cuda_backend();
  EXPECT_TRUE(backend->name().starts_with("CUDA, ")) << backend->name();
  EXPECT_GT(backend->available_bytes(), int64_t{1} << 30);
}

}  // namespace
}  // namespace ei
