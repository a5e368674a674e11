#include "ei/model/model.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "ei/ops/weight_blocks.h"
#include "tests/support/backend_fixture.h"
#include "tests/support/files.h"
#include "tests/support/numbers.h"

namespace ei::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const std::filesystem::path kTiny = EI_SOURCE_DIR "/tests/data/tiny";

// A copy of tests/data/tiny/llama2 whose parts can be changed: hidden 64, intermediate 96, 2
// layers, 4 heads of 16, 128 tokens, all F16.
class Broken {
 public:
  Broken() : config(read_json(kTiny / "llama2/config.json")) {
    const SafetensorsFile file(kTiny / "llama2/model.safetensors");
    for (const auto& [name, tensor] : file.tensors()) {
      header[name] =
          tensor_json(tensor.dtype, tensor.shape, data.size(), data.size() + tensor.data.size());
      data.append(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size());
    }
  }

  // Adds a tensor of zeros.
  void add(const std::string& name, std::string_view dtype, const std::vector<int64_t>& shape,
           size_t bytes) {
    header[name] = tensor_json(dtype, shape, data.size(), data.size() + bytes);
    data.append(bytes, '\0');
  }
  Json& tensor(const std::string& name) { return header.at(name); }
  void rename(const std::string& from, const std::string& to) {
    header[to] = header.at(from);
    header.erase(from);
  }

  std::filesystem::path write() const {
    write_file(dir_ / "config.json", config.dump());
    write_file(dir_ / "model.safetensors", safetensors_bytes(header, data));
    return dir_.path();
  }

  Json config;
  Json header = Json::object();
  std::string data;

 private:
  TempDir dir_;
};

class ModelTest : public BackendTest {
 protected:
  std::string error(const Broken& broken) {
    return error_of([&] { Model::load(backend(), broken.write()); });
  }
  Matrix values(const Act& act) {
    const DType type = act.elem_bytes == 4 ? DType::kF32 : DType::kBF16;
    std::vector<char> bytes(static_cast<size_t>(act.rows * act.cols * act.elem_bytes));
    backend().copy_out(bytes.data(), act.data, std::ssize(bytes));
    Matrix matrix({act.rows, act.cols});
    for (size_t i = 0; i < matrix.v.size(); ++i)
      matrix.v[i] = decode(bytes.data() + i * static_cast<size_t>(act.elem_bytes), type);
    return matrix;
  }
  // The logits of a few tokens when attention gives zeros.
  Matrix logits(const Model& model) {
    const std::vector<int32_t> tokens = {1, 77, 5}, positions = {0, 1, 2};
    Activations act(backend(), model.config(), 3, 3);
    model.embed(act, tokens, positions);
    for (int l = 0; l < model.config().n_layers; ++l) {
      const Act context = model.context(act);
      const std::vector<char> zeros(
          static_cast<size_t>(context.rows * context.cols * context.elem_bytes));
      model.project(l, act);
      backend().copy_in(context.data, zeros.data(), std::ssize(zeros));
      model.finish(l, act);
    }
    return values(model.logits(act, 0, 3));
  }
};
INSTANTIATE_TEST_SUITE_P(On, ModelTest, testing::ValuesIn(backend_names()), backend_name);

TEST_P(ModelTest, LoadsCountsAndMoves) {
  std::vector<std::pair<int64_t, int64_t>> steps;
  Model loaded = Model::load(backend(), kTiny / "llama2", {},
                             [&](int64_t done, int64_t total) { steps.emplace_back(done, total); });
  const int64_t matrices = 2 * 128 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 96), norms = 5 * 64;
  EXPECT_EQ(loaded.n_parameters(), matrices + norms);
  EXPECT_EQ(loaded.weight_bytes(), 2 * matrices + 4 * norms);
  ASSERT_EQ(steps.size(), 2u + 2 * 7);
  EXPECT_EQ(steps.back().first, 2 * matrices);
  EXPECT_EQ(steps.back().second, loaded.weight_bytes());

  const Matrix before = logits(loaded);
  const Model moved = std::move(loaded);
  EXPECT_EQ(logits(moved).v, before.v);
  EXPECT_EQ(Model::load(backend(), kTiny / "llama32").n_parameters(),
            128 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96) + norms);
}

