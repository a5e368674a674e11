#include "ei/model/quantized_tensors.h"

#include <gmock/gmock.h>

#include <cmath>
#include <functional>
#include <random>

#include "ei/base/half.h"
#include "ei/cpu/backend.h"
#include "ei/model/model.h"
#include "tests/support/array.h"
#include "tests/support/files.h"

namespace ei::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr int64_t kHidden = 256, kWide = 384, kVocab = 40, kGroup = 128;

// A checkpoint of one layer as it is written.
struct Files {
  Json config = {{"architectures", {"LlamaForCausalLM"}},
                 {"hidden_size", kHidden},
                 {"intermediate_size", kWide},
                 {"num_hidden_layers", 1},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"vocab_size", kVocab},
                 {"max_position_embeddings", 64},
                 {"tie_word_embeddings", true}};
  Json header = Json::object();
  std::string data;

  template <class T>
  void add(const std::string& name, std::string_view dtype, const std::vector<int64_t>& shape,
           const std::vector<T>& values) {
    const size_t bytes = values.size() * sizeof(T);
    header[name] = tensor_json(dtype, shape, data.size(), data.size() + bytes);
    data.append(reinterpret_cast<const char*>(values.data()), bytes);
  }
  void write(const TempDir& dir) const {
    write_file(dir / "config.json", config.dump());
    write_file(dir / "model.safetensors", safetensors_bytes(header, data));
  }
};

// One matrix in a scheme, made of random numbers by the scheme's definition: its tensors are added
// to `files`, and what they stand for is returned, [rows, cols].
using Scheme = std::function<Matrix(Files& files, const std::string& module, int64_t rows,
                                    int64_t cols, std::mt19937_64& random)>;

int up_to(int n, std::mt19937_64& random) { return std::uniform_int_distribution(0, n)(random); }

// Scales around 0.02, each exactly a half, or of 24 bits.
std::vector<float> random_scales(int64_t n, bool halves, std::mt19937_64& random) {
  std::vector<float> scales(static_cast<size_t>(n));
  for (float& scale : scales) {
    scale = std::uniform_real_distribution<float>(0.01f, 0.03f)(random);
    if (halves) scale = from_f16(to_f16(scale));
  }
  return scales;
}
std::vector<uint16_t> as_halves(const std::vector<float>& values) {
  std::vector<uint16_t> halves;
  for (const float value : values) halves.push_back(to_f16(value));
  return halves;
}

// (numbers - zeros) * scales with a scale and a zero point for every row and group.
struct WholeNumbers {
  int64_t rows, cols, n_groups;
  std::vector<int> q, zero, group;  // [rows, cols], [rows, groups], [cols]
  std::vector<float> scale;         // [rows, groups]

  WholeNumbers(int64_t rows, int64_t cols, int bits, bool has_zeros, bool halves,
               std::mt19937_64& random)
      : rows(rows), cols(cols), n_groups(cols / kGroup) {
    const int top = (1 << bits) - 1;
    for (int64_t i = 0; i < rows * cols; ++i) q.push_back(up_to(top, random));
    for (int64_t i = 0; i < rows * n_groups; ++i)
      zero.push_back(has_zeros ? 1 + up_to(top - 1, random) : (top + 1) / 2);
    for (int64_t k = 0; k < cols; ++k) group.push_back(static_cast<int>(k / kGroup));
    scale = random_scales(rows * n_groups, halves, random);
    if (bits == 8)
      for (float& s : scale) s /= 16;
  }
  size_t of(int64_t row, int g) const { return static_cast<size_t>(row * n_groups + g); }
  Matrix values() const {
    Matrix values({rows, cols});
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = 0; k < cols; ++k) {
        const size_t g = of(i, group[static_cast<size_t>(k)]);
        values[i][k] = (q[static_cast<size_t>(i * cols + k)] - zero[g]) * double(scale[g]);
      }
    return values;
  }
};

// Words [a, b / per] or [a / per, b] of numbers [a, b], the i-th of a word `place[i]` numbers up.
template <class At>
std::vector<uint32_t> packed(int64_t a, int64_t b, int bits, bool along_b, const At& at,
                             std::vector<int> place = {0, 1, 2, 3, 4, 5, 6, 7}) {
  const int64_t per = 32 / bits, width = along_b ? b / per : b;
  std::vector<uint32_t> words(static_cast<size_t>(along_b ? a * width : a / per * b));
  for (int64_t i = 0; i < a; ++i)
    for (int64_t j = 0; j < b; ++j) {
      const int64_t word = along_b ? i * width + j / per : i / per * width + j;
      const auto slot = static_cast<size_t>(along_b ? j % per : i % per);
      words[static_cast<size_t>(word)] |= static_cast<uint32_t>(at(i, j)) << bits * place[slot];
    }
  return words;
}

