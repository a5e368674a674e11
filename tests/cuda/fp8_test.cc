// Products by weights in e4m3 with a scale a row, where more rows of x than a few are rounded so
// too. The CPU has none.
#include <cmath>

#include "ei/base/half.h"
#include "ei/cuda/backend.h"
#include "tests/ref/ref.h"
#include "tests/support/backend_fixture.h"
#include "tests/support/numbers.h"

namespace ei::test {
namespace {

class Fp8Test : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "this machine has no GPU that the kernels run on";
    backend_ = make_cuda_backend(Math::kFP8);
  }
  Backend& backend() { return *backend_; }

 private:
  std::unique_ptr<Backend> backend_;
};
EI_GPU_TEST(Fp8Test);

// Every row by its own scale, in e4m3.
Matrix rounded(Matrix a) {
  for (int64_t i = 0; i < a.dim(0); ++i) {
    float top = 0;
    for (const double x : a[i]) top = std::max(top, static_cast<float>(std::abs(x)));
    for (double& x : a[i])
      x = top == 0 ? 0 : from_e4m3(to_e4m3(static_cast<float>(x) * (448 / top))) * (top / 448);
  }
  return a;
}

// x as it is multiplied.
constexpr int64_t kMaxExactRows = 8;
Matrix multiplied(const Matrix& x) { return x.dim(0) > kMaxExactRows ? rounded(x) : x; }

// Results are rounded to bf16, and sums of 128 products of e4m3 to a float's 14 bits: 3e-5; few
// rows of x have sums in floats: 1e-5. Beside the same product of what was not rounded to 8 bits,
// each factor that was is off by up to 2^-4 of itself, by 2.7% on average: 2e-3, 1e-3 of one.
TEST_P(Fp8Test, MatchesReference) {
  struct Shape {
    int64_t rows, k, m;
  };
  for (const auto& [rows, k, m] : {Shape{1, 32, 16},
                                   {1, 544, 48},
                                   {2, 4128, 48},
                                   {3, 2080, 704},
                                   {5, 96, 16},
                                   {7, 16416, 32},
                                   {8, 2048, 32},
                                   {9, 2048, 32},
                                   {16, 256, 704},
                                   {33, 288, 64},
                                   {300, 512, 256},
                                   {15, 16416, 32}})
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32})
      for (const bool accumulate : {false, true}) {
        SCOPED_TRACE(testing::Message() << rows << " x " << k << " x " << m << " "
                                        << dtype_name(dtype) << " accumulate " << accumulate);
        Matrix wanted = normal<2>({rows, k}, 1);
        for (int64_t i = 0; i < rows; ++i) wanted[i][(7 * i) % k] *= 8;
        const DeviceAct x(backend(), wanted, 1);
        const HostWeight w(normal<2>({m, k}, 2), dtype, accumulate ? 0 : 1);
        Matrix w_bf16 = w.values;
        for (double& value : w_bf16.v) value = round_to(DType::kBF16, value);
        const DeviceAct out(
            backend(), accumulate ? normal<2>({rows, m}, 4, 30) : Matrix({rows, m}, std::nan("")));
        const Vector bias = normal<1>({m}, 3, 10);
        const std::vector<float> values(bias.v.begin(), bias.v.end());
        const DeviceArray<float, 1> b(backend(), values);
        const Matrix before = out.values();
        Matrix want = ref::matmul(multiplied(x.values()), rounded(w_bf16));
        Matrix exact = ref::matmul(x.values(), w.values);
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < m; ++j) {
            const double more = bias[j] + (accumulate ? before[i][j] : 0);
            want[i][j] += more;
            exact[i][j] += more;
          }
        backend().run(MatMul{.x = x,
                             .parts = {{{.weight = backend().place_factor(w.weight()),
                                         .bias = b.view(),
                                         .out = out,
                                         .accumulate = accumulate}}}});
        const bool few = rows <= kMaxExactRows;
        EXPECT_LE(nmse(out.values().v, want.v), few ? 1e-5 : 3e-5);
        EXPECT_LE(nmse(out.values().v, exact.v), few ? 1e-3 : 2e-3);
      }
}