TEST_P(ModelTest, LogitsOfSomeRowsAreThoseOfAll) {
  const Model model = Model::load(backend(), kTiny / "llama2");
  const std::vector<int32_t> tokens = {1, 77, 5, 127, 0}, positions = {0, 1, 2, 3, 4};
  Activations act(backend(), model.config(), 8, 5);
  model.embed(act, tokens, positions);
  const Matrix all = values(model.logits(act, 0, 5));
  for (int64_t first = 0; first < 5; ++first) {
    const Matrix some = values(model.logits(act, first, std::min<int64_t>(2, 5 - first)));
    for (int64_t i = 0; i < some.dim(0); ++i)
      for (int64_t j = 0; j < 128; ++j)
        EXPECT_NEAR(some[i][j], all[first + i][j], 1e-5 * std::abs(all[first + i][j]) + 1e-6);
  }
  EXPECT_THAT(error_of([&] { model.logits(act, 4, 2); }), HasSubstr("5 rows"));
  EXPECT_THAT(error_of([&] { model.logits(act, -1, 1); }), HasSubstr("5 rows"));
}

TEST_P(ModelTest, WhatALayerReadsAndWrites) {
  const SafetensorsFile file(kTiny / "llama2/model.safetensors");
  const auto numbers = [&](int layer, const std::string& name) {
    const auto& data =
        file.tensors().at("model.layers." + std::to_string(layer) + "." + name + ".weight").data;
    std::vector<double> out;
    for (size_t i = 0; i < data.size() / 2; ++i)
      out.push_back(decode(reinterpret_cast<const char*>(data.data()) + 2 * i, DType::kF16));
    return out;
  };
  for (const auto format : {std::optional<WeightFormat>(), std::optional(WeightFormat::kQ8_0)}) {
    const Model model = Model::load(backend(), kTiny / "llama2", format);
    Activations act(backend(), model.config(), 3, 1);
    model.embed(act, std::vector<int32_t>{1, 77, 5}, std::vector<int32_t>{0, 1, 2});
    const DeviceAct columns = poisoned(16, 64);
    for (int l = 0; l < 2; ++l) {
      // Wo [64, 4 * 16].
      const std::vector<double> wo = numbers(l, "self_attn.o_proj");
      for (int64_t head = 0; head < 4; ++head) {
        Matrix want({16, 64});
        for (int64_t i = 0; i < 64; ++i) {
          std::vector<float> row(wo.begin() + i * 64, wo.begin() + (i + 1) * 64);
          if (format) {
            std::vector<char> blocks(size_t(row_bytes(*format, 64)));
            quantize(*format, row.data(), 64, blocks.data());
            dequantize(*format, blocks.data(), 64, row.data());
          }
          for (int64_t c = 0; c < 16; ++c) want[c][i] = double(row[size_t(head * 16 + c)]);
        }
        model.output_columns(l, head, columns);
        EXPECT_LE(nmse(columns.values().v, want.v), tolerance(1e-9)) << l << " " << head;
      }
      const std::vector<double> weight = numbers(l, "input_layernorm");
      Matrix want = values(model.residual(act));
      for (int64_t i = 0; i < 3; ++i) {
        double* x = want[i].data;
        const double square = std::inner_product(x, x + 64, x, 0.0) / 64;
        for (int64_t c = 0; c < 64; ++c)
          x[c] *= weight[size_t(c)] / std::sqrt(square + double(model.config().rms_norm_eps));
      }
      EXPECT_LE(nmse(values(model.input(l, act)).v, want.v), tolerance(1e-9)) << l;
      model.project(l, act);
      const std::vector<char> zeros(size_t(3 * 64 * backend().act_bytes()));
      backend().copy_in(model.context(act).data, zeros.data(), std::ssize(zeros));
      model.finish(l, act);
    }
  }
}

