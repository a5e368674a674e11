#include "ei/ops/matmul.h"

#include <numeric>

#include "ei/cpu/backend.h"
#include "tests/ref/ref.h"
#include "tests/support/backend_fixture.h"

namespace ei::test {
namespace {

EI_TILES_TEST(MatMulTest);

// One product of every kind: with and without bias, added and not, few rows and many, by weights
// where they are and in the order that the backend gives a layer's. A few rows are not rounded by
// a CPU.
TEST_P(MatMulTest, MatchesReference) {
  struct Shape {
    int64_t rows, k, m;
  };
  for (const auto& [rows, k, m] : {Shape{0, 8, 8},
                                   {1, 1, 1},
                                   {1, 64, 7},
                                   {1, 333, 130},
                                   {2, 256, 704},
                                   {5, 80, 33},
                                   {8, 129, 64},
                                   {9, 128, 65},
                                   {16, 96, 48},
                                   {17, 257, 131},
                                   {12, 256, 128},
                                   {13, 513, 127},
                                   {18, 255, 129},
                                   {67, 300, 259},
                                   {130, 65, 513},
                                   {258, 7, 16},
                                   {259, 31, 18},
                                   {530, 290, 70}})
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32})
      for (const auto& [accumulate, factor] :
           {std::pair{false, false}, {true, false}, {false, true}, {true, true}}) {
        SCOPED_TRACE(testing::Message()
                     << rows << " x " << k << " x " << m << " " << dtype_name(dtype)
                     << " accumulate " << accumulate << " factor " << factor);
        const DeviceAct x = act(normal<2>({rows, k}, 1), 1);
        const HostWeight w(normal<2>({m, k}, 2), dtype, accumulate ? 0 : 1);
        const Vector bias = normal<1>({m}, 3, 10);
        const DeviceAct out =
            accumulate ? act(normal<2>({rows, m}, 4, 30), 3) : poisoned(rows, m, 3);
        Matrix want = ref::matmul(x.values(), w.values), before = out.values();
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < m; ++j) want[i][j] += bias[j] + (accumulate ? before[i][j] : 0);
        const auto b = upload<float>(bias);
        backend().run(MatMul{.x = x,
                             .parts = {{{.weight = factor ? backend().place_factor(w.weight())
                                                          : backend().place(w.weight()),
                                         .bias = b.view(),
                                         .out = out,
                                         .accumulate = accumulate}}}});
        const bool rounded = backend().act_bytes() != 4 || rows > 8;
        EXPECT_LE(nmse(out.values().v, want.v), rounded ? tolerance(1e-9) : 1e-9);
      }
}

std::vector<WeightFormat> quantized_formats() {
  std::vector<WeightFormat> formats;
  for (const WeightBlock& block : kWeightBlocks)
    if (block.weights > 1) formats.push_back(*weight_format(block.name));
  return formats;
}

double square(const Matrix& a) {
  return std::inner_product(a.v.begin(), a.v.end(), a.v.begin(), 0.0);
}

// Sizes around every tile: on the CPU of 8 rows that go straight from the blocks, 6 and 24 beyond,
// of 16, 32 and 64 outputs, of 256 columns; on CUDA of 1, 8, 16 and 32 rows that do, of 16 and 32
// outputs, of 256 columns by 8 warps.
TEST_P(MatMulTest, MultipliesQuantizedWeights) {
  struct Shape {
    int64_t rows, k, m;
  };
  for (const WeightFormat format : quantized_formats())
    for (auto [rows, k, m] : {Shape{1, 32, 7},
                              {1, 576, 130},
                              {1, 6176, 35},
                              {2, 288, 17},
                              {3, 64, 5},
                              {4, 96, 9},
                              {5, 544, 33},
                              {6, 32, 20},
                              {7, 160, 3},
                              {8, 256, 64},
                              {9, 512, 65},
                              {2, 6176, 35},
                              {16, 4640, 33},
                              {31, 800, 127},
                              {33, 544, 64},
                              {67, 96, 259},
                              {259, 32, 18}})
      for (const bool accumulate : {false, true}) {
        k = (k + block_of(format).weights - 1) / block_of(format).weights *
            block_of(format).weights;
        SCOPED_TRACE(testing::Message() << rows << " x " << k << " x " << m << " "
                                        << block_of(format).name << " accumulate " << accumulate);
        // Some columns are larger than others, as in models.
        Matrix wanted = normal<2>({rows, k}, 1);
        for (int64_t i = 0; i < rows; ++i) wanted[i][(7 * i) % k] *= 8;
        const DeviceAct x = act(wanted, 1);
        const HostWeight w(format, m, k, 2, accumulate ? 0 : 1);
        const Vector bias = normal<1>({m}, 3, 10);
        const DeviceAct out =
            accumulate ? act(normal<2>({rows, m}, 4, 30), 3) : poisoned(rows, m, 3);
        Matrix want = ref::matmul(x.values(), w.values), before = out.values();
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < m; ++j) want[i][j] += bias[j] + (accumulate ? before[i][j] : 0);
        const auto b = upload<float>(bias);
        backend().run(MatMul{.x = x,
                             .parts = {{{.weight = backend().place(w.weight()),
                                         .bias = b.view(),
                                         .out = out,
                                         .accumulate = accumulate}}}});
        // Compared with what products of such numbers amount to on average, as few of them may
        // cancel, and with the output, which may be rounded.
        const std::vector<double> got = out.values().v;
        double error = 0;
        for (size_t i = 0; i < got.size(); ++i) error += std::pow(got[i] - want.v[i], 2);
        EXPECT_LE(error, tolerance(1e-8) * square(x.values()) * square(w.values) / double(k) +
                             tolerance(0) * square(want));
      }
}