Scheme gptq(int bits, bool has_zeros, bool act_order) {
  return [=](Files& files, const std::string& module, int64_t rows, int64_t cols,
             std::mt19937_64& random) {
    WholeNumbers w(rows, cols, bits, has_zeros, true, random);
    // Matrices that multiply the same inputs share their order, as GPTQ has it.
    std::mt19937_64 order(static_cast<uint64_t>(cols));
    if (act_order) std::shuffle(w.group.begin(), w.group.end(), order);
    const int64_t per = 32 / bits;
    const auto q = [&](int64_t k, int64_t row) { return w.q[static_cast<size_t>(row * cols + k)]; };
    const auto zero = [&](int64_t g, int64_t row) { return w.zero[w.of(row, int(g))] - 1; };
    std::vector<uint16_t> scales;
    for (int g = 0; g < w.n_groups; ++g)
      for (int64_t row = 0; row < rows; ++row) scales.push_back(to_f16(w.scale[w.of(row, g)]));
    files.add(module + ".qweight", "I32", {cols / per, rows}, packed(cols, rows, bits, false, q));
    files.add(module + ".qzeros", "I32", {w.n_groups, rows / per},
              packed(w.n_groups, rows, bits, true, zero));
    files.add(module + ".scales", "F16", {w.n_groups, rows}, scales);
    files.add(module + ".g_idx", "I32", {cols}, w.group);
    files.add(module + ".bias", "F16", {rows}, std::vector<uint16_t>(static_cast<size_t>(rows)));
    return w.values();
  };
}

Matrix awq(Files& files, const std::string& module, int64_t rows, int64_t cols,
           std::mt19937_64& random) {
  const WholeNumbers w(rows, cols, 4, true, true, random);
  // Outputs 0 2 4 6 1 3 5 7 stand in a word from its lowest bits on: where each of 0 to 7 is.
  const std::vector<int> place = {0, 4, 1, 5, 2, 6, 3, 7};
  const auto q = [&](int64_t k, int64_t row) { return w.q[static_cast<size_t>(row * cols + k)]; };
  const auto zero = [&](int64_t g, int64_t row) { return w.zero[w.of(row, int(g))]; };
  std::vector<uint16_t> scales;
  for (int g = 0; g < w.n_groups; ++g)
    for (int64_t row = 0; row < rows; ++row) scales.push_back(to_f16(w.scale[w.of(row, g)]));
  files.add(module + ".qweight", "I32", {cols, rows / 8}, packed(cols, rows, 4, true, q, place));
  files.add(module + ".qzeros", "I32", {w.n_groups, rows / 8},
            packed(w.n_groups, rows, 4, true, zero, place));
  files.add(module + ".scales", "F16", {w.n_groups, rows}, scales);
  return w.values();
}

Scheme pack_quantized(int bits, bool has_zeros, bool halves, bool act_order = false) {
  return [=](Files& files, const std::string& module, int64_t rows, int64_t cols,
             std::mt19937_64& random) {
    WholeNumbers w(rows, cols, bits, has_zeros, halves, random);
    if (act_order) std::shuffle(w.group.begin(), w.group.end(), random);
    const int64_t per = 32 / bits;
    const auto q = [&](int64_t row, int64_t k) { return w.q[static_cast<size_t>(row * cols + k)]; };
    const auto zero = [&](int64_t row, int64_t g) { return w.zero[w.of(row, int(g))]; };
    files.add(module + ".weight_packed", "I32", {rows, cols / per},
              packed(rows, cols, bits, true, q));
    if (halves) {
      files.add(module + ".weight_scale", "F16", {rows, w.n_groups}, as_halves(w.scale));
    } else {
      files.add(module + ".weight_scale", "F32", {rows, w.n_groups}, w.scale);
    }
    if (has_zeros)
      files.add(module + ".weight_zero_point", "I32", {rows / per, w.n_groups},
                packed(rows, w.n_groups, bits, false, zero));
    if (act_order) files.add(module + ".weight_g_idx", "I32", {cols}, w.group);
    files.add(module + ".weight_shape", "I64", {2}, std::vector{rows, cols});
    return w.values();
  };
}