TEST_P(ModelTest, EmbedRefusesForeignIds) {
  const Model model = Model::load(backend(), kTiny / "llama2");
  Activations act(backend(), model.config(), 2, 1);
  const auto embed = [&](std::vector<int32_t> tokens, std::vector<int32_t> positions) {
    return error_of([&] { model.embed(act, tokens, positions); });
  };
  EXPECT_EQ(embed({0, 127}, {0, 5}), "");
  EXPECT_THAT(embed({0, 128}, {0, 1}), AllOf(HasSubstr("token id 128"), HasSubstr("128 tokens")));
  EXPECT_THAT(embed({-1}, {0}), HasSubstr("token id -1"));
  EXPECT_THAT(embed({1}, {-1}), HasSubstr("position -1"));
  EXPECT_THAT(embed({1, 2}, {0}), HasSubstr("2 tokens, but 1 positions"));
  EXPECT_THAT(embed({1, 2, 3}, {0, 1, 2}), HasSubstr("3 tokens in a chunk, there is room for 2"));
  EXPECT_EQ(act.rows(), 2);
}

TEST_P(ModelTest, ActivationsTakeAsMuchAsTheySay) {
  const ModelConfig config = load_config(kTiny / "qwen3");
  // x, h 64; q, context 128; k, v 64; gate, up 96; id, position; cos, sin of 16 channels. Logits
  // are floats.
  EXPECT_EQ(
      Activations::bytes(backend(), config, 10, 3),
      10 * ((2 * (64 + 128 + 64 + 96)) * backend().act_bytes() + 8 + 2 * 16 * 4) + 3 * 128 * 4);
}

TEST_P(ModelTest, RefusesTensorsThatConfigDoesNotDescribe) {
  const std::string q = "model.layers.1.self_attn.q_proj.weight";
  EXPECT_EQ(error(Broken()), "");
  {
    Broken broken;
    broken.rename(q, "lm_body.weight");
    EXPECT_THAT(error(broken), AllOf(HasSubstr("model.safetensors"), HasSubstr(q),
                                     HasSubstr("missing"), HasSubstr("[64, 64]")));
  }
  {
    Broken broken;
    broken.tensor(q)["shape"] = {128, 32};
    EXPECT_THAT(error(broken),
                AllOf(HasSubstr(q), HasSubstr("[128, 32]"), HasSubstr("expected [64, 64]")));
  }
  {
    Broken broken;
    broken.tensor("model.norm.weight")["shape"] = {1, 64};
    EXPECT_THAT(error(broken),
                AllOf(HasSubstr("model.norm.weight"), HasSubstr("[1, 64], expected [64]")));
  }
  {
    Broken broken;
    broken.tensor(q)["dtype"] = "I16";
    EXPECT_THAT(error(broken), AllOf(HasSubstr(q), HasSubstr("I16"),
                                     HasSubstr("not supported; these are: F32, F16, BF16")));
  }
  {
    Broken broken;
    broken.config["vocab_size"] = 129;
    EXPECT_THAT(error(broken), AllOf(HasSubstr("embed_tokens"), HasSubstr("[129, 64]")));
  }
  {
    Broken broken;
    broken.config["num_hidden_layers"] = 3;
    EXPECT_THAT(error(broken), AllOf(HasSubstr("model.layers.2."), HasSubstr("missing")));
  }
  {
    Broken broken;
    broken.config["num_hidden_layers"] = 1;
    EXPECT_THAT(error(broken), AllOf(HasSubstr("model.layers.1."), HasSubstr("not part of")));
  }
  {
    Broken broken;
    broken.rename("lm_head.weight", "head.weight");
    EXPECT_THAT(error(broken), HasSubstr("lm_head.weight is missing"));
    broken.config["tie_word_embeddings"] = true;
    EXPECT_EQ(error(broken), "");
  }
}

// Models of embeddings are saved so.
TEST_P(ModelTest, NamesMayBeginBelowTheModel) {
  Broken whole, bare;
  for (const auto& [name, tensor] : whole.header.items())
    if (name.starts_with("model.")) bare.rename(name, name.substr(6));
  EXPECT_EQ(logits(Model::load(backend(), bare.write())).v,
            logits(Model::load(backend(), whole.write())).v);
  bare.rename("layers.1.mlp.up_proj.weight", "layers.1.mlp.up.weight");
  EXPECT_THAT(error(bare), HasSubstr("up_proj.weight is missing"));
}