// Floats alone: an NMSE that whole numbers of 16 bits, 3e-10 and more, do not have. Columns in an
// order of their own.
TEST(MatMulInFloatsTest, RoundsNoActivations) {
  const auto backend = make_cpu_backend(2, Math::kF32);
  for (const WeightFormat format : quantized_formats())
    for (const auto& [rows, m] : {std::pair{1, 7}, {8, 130}, {9, 65}, {300, 129}}) {
      const int64_t cols = std::max<int64_t>(192, block_of(format).weights);
      SCOPED_TRACE(testing::Message() << rows << " x " << m << " " << block_of(format).name);
      const HostWeight w(format, m, cols, 2);
      std::vector<int32_t> order(static_cast<size_t>(cols));
      for (int64_t k = 0; k < cols; ++k) order[static_cast<size_t>(k)] = int32_t(k * 5 % cols);
      Matrix turned({m, cols});
      for (int64_t j = 0; j < m; ++j)
        for (int64_t k = 0; k < cols; ++k)
          turned[j][order[static_cast<size_t>(k)]] = w.values[j][k];
      Weight ordered = w.weight();
      if (is_integer(format)) ordered.order = order.data();
      const DeviceAct x(*backend, normal<2>({rows, cols}, 1));
      const DeviceAct one(*backend, Matrix({rows, m}, 0)), other(*backend, Matrix({rows, m}, 0));
      backend->run(MatMul{.x = x,
                          .parts = {{{.weight = w.weight(), .bias = {}, .out = one},
                                     {.weight = ordered, .bias = {}, .out = other}}}});
      EXPECT_LE(nmse(one.values().v, ref::matmul(x.values(), w.values).v), 1e-11);
      EXPECT_LE(
          nmse(other.values().v, ref::matmul(x.values(), is_integer(format) ? turned : w.values).v),
          1e-11);
    }
}

TEST_P(MatMulTest, QuantizedWeightsKeepWhatIsNotFinite) {
  for (const int64_t rows : {1, 20})
    for (const double value :
         {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
      Matrix x = normal<2>({rows, 64}, 1);
      x[0][40] = value;
      const HostWeight host(WeightFormat::kQ4_0, 3, 64, 2);
      const Weight w = backend().place(host.weight());
      const DeviceAct out = poisoned(rows, 3);
      backend().run(MatMul{.x = act(x), .parts = {{{.weight = w, .bias = {}, .out = out}}}});
      for (int64_t j = 0; j < 3; ++j) EXPECT_FALSE(std::isfinite(out.values()[0][j]));
      for (int64_t j = 0; rows > 1 && j < 3; ++j) EXPECT_TRUE(std::isfinite(out.values()[1][j]));
    }
}

// As GPTQ's act-order leaves them: column j multiplies input order[j].
TEST_P(MatMulTest, MultipliesPermutedColumns) {
  const HostWeight w(WeightFormat::kQ4_0, 37, 96, 2), plain(WeightFormat::kQ4_0, 5, 96, 3);
  std::vector<int32_t> order(96);
  for (size_t j = 0; j < order.size(); ++j) order[j] = static_cast<int32_t>((j * 35 + 7) % 96);
  Weight permuted = w.weight();
  permuted.order = order.data();
  for (const int64_t rows : {1, 9, 40}) {
    const DeviceAct x = act(normal<2>({rows, 96}, 1));
    const DeviceAct out = poisoned(rows, 37), beside = poisoned(rows, 5);
    Matrix ordered({rows, 96});
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < 96; ++j) ordered[i][j] = x.values()[i][order[static_cast<size_t>(j)]];
    backend().run(MatMul{
        .x = x,
        .parts = {{{.weight = backend().place(permuted), .bias = {}, .out = out},
                   {.weight = backend().place(plain.weight()), .bias = {}, .out = beside}}}});
    EXPECT_LE(nmse(out.values().v, ref::matmul(ordered, w.values).v), tolerance(1e-8)) << rows;
    EXPECT_LE(nmse(beside.values().v, ref::matmul(x.values(), plain.values).v), tolerance(1e-8));
  }
}

