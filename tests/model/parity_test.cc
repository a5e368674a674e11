#include <cmath>
#include <cstring>
#include <numeric>

#include "ei/io/safetensors.h"
#include "ei/model/model.h"
#include "tests/support/device_kv.h"

namespace ei::test {
namespace {

template <class T>
std::vector<T> values_of(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo& tensor = file.tensors().at(name);
  std::vector<T> values(static_cast<size_t>(tensor.size()));
  EXPECT_EQ(tensor.data.size(), values.size() * sizeof(T));
  std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  return values;
}

// Reads `tokens` densely in chunks, and gives the logits at every position.
Matrix dense_logits(Backend& backend, const Model& model, std::span<const int32_t> tokens,
                    int64_t max_chunk, DType kv_type) {
  constexpr int64_t kSegment = 64, kBlock = 8;
  const ModelConfig& config = model.config();
  const auto n = std::ssize(tokens);
  std::vector<DeviceKv> layers;
  for (int l = 0; l < config.n_layers; ++l)
    layers.emplace_back(
        backend,
        DeviceKv::Shape{
            .dtype = kv_type, .head_dim = config.head_dim, .page_rows = kSegment, .max_rows = n},
        random_heads(std::vector<int64_t>(size_t(config.n_kv_heads), 0), config.head_dim, 0));
  Activations act(backend, config, max_chunk, max_chunk);
  Matrix logits({n, config.vocab_size});
  for (int64_t begin = 0; begin < n; begin += max_chunk) {
    const int64_t size = std::min(max_chunk, n - begin);
    std::vector<int32_t> positions(static_cast<size_t>(size));
    std::iota(positions.begin(), positions.end(), static_cast<int32_t>(begin));
    model.embed(act, tokens.subspan(static_cast<size_t>(begin), positions.size()), positions);

    const int64_t n_segments = (begin + size + kSegment - 1) / kSegment - begin / kSegment;
    const std::vector<int32_t> all(static_cast<size_t>(config.n_kv_heads * n_segments), kAllBlocks);
    DeviceArray<int32_t, 2> count(backend, {config.n_kv_heads, n_segments});
    backend.copy_in(count.view().data, all.data(), std::ssize(all) * int64_t{sizeof(int32_t)});
    for (int l = 0; l < config.n_layers; ++l) {
      DeviceKv& kv = layers[static_cast<size_t>(l)];
      const Qkv qkv = model.project(l, act);
      kv.expect_rows(size);
      const KvLayer layer = kv.layer();
      backend.run(AppendKv{.k = qkv.k, .v = qkv.v, .kv = {&layer, 1}});
      backend.run(SparseAttention{.q = qkv.q,
                                  .kv = layer,
                                  .begin = begin,
                                  .segment = kSegment,
                                  .block = kBlock,
                                  .selection = {.count = count.view(), .index = {}},
                                  .scale = 1 / std::sqrt(static_cast<float>(config.head_dim)),
                                  .out = model.context(act)});
      model.finish(l, act);
    }
    const Act out = model.logits(act, 0, size);
    std::vector<float> rows(static_cast<size_t>(size * config.vocab_size));
    backend.copy_out(rows.data(), out.data, std::ssize(rows) * int64_t{sizeof(float)});
    std::copy(rows.begin(), rows.end(), logits[begin].data);
  }
  return logits;
}

// The logits of Hugging Face transformers, in float32 with the same weights, at every one of 600
// positions. With a float cache the tolerance leaves room for sums in another order and for RoPE
// frequencies that Hugging Face computes in float32: at position 600 an angle is off by up to 6e-5.
// With a cache of bf16, whose rounding is 2^-9, the likeliest token is the same at 99% of them.
class ParityTest : public BackendTest {
 protected:
  void expect_parity(const std::string& name) {
    const std::filesystem::path dir = std::string(EI_SOURCE_DIR "/tests/data/tiny/") + name;
    const Model model = Model::load(backend(), dir);
    const SafetensorsFile expected(dir / "expected.safetensors");
    const auto tokens = values_of<int32_t>(expected, "tokens");
    const auto want = values_of<float>(expected, "logits");
    ASSERT_EQ(tokens.size(), 600u);

    const auto logits = [&](DType kv_type) {
      return dense_logits(backend(), model, tokens, /*max_chunk=*/250, kv_type);
    };
    const Matrix exact = logits(DType::kF32);
    ASSERT_EQ(exact.v.size(), want.size());
    double worst = 0, error = 0, norm = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_TRUE(std::isfinite(exact.v[i])) << i;
      worst = std::max(worst, std::abs(exact.v[i] - want[i]));
      error += std::pow(exact.v[i] - want[i], 2);
      norm += std::pow(double(want[i]), 2);
    }
    RecordProperty("worst", std::to_string(worst));
    RecordProperty("nmse", std::to_string(error / norm));
    if (rounds()) {
      // Some dozens of roundings to bf16, each of up to 2^-9 of a value.
      EXPECT_LT(error / norm, 1e-3);
      return;
    }
    EXPECT_LT(worst, 2e-3);

    const Matrix rounded = logits(DType::kBF16);
    const auto n = std::ssize(tokens), vocab = std::ssize(want) / n;
    int64_t n_same = 0;
    for (int64_t i = 0; i < n; ++i) {
      const auto argmax = [&](const auto& all) {
        const auto row = all.begin() + i * vocab;
        return std::max_element(row, row + vocab) - row;
      };
      n_same += argmax(rounded.v) == argmax(want);
    }
    EXPECT_GE(double(n_same), 0.99 * double(n));
  }
};

INSTANTIATE_TEST_SUITE_P(On, ParityTest, testing::ValuesIn(backend_names(true)), backend_name);

TEST_P(ParityTest, Llama2) { expect_parity("llama2"); }
TEST_P(ParityTest, Llama31) { expect_parity("llama31"); }
TEST_P(ParityTest, Llama32) { expect_parity("llama32"); }
TEST_P(ParityTest, LlamaYarn) { expect_parity("llama_yarn"); }
TEST_P(ParityTest, LlamaLinear) { expect_parity("llama_linear"); }
TEST_P(ParityTest, Qwen25) { expect_parity("qwen25"); }
TEST_P(ParityTest, Qwen3) { expect_parity("qwen3"); }
TEST_P(ParityTest, Mistral) { expect_parity("mistral"); }
TEST_P(ParityTest, OpenPangu) { expect_parity("openpangu"); }

}  // namespace
}  // namespace ei::test