// Parts are started together, each with its scales, its bias and its output; those in another
// format are not.
TEST_P(Fp8Test, PartsAreIndependent) {
  const HostWeight weights[] = {{normal<2>({112, 96}, 2), DType::kBF16},
                                {WeightFormat::kQ4_0, 9, 96, 3},
                                {normal<2>({48, 96}, 4, 3), DType::kBF16}};
  for (const int64_t rows : {1, 8, 9}) {
    const DeviceAct x(backend(), normal<2>({rows, 96}, 1));
    const DeviceAct outs[] = {{backend(), Matrix({rows, 112}, std::nan(""))},
                              {backend(), Matrix({rows, 9}, std::nan(""))},
                              {backend(), Matrix({rows, 48}, 1.0)}};
    MatMul op = {.x = x, .parts = {}};
    for (size_t p = 0; p < 3; ++p)
      op.parts[p] = {.weight = backend().place_factor(weights[p].weight()),
                     .bias = {},
                     .out = outs[p],
                     .accumulate = p == 2};
    backend().run(op);
    for (size_t p = 0; p < 3; ++p) {
      Matrix want = p == 1 ? ref::matmul(x.values(), weights[p].values)
                           : ref::matmul(multiplied(x.values()), rounded(weights[p].values));
      for (double& y : want.v) y += p == 2;
      EXPECT_LE(nmse(outs[p].values().v, want.v), 3e-5) << rows << " part " << p;
    }
  }
}

// Checkpoints in FP8 keep their numbers where a row has one scale.
TEST_P(Fp8Test, MultipliesCheckpointsNumbers) {
  for (const bool one_scale : {true, false}) {
    HostWeight w(WeightFormat::kFP8, 48, 320, 2, 0);
    for (size_t at = 0, i = 0; at < w.bytes.size(); at += 36, ++i)
      encode(static_cast<double>(1 + (one_scale ? i / 10 : i) % 3) / 64, DType::kF32, &w.bytes[at]);
    for (int64_t i = 0; i < 48; ++i)
      for (int64_t j = 0; j < 320; ++j)
        w.values[i][j] *= static_cast<double>(1 + (one_scale ? i : i * 10 + j / 32) % 3);
    for (const int64_t rows : {1, 20}) {
      const DeviceAct x(backend(), normal<2>({rows, 320}, 1));
      const DeviceAct out(backend(), Matrix({rows, 48}, std::nan("")));
      backend().run(MatMul{
          .x = x,
          .parts = {{{.weight = backend().place_factor(w.weight()), .bias = {}, .out = out}}}});
      const Matrix want =
          ref::matmul(multiplied(x.values()), one_scale ? w.values : rounded(w.values));
      EXPECT_LE(nmse(out.values().v, want.v), 3e-5) << one_scale;
    }
  }
}