Matrix int_quantized(Files& files, const std::string& module, int64_t rows, int64_t cols,
                     std::mt19937_64& random) {
  const std::vector<float> scale = random_scales(rows, false, random);
  Matrix values({rows, cols});
  std::vector<int8_t> q;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < cols; ++k) {
      q.push_back(static_cast<int8_t>(up_to(255, random) - 128));
      values[i][k] = q.back() * double(scale[static_cast<size_t>(i)]) / 16;
    }
  std::vector<float> stored;
  for (const float s : scale) stored.push_back(s / 16);
  files.add(module + ".weight", "I8", {rows, cols}, q);
  files.add(module + ".weight_scale", "F32", {rows, 1}, stored);
  return values;
}

// Numbers of e4m3 with a scale for `high` rows by `wide` columns.
Scheme fp8(const std::string& suffix, std::function<std::vector<int64_t>(int64_t rows)> shape,
           int64_t high, int64_t wide) {
  return [=](Files& files, const std::string& module, int64_t rows, int64_t cols,
             std::mt19937_64& random) {
    const int64_t across = (cols + wide - 1) / wide, down = (rows + high - 1) / high;
    const std::vector<float> scale = random_scales(down * across, false, random);
    Matrix values({rows, cols});
    std::vector<uint8_t> bytes;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = 0; k < cols; ++k) {
        const int exponent = up_to(8, random), mantissa = up_to(7, random);
        const int negative = up_to(1, random);
        bytes.push_back(static_cast<uint8_t>(negative << 7 | exponent << 3 | mantissa));
        const double value =
            exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1 + mantissa / 8.0, exponent - 7);
        values[i][k] = (negative ? -value : value) *
                       double(scale[static_cast<size_t>(i / high * across + k / wide)]);
      }
    files.add(module + ".weight", "F8_E4M3", {rows, cols}, bytes);
    files.add(module + suffix, "F32", shape ? shape(rows) : std::vector<int64_t>{down, across},
              scale);
    files.add(module + ".input_scale", "F32", {}, std::vector<float>{1});
    return values;
  };
}

// Everything that a layer's matrices have a part in, where attention gives the queries.
Matrix results(const Model& model, Backend& backend) {
  const std::vector<int32_t> tokens = {1, 7, 33, 0, 12, 5, 2, 3, 39, 9}, positions = tokens;
  const auto n = std::ssize(tokens);
  Activations act(backend, model.config(), n, n);
  model.embed(act, tokens, positions);
  Matrix all({n, 2 * kHidden + kVocab});
  const auto take = [&](const Act& from, int64_t at) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < from.cols; ++j)
        all[i][at + j] = static_cast<const float*>(from.data)[i * from.cols + j];
  };
  const Qkv qkv = model.project(0, act);
  take(qkv.k, 0);
  take(qkv.v, kHidden / 2);
  std::copy_n(static_cast<const float*>(qkv.q.data), n * kHidden,
              static_cast<float*>(model.context(act).data));
  model.finish(0, act);
  take(model.residual(act), kHidden);
  take(model.logits(act, 0, n), 2 * kHidden);
  return all;
}

// The checkpoint in a scheme, and the same values in F32.
struct Pair {
  Files quantized, plain;

  Pair(const Json& quantization, const Scheme& scheme) {
    quantized.config["quantization_config"] = quantization;
    std::mt19937_64 random(1);
    const auto vector = [&](const std::string& name, std::vector<int64_t> shape, float mean) {
      std::vector<float> values(static_cast<size_t>(shape[0] * (shape.size() > 1 ? shape[1] : 1)));
      for (float& value : values) value = mean + std::normal_distribution<float>(0, 0.3f)(random);
      for (Files* files : {&quantized, &plain}) files->add(name, "F32", shape, values);
    };
    const std::string layer = "model.layers.0.";
    vector("model.embed_tokens.weight", {kVocab, kHidden}, 0);
    vector("model.norm.weight", {kHidden}, 1);
    vector(layer + "input_layernorm.weight", {kHidden}, 1);
    vector(layer + "post_attention_layernorm.weight", {kHidden}, 1);
    vector(layer + "self_attn.v_proj.weight", {kHidden / 2, kHidden}, 0);  // one that is as it was
    const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols) {
      const Matrix values = scheme(quantized, layer + name, rows, cols, random);
      plain.add(layer + name + ".weight", "F32", {rows, cols},
                std::vector<float>(values.v.begin(), values.v.end()));
    };
    matrix("self_attn.q_proj", kHidden, kHidden);
    matrix("self_attn.k_proj", kHidden / 2, kHidden);
    matrix("self_attn.o_proj", kHidden, kHidden);
    matrix("mlp.gate_proj", kWide, kHidden);
    matrix("mlp.up_proj", kWide, kHidden);
    matrix("mlp.down_proj", kHidden, kWide);
  }
};