// Formats may differ from part to part, and each has its bias and its output.
TEST_P(MatMulTest, PartsAreIndependent) {
  const HostWeight quantized[] = {{WeightFormat::kQ4_K, 70, 256, 2},
                                  {WeightFormat::kQ6_K, 9, 256, 3},
                                  {WeightFormat::kQ4_K, 33, 256, 4}};
  const HostWeight floats[] = {{normal<2>({70, 96}, 2), DType::kBF16},
                               {normal<2>({9, 96}, 3), DType::kF32},
                               {normal<2>({33, 96}, 4), DType::kF16}};
  for (const auto& [weights, error] :
       {std::pair{std::span(quantized), 1e-8}, {std::span(floats), 1e-9}})
    for (const int64_t rows : {1, 3, 40}) {
      const DeviceAct x = act(normal<2>({rows, weights[0].values.dim(1)}, 1));
      const DeviceAct outs[] = {poisoned(rows, 70), act(Matrix({rows, 9}, 0.0)),
                                poisoned(rows, 33)};
      MatMul op = {.x = x, .parts = {}};
      for (size_t p = 0; p < 3; ++p)
        op.parts[p] = {.weight = backend().place_factor(weights[p].weight()),
                       .bias = {},
                       .out = outs[p],
                       .accumulate = p == 1};
      backend().run(op);
      for (size_t p = 0; p < 3; ++p)
        EXPECT_LE(nmse(outs[p].values().v, ref::matmul(x.values(), weights[p].values).v),
                  tolerance(error));
    }
}

TEST_P(MatMulTest, ThreadsDoNotChangeTheResult) {
  for (const auto& [rows, quantized] : {std::pair{1, false},
                                        {4, false},
                                        {100, false},
                                        {300, false},
                                        {1, true},
                                        {7, true},
                                        {300, true}}) {
    const DeviceAct x = act(normal<2>({rows, 1024}, 1));
    const HostWeight w = quantized ? HostWeight(WeightFormat::kQ4_K, 300, 1024, 2)
                                   : HostWeight(normal<2>({300, 1024}, 2), DType::kBF16);
    std::vector<std::vector<double>> results;
    for (const int n_threads : {1, 2, 3}) {
      const auto other = make_backend(n_threads);
      const DeviceAct out = poisoned(rows, 300);
      other->run(
          MatMul{.x = x,
                 .parts = {{{.weight = other->place_factor(w.weight()), .bias = {}, .out = out}}}});
      results.push_back(out.values().v);
    }
    EXPECT_EQ(results[0], results[1]) << rows;
    EXPECT_EQ(results[0], results[2]) << rows;
  }
}

TEST_P(MatMulTest, RejectsShapesThatDisagree) {
  const HostWeight w(normal<2>({4, 8}, 2), DType::kBF16);
  Weight part_of_a_block = w.weight();
  part_of_a_block.format = WeightFormat::kQ8_0;
  EXPECT_THROW(backend().run(MatMul{
                   .x = poisoned(1, 8),
                   .parts = {{{.weight = part_of_a_block, .bias = {}, .out = poisoned(1, 4)}}}}),
               Error);
  EXPECT_THROW(
      backend().run(MatMul{.x = poisoned(1, 7),
                           .parts = {{{.weight = w.weight(), .bias = {}, .out = poisoned(1, 4)}}}}),
      Error);
  EXPECT_THROW(
      backend().run(MatMul{.x = poisoned(1, 8),
                           .parts = {{{.weight = w.weight(), .bias = {}, .out = poisoned(1, 5)}}}}),
      Error);
}

}  // namespace
}  // namespace ei::test