// Leaving a bias out would give wrong answers without a word.
TEST_P(ModelTest, RefusesBiasesItDoesNotUse) {
  Broken broken;
  broken.add("model.layers.0.self_attn.rotary_emb.inv_freq", "F64", {8}, 64);
  EXPECT_EQ(error(broken), "");
  broken.add("model.layers.0.self_attn.k_proj.bias", "F32", {64}, 256);
  EXPECT_THAT(error(broken), HasSubstr("model.layers.1.self_attn.k_proj.bias is missing"));
  broken.add("model.layers.1.self_attn.k_proj.bias", "F16", {64}, 128);
  EXPECT_EQ(error(broken), "");
  broken.add("model.layers.1.mlp.up_proj.bias", "F16", {96}, 192);
  EXPECT_THAT(error(broken), AllOf(HasSubstr("mlp.up_proj.bias"), HasSubstr("not part of")));
}

TEST_P(ModelTest, TensorsNeedNotBeAligned) {
  Broken aligned, odd;
  odd.data.clear();
  odd.header = Json::object();
  odd.add("a_byte", "U8", {1}, 1);
  for (const auto& [name, tensor] : aligned.header.items()) {
    const size_t begin = tensor["data_offsets"][0], end = tensor["data_offsets"][1];
    const std::string bytes = aligned.data.substr(begin, end - begin);
    odd.add(name, "F16", tensor["shape"], bytes.size());
    odd.data.replace(odd.data.size() - bytes.size(), bytes.size(), bytes);
  }
  // One of the two is at an odd address in the file, whatever the length of the header.
  odd.header["__metadata__"] = {{"pad", odd.header.dump().size() % 2 ? "" : "x"}};
  EXPECT_EQ(logits(Model::load(backend(), odd.write())).v,
            logits(Model::load(backend(), aligned.write())).v);
}

TEST_P(ModelTest, RandomModelsAreUsableAndRepeatable) {
  for (const char* name : {"llama32", "qwen25", "qwen3", "openpangu"}) {
    SCOPED_TRACE(name);
    const ModelConfig config = load_config(kTiny / name);
    const Model model = Model::random(backend(), config, 7);
    EXPECT_EQ(model.n_parameters(), Model::load(backend(), kTiny / name).n_parameters());
    const Matrix a = logits(model);
    EXPECT_EQ(a.v, logits(Model::random(backend(), config, 7)).v);
    EXPECT_NE(a.v, logits(Model::random(backend(), config, 8)).v);
    double square = 0;
    for (const double x : a.v) square += x * x;
    const double deviation = std::sqrt(square / static_cast<double>(a.v.size()));
    const double want = config.tie_word_embeddings ? std::sqrt(64.0) : 1;
    EXPECT_GT(deviation, 0.5 * want);
    EXPECT_LT(deviation, 2 * want);
  }
}

// The point of Model::random: one head attends to everything, another to a few tokens.
TEST_P(ModelTest, HeadsOfRandomModelsDifferInTheirScores) {
  ModelConfig config = load_config(kTiny / "llama2");
  config.n_heads = config.n_kv_heads = 64;
  const Model model = Model::random(backend(), config, 1);
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 6, 7, 8};
  Activations act(backend(), config, 8, 1);
  model.embed(act, tokens, tokens);
  const Matrix q = values(model.project(0, act).q.reshape(config.head_dim));
  std::vector<double> size(64);
  for (int64_t i = 0; i < q.dim(0); ++i)
    for (const double x : q[i]) size[static_cast<size_t>(i % 64)] += x * x / (8 * 16);
  std::ranges::sort(size);
  EXPECT_LT(std::sqrt(size.front()), 0.2);
  EXPECT_GT(std::sqrt(size.back()), 5);
  EXPECT_LT(std::sqrt(size[16]), 1);
  EXPECT_GT(std::sqrt(size[48]), 1);
}

}  // namespace
}  // namespace ei::test