struct Case {
  const char* name;
  Json config;
  Scheme scheme;
  WeightFormat format;
};

const std::vector<Case>& cases() {
  using enum WeightFormat;
  const Json compressed = {{"quant_method", "compressed-tensors"}, {"format", "mixed-precision"}};
  const Json gptq_config = {{"quant_method", "gptq"}, {"bits", 4}};
  static const std::vector<Case> all = {
      {"fp8 blocks",
       {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}},
       fp8(".weight_scale_inv", {}, 128, 128),
       kFP8},
      {"fp8 tensor",
       {{"quant_method", "fp8"}},
       fp8(
           ".weight_scale", [](int64_t) { return std::vector<int64_t>{}; }, 9999, 9999),
       kFP8},
      {"fp8 channels", compressed, fp8(".weight_scale", {}, 1, 9999), kFP8},
      {"fp8 channels, flat", compressed,
       fp8(
           ".weight_scale", [](int64_t rows) { return std::vector{rows}; }, 1, 9999),
       kFP8},
      {"awq", {{"quant_method", "awq"}, {"bits", 4}}, awq, kQ5_0},
      {"gptq", gptq_config, gptq(4, false, false), kQ4_0},
      {"gptq, zero points", gptq_config, gptq(4, true, false), kQ5_0},
      {"gptq, act-order", gptq_config, gptq(4, true, true), kQ5_0},
      {"gptq, 8 bits, act-order",
       {{"quant_method", "gptq"}, {"bits", 8}},
       gptq(8, false, true),
       kINT8},
      {"pack-quantized", compressed, pack_quantized(4, false, true), kQ4_0},
      {"pack-quantized, zero points", compressed, pack_quantized(4, true, true), kQ5_0},
      {"pack-quantized, an order each", compressed, pack_quantized(4, false, true, true), kQ4_0},
      {"pack-quantized, float scales", compressed, pack_quantized(4, true, false), kINT8},
      {"pack-quantized, 8 bits", compressed, pack_quantized(8, false, true), kINT8},
      {"int-quantized", compressed, int_quantized, kINT8},
  };
  return all;
}

// Values are exactly those of the scheme; what is left is the rounding of activations to 16 bits.
TEST(QuantizedTensors, EverySchemeIsItsDefinition) {
  const auto backend = make_cpu_backend(2, Math::kF32);
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const Pair pair(c.config, c.scheme);
    const TempDir quantized, plain;
    pair.quantized.write(quantized);
    pair.plain.write(plain);
    const Model model = Model::load(*backend, quantized.path());
    const Matrix want = results(Model::load(*backend, plain.path()), *backend);
    EXPECT_LE(nmse(results(model, *backend).v, want.v), 1e-7);
    EXPECT_EQ(model.matrix_bytes().size(), 2u);  // F32 and
    EXPECT_TRUE(model.matrix_bytes().contains(c.format));
  }
}

TEST(QuantizedTensors, AreConverted) {
  const auto backend = make_cpu_backend(2, Math::kF32);
  const auto act_order = std::ranges::find(cases(), std::string("gptq, act-order"), &Case::name);
  const Pair pair(act_order->config, act_order->scheme);
  const TempDir quantized, plain;
  pair.quantized.write(quantized);
  pair.plain.write(plain);
  const Matrix want = results(Model::load(*backend, plain.path()), *backend);
  const auto loaded = [&](const TempDir& dir, WeightFormat format) {
    return Model::load(*backend, dir.path(), format);
  };
  using enum WeightFormat;
  for (const auto& [format, loss] :
       {std::pair{kBF16, 1e-4}, {kQ8_0, 1e-3}, {kFP8, 1e-2}, {kQ4_K, 0.1}}) {
    SCOPED_TRACE(block_of(format).name);
    const Model model = loaded(plain, format);
    EXPECT_LE(nmse(results(model, *backend).v, want.v), loss);
    EXPECT_TRUE(model.matrix_bytes().contains(format));
  }
  // What is smaller already stays, but in BF16 that is asked for.
  EXPECT_LE(nmse(results(loaded(quantized, kBF16), *backend).v, want.v), 1e-4);
  EXPECT_EQ(loaded(quantized, kBF16).matrix_bytes().size(), 1u);
  EXPECT_TRUE(loaded(quantized, kQ8_0).matrix_bytes().contains(kQ5_0));
  // 384 is no multiple of 256; the embedding has 8 bits.
  const Model small = loaded(plain, kQ4_K);
  EXPECT_EQ(small.matrix_bytes().at(kQ4_1), kHidden * kWide / 32 * 20);
  EXPECT_EQ(small.matrix_bytes().at(kQ8_0), kVocab * kHidden / 32 * 34);
  EXPECT_THAT(error_of([&] { loaded(plain, kQ6_K); }), HasSubstr("not converted to Q6_K"));
}

