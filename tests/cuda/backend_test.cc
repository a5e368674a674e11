#include "ei/cuda/backend.h"

#include <gtest/gtest.h>

#include "ei/base/error.h"

namespace ei {
namespace {

// Of a build without CUDA, or on a machine without a GPU.
TEST(CudaBackend, IsAnErrorWhereThereIsNone) {
  if (cuda_available()) GTEST_SKIP() << "this machine has a GPU that the kernels run on";
  EXPECT_THROW(make_cuda_backend(), Error);
}

#ifdef EI_CUDA
class CudaBackendTest : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(On, CudaBackendTest, testing::Values("cuda"),
                         [](const auto& info) { return info.param; });

TEST_P(CudaBackendTest, OpensTheGpu) {
  if (!cuda_available()) GTEST_SKIP() << "this machine has no GPU that the kernels run on";
  const auto backend = make_cuda_backend();
  EXPECT_TRUE(backend->name().starts_with("CUDA, ")) << backend->name();
  EXPECT_GT(backend->available_bytes(), int64_t{1} << 30);
}
#endif

}  // namespace
}  // namespace ei