// Norms and SwiGLU round what they write; the product takes that as long as nothing came between.
TEST_P(Fp8Test, RoundsInThePassBefore) {
  for (const int64_t rows : {8, 9, 15, 200})
    for (const int64_t cols : {int64_t{288}, int64_t{4096}, int64_t{14336}}) {
      SCOPED_TRACE(testing::Message() << rows << " x " << cols);
      const DeviceAct a(backend(), normal<2>({rows, cols}, 1)),
          b(backend(), normal<2>({rows, cols}, 2));
      const DeviceAct h(backend(), Matrix({rows, cols}, std::nan("")));
      const DeviceArray<float, 1> ones(backend(),
                                       std::vector<float>(static_cast<size_t>(cols), 1.0f));
      const HostWeight host(normal<2>({16, cols}, 3), DType::kBF16);
      const Weight w = backend().place_factor(host.weight());
      const auto product = [&] {
        const DeviceAct out(backend(), Matrix({rows, 16}, std::nan("")));
        backend().run(MatMul{.x = h, .parts = {{{.weight = w, .bias = {}, .out = out}}}});
        return out.values();
      };
      for (const bool norm : {true, false}) {
        if (norm) {
          backend().run(RmsNorm{.x = a, .weight = ones.view(), .out = h});
        } else {
          backend().run(SwiGlu{.gate = a, .up = b, .out = h});
        }
        // An output is copied in between.
        const Matrix of_its_own = product();
        const DeviceAct out(backend(), Matrix({rows, 16}, std::nan("")));
        if (norm) {
          backend().run(RmsNorm{.x = a, .weight = ones.view(), .out = h});
        } else {
          backend().run(SwiGlu{.gate = a, .up = b, .out = h});
        }
        backend().run(MatMul{.x = h, .parts = {{{.weight = w, .bias = {}, .out = out}}}});
        EXPECT_EQ(out.values().v, of_its_own.v) << norm;
        EXPECT_LE(nmse(of_its_own.v, ref::matmul(multiplied(h.values()), rounded(host.values)).v),
                  3e-5);
      }
      // Another's numbers in the same place.
      backend().run(RmsNorm{.x = a, .weight = ones.view(), .out = h});
      const std::vector<char> zeros(static_cast<size_t>(rows * cols * 2));
      backend().copy_in(h.act().data, zeros.data(), std::ssize(zeros));
      for (const double y : product().v) EXPECT_EQ(y, 0);
    }
}

// What does not come in vectors of 16 numbers is multiplied as without fp8, and so are tables.
TEST_P(Fp8Test, LeavesWhatItCannotRound) {
  const HostWeight narrow(normal<2>({7, 64}, 2), DType::kBF16),
      quantized(WeightFormat::kQ4_0, 23, 64, 2), table(normal<2>({32, 64}, 3), DType::kBF16);
  const DeviceAct x(backend(), normal<2>({3, 64}, 1));
  const DeviceAct a(backend(), Matrix({3, 7}, std::nan(""))),
      b(backend(), Matrix({3, 23}, std::nan(""))), c(backend(), Matrix({3, 32}, std::nan("")));
  backend().run(MatMul{
      .x = x,
      .parts = {{{.weight = backend().place_factor(narrow.weight()), .bias = {}, .out = a},
                 {.weight = backend().place_factor(quantized.weight()), .bias = {}, .out = b},
                 {.weight = backend().place(table.weight()), .bias = {}, .out = c}}}});
  EXPECT_LE(nmse(a.values().v, ref::matmul(x.values(), narrow.values).v), 1.6e-5);
  EXPECT_LE(nmse(b.values().v, ref::matmul(x.values(), quantized.values).v), 1.6e-5);
  EXPECT_LE(nmse(c.values().v, ref::matmul(x.values(), table.values).v), 1.6e-5);
}

TEST_P(Fp8Test, KeepsWhatIsNotFinite) {
  const HostWeight w(normal<2>({16, 64}, 2), DType::kBF16);
  for (const int64_t rows : {2, 20})
    for (const double value : {double(INFINITY), std::nan("")}) {
      Matrix wanted = normal<2>({rows, 64}, 1);
      wanted[0][40] = value;
      const DeviceAct x(backend(), wanted), out(backend(), Matrix({rows, 16}, std::nan("")));
      backend().run(MatMul{
          .x = x,
          .parts = {{{.weight = backend().place_factor(w.weight()), .bias = {}, .out = out}}}});
      for (int64_t j = 0; j < 16; ++j) {
        EXPECT_FALSE(std::isfinite(out.values()[0][j]));
        EXPECT_TRUE(std::isfinite(out.values()[1][j]));
      }
    }
}

}  // namespace
}  // namespace ei::test