TEST(QuantizedTensors, NamesWhatIsWrongOrNotSupported) {
  const auto backend = make_cpu_backend(1, Math::kF32);
  const auto error = [&](const char* name, const std::function<void(Files&)>& change) {
    const Case& c = *std::ranges::find(cases(), std::string(name), &Case::name);
    Files files = Pair(c.config, c.scheme).quantized;
    change(files);
    const TempDir dir;
    files.write(dir);
    return error_of([&] { Model::load(*backend, dir.path()); });
  };
  const std::string q = "model.layers.0.self_attn.q_proj";
  const auto renamed = [&](const std::string& from, const std::string& to) {
    return [=](Files& files) {
      files.header[q + to] = files.header.at(q + from);
      files.header.erase(q + from);
    };
  };
  EXPECT_EQ(error("awq", [](Files&) {}), "");
  EXPECT_THAT(error("awq", renamed(".scales", ".scale")),
              AllOf(HasSubstr("model.safetensors"), HasSubstr(q + ".scales")));
  EXPECT_THAT(error("awq",
                    [&](Files& f) {
                      f.header[q + ".qzeros"]["shape"] = {4, 16};
                    }),
              AllOf(HasSubstr(q + ".qzeros is I32 [4, 16]"), HasSubstr("expected I32 [2, 32]")));
  EXPECT_THAT(error("gptq",
                    [&](Files& f) {
                      f.header[q + ".qweight"]["shape"] = {256, 32};
                    }),
              HasSubstr("4 or 8 bits"));
  EXPECT_THAT(error("gptq, act-order",
                    [&](Files& f) {
                      const size_t at = f.header[q + ".g_idx"]["data_offsets"][0];
                      f.data[at] = char(1 - f.data[at]);
                    }),
              HasSubstr("a group has"));
  EXPECT_THAT(
      error("gptq, act-order",
            [&](Files& f) { f.data[size_t(f.header[q + ".g_idx"]["data_offsets"][0])] = 2; }),
      AllOf(HasSubstr("g_idx[0] is 2"), HasSubstr("2 groups")));
  EXPECT_THAT(error("fp8 blocks",
                    [&](Files& f) {
                      f.data[size_t(f.header[q + ".weight"]["data_offsets"][0]) + 257] = 127;
                    }),
              HasSubstr("not a number, in row 1"));
  EXPECT_THAT(
      error("fp8 blocks", [&](Files& f) { f.header[q + ".weight_scale_inv"]["shape"] = {4}; }),
      AllOf(HasSubstr("has shape [4]"), HasSubstr("[2, 2]")));
  const auto without = [](const char* module) {
    return [=](Files& f) {
      f.config["quantization_config"]["modules_to_not_convert"] = Json::array({module});
    };
  };
  EXPECT_EQ(error("fp8 blocks", without("self_attn.v_proj")), "");
  EXPECT_THAT(error("fp8 blocks", without("self_attn.q_proj")),
              AllOf(HasSubstr(q + " is quantized"), HasSubstr("that are not")));
  EXPECT_THAT(error("fp8 blocks", [](Files& f) { f.config.erase("quantization_config"); }),
              AllOf(HasSubstr(q), HasSubstr("F8_E4M3")));
  EXPECT_THAT(
      error("gptq, zero points",
            [](Files& f) {
              f.data[size_t(f.header["model.layers.0.mlp.up_proj.bias"]["data_offsets"][0])] = 1;
            }),
      AllOf(HasSubstr("mlp.up_proj.bias"), HasSubstr("not part of")));
}

}  // namespace
}  // namespace ei::test
