#include "ei/model/model.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "ei/base/communicator.h"
#include "ei/base/fail.h"
#include "ei/base/half.h"
#include "ei/model/weight_source.h"

namespace ei {
namespace {

constexpr int64_t kSummedRows = 4096;  // fill a GPU, and are half of what it reads at a time

}  // namespace

Activations::Activations(Backend& backend, const ModelConfig& config, int64_t max_rows,
                         int64_t max_logit_rows)
    : max_rows_(max_rows), max_logit_rows_(max_logit_rows), elem_bytes_(backend.act_bytes()) {
  const auto rows_of = [&](int64_t cols) { return Buffer(backend, max_rows * cols * elem_bytes_); };
  const int64_t d = config.head_dim;
  x_ = rows_of(config.hidden);
  h_ = rows_of(config.hidden);
  q_ = rows_of(config.n_heads * d);
  k_ = rows_of(config.n_kv_heads * d);
  v_ = rows_of(config.n_kv_heads * d);
  context_ = rows_of(config.n_heads * d);
  gate_ = rows_of(config.intermediate);
  up_ = rows_of(config.intermediate);
  const int64_t logits_bytes = max_logit_rows * config.vocab_size * int64_t{sizeof(float)};
  logits_ = Buffer(backend, logits_bytes);
  if (config.n_ranks > 1) own_logits_ = Buffer(backend, logits_bytes / config.n_ranks);
  tokens_ = {backend, {max_rows}};
  positions_ = {backend, {max_rows}};
  cos_ = {backend, {max_rows, d / 2}};
  sin_ = {backend, {max_rows, d / 2}};
}

int64_t Activations::bytes(const Backend& backend, const ModelConfig& config, int64_t max_rows,
                           int64_t max_logit_rows) {
  const int64_t d = config.head_dim;
  const int64_t row =
      2 * config.hidden + 2 * (config.n_heads + config.n_kv_heads) * d + 2 * config.intermediate;
  const int64_t other = 2 * int64_t{sizeof(int32_t)} + d * int64_t{sizeof(float)};
  return max_rows * (row * backend.act_bytes() + other) +
         max_logit_rows * config.vocab_size * int64_t{sizeof(float)} +
         (config.n_ranks > 1
              ? max_logit_rows * config.vocab_size / config.n_ranks * int64_t{sizeof(float)}
              : 0);
}

Model::Model(Backend& backend, const ModelConfig& config) : backend_(&backend), config_(config) {
  const RopeFrequencies rope = rope_frequencies(config.rope, config.head_dim);
  inv_freq_ = {backend, rope.inv_freq};
  rope_scale_ = rope.scale;
}

void Model::take(WeightSource& source) {
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols, Part part) {
    const Weight weight = source.matrix(name, rows, cols, part);
    n_parameters_ += rows * cols;
    weight_bytes_ += weight.bytes();
    matrix_bytes_[weight.format] += weight.bytes();
    return weight;
  };
  const auto vector = [&](const std::string& name, int64_t size, Part part = Part::kAll) {
    n_parameters_ += size;
    weight_bytes_ += size * int64_t{sizeof(float)};
    return Vector(*backend_, source.vector(name, size, part));
  };

  using enum Part;
  const ModelConfig& c = config_;
  const int64_t q_width = c.n_heads * c.head_dim, kv_width = c.n_kv_heads * c.head_dim;
  embedding_ = matrix("model.embed_tokens.weight", c.vocab_size, c.hidden, kAll);
  for (int l = 0; l < c.n_layers; ++l) {
    const auto name = [&](int layer, std::string_view part) {
      return fmt::format("model.layers.{}.{}", layer, part);
    };
    // Flags in config.json do not tell reliably which biases there are: the first layer does.
    const auto bias = [&](std::string_view of, int64_t size, Part part) {
      return source.has(name(0, of)) ? vector(name(l, of), size, part) : Vector();
    };
    Layer& layer = layers_.emplace_back();
    layer.attention_norm = vector(name(l, "input_layernorm.weight"), c.hidden);
    layer.q = matrix(name(l, "self_attn.q_proj.weight"), q_width, c.hidden, kRows);
    layer.k = matrix(name(l, "self_attn.k_proj.weight"), kv_width, c.hidden, kRows);
    layer.v = matrix(name(l, "self_attn.v_proj.weight"), kv_width, c.hidden, kRows);
    layer.q_bias = bias("self_attn.q_proj.bias", q_width, kRows);
    layer.k_bias = bias("self_attn.k_proj.bias", kv_width, kRows);
    layer.v_bias = bias("self_attn.v_proj.bias", kv_width, kRows);
    if (c.qk_norm) {
      layer.q_norm = vector(name(l, "self_attn.q_norm.weight"), c.head_dim);
      layer.k_norm = vector(name(l, "self_attn.k_norm.weight"), c.head_dim);
    }
    layer.o = matrix(name(l, "self_attn.o_proj.weight"), c.hidden, q_width, kCols);
    layer.o_bias = bias("self_attn.o_proj.bias", c.hidden, kAll);
    layer.mlp_norm = vector(name(l, "post_attention_layernorm.weight"), c.hidden);
    layer.gate = matrix(name(l, "mlp.gate_proj.weight"), c.intermediate, c.hidden, kRows);
    layer.up = matrix(name(l, "mlp.up_proj.weight"), c.intermediate, c.hidden, kRows);
    layer.down = matrix(name(l, "mlp.down_proj.weight"), c.hidden, c.intermediate, kCols);
  }
  norm_ = vector("model.norm.weight", c.hidden);
  // Some tied checkpoints carry a head all the same: it is not to be used.
  if (!c.tie_word_embeddings)
    head_ = matrix("lm_head.weight", c.vocab_size / c.n_ranks, c.hidden, kRows);
}

void Model::tie_head() {
  const int64_t rows = config_.vocab_size / config_.n_ranks;
  head_ =
      config_.n_ranks == 1 ? embedding_ : embedding_.slice(backend_->ranks().rank() * rows, rows);
}

void Model::embed(Activations& act, std::span<const int32_t> tokens,
                  std::span<const int32_t> positions) const {
  const auto n = static_cast<int64_t>(tokens.size());
  require(n <= act.max_rows_, "{} tokens in a chunk, there is room for {}", n, act.max_rows_);
  require(tokens.size() == positions.size(), "{} tokens, but {} positions", n, positions.size());
  for (const int32_t token : tokens)
    require(token >= 0 && token < config_.vocab_size,
            "token id {} is not in the vocabulary of {} tokens", token, config_.vocab_size);
  for (const int32_t position : positions)
    require(position >= 0, "position {} is negative", position);

  act.rows_ = n;
  const View<int32_t, 1> ids = act.tokens_.view().slice(0, n);
  const View<int32_t, 1> places = act.positions_.view().slice(0, n);
  backend_->copy_in(ids.data, tokens.data(), n * int64_t{sizeof(int32_t)});
  backend_->copy_in(places.data, positions.data(), n * int64_t{sizeof(int32_t)});
  backend_->run(Embed{.tokens = ids, .table = embedding_, .out = act.act(act.x_, config_.hidden)});
  backend_->run(RopeAngles{.positions = places,
                           .inv_freq = inv_freq_.view(),
                           .scale = rope_scale_,
                           .cos = act.cos_.view().slice(0, n),
                           .sin = act.sin_.view().slice(0, n)});
}

Act Model::input(int layer, Activations& act) const {
  const Act h = act.act(act.h_, config_.hidden);
  backend_->run(RmsNorm{.x = residual(act),
                        .weight = layers_[static_cast<size_t>(layer)].attention_norm.view(),
                        .eps = config_.rms_norm_eps,
                        .out = h});
  return h;
}

Qkv Model::project(int layer, Activations& act) const {
  const Layer& w = layers_[static_cast<size_t>(layer)];
  const int64_t d = config_.head_dim;
  const Act h = input(layer, act);
  const Qkv qkv{.q = act.act(act.q_, config_.n_heads * d),
                .k = act.act(act.k_, config_.n_kv_heads * d),
                .v = act.act(act.v_, config_.n_kv_heads * d)};
  const auto norm = [&](const Act& in, const Vector& weight, const Act& out) {
    backend_->run(
        RmsNorm{.x = in, .weight = weight.view(), .eps = config_.rms_norm_eps, .out = out});
  };
  backend_->run(MatMul{.x = h,
                       .parts = {{{.weight = w.q, .bias = w.q_bias.view(), .out = qkv.q},
                                  {.weight = w.k, .bias = w.k_bias.view(), .out = qkv.k},
                                  {.weight = w.v, .bias = w.v_bias.view(), .out = qkv.v}}}});
  if (config_.qk_norm) {
    norm(qkv.q.reshape(d), w.q_norm, qkv.q.reshape(d));
    norm(qkv.k.reshape(d), w.k_norm, qkv.k.reshape(d));
  }
  const View<float, 2> cos = act.cos_.view().slice(0, act.rows_);
  const View<float, 2> sin = act.sin_.view().slice(0, act.rows_);
  backend_->run(Rope{.x = qkv.q, .cos = cos, .sin = sin, .interleaved = config_.rope.interleaved});
  backend_->run(Rope{.x = qkv.k, .cos = cos, .sin = sin, .interleaved = config_.rope.interleaved});
  return qkv;
}

Act Model::context(Activations& act) const {
  return act.act(act.context_, config_.n_heads * config_.head_dim);
}

void Model::output_columns(int layer, int64_t head, const Act& out) const {
  const int64_t d = config_.head_dim, width = config_.n_heads * d;
  // Products with unit vectors: weights may be in any format and any order.
  std::vector<char> unit(static_cast<size_t>(d * width * backend_->act_bytes()), 0);
  for (int64_t c = 0; c < d; ++c) {
    char* const at = unit.data() + (c * width + head * d + c) * backend_->act_bytes();
    const float one = 1;
    const uint16_t one_bf16 = to_bf16(one);
    backend_->act_bytes() == sizeof one ? std::memcpy(at, &one, sizeof one)
                                        : std::memcpy(at, &one_bf16, sizeof one_bf16);
  }
  const Buffer rows(*backend_, std::ssize(unit));
  backend_->copy_in(rows.data(), unit.data(), std::ssize(unit));
  backend_->run(MatMul{
      .x = {rows.data(), d, width, backend_->act_bytes()},
      .parts = {{{.weight = layers_[static_cast<size_t>(layer)].o, .bias = {}, .out = out}}}});
}

Act Model::residual(Activations& act) const { return act.act(act.x_, config_.hidden); }

void Model::finish(int layer, Activations& act) const {
  const Layer& w = layers_[static_cast<size_t>(layer)];
  const Act x = act.act(act.x_, config_.hidden);
  const Act h = act.act(act.h_, config_.hidden);
  const Act gate = act.act(act.gate_, config_.intermediate);
  const Act up = act.act(act.up_, config_.intermediate);
  // Where ranks share the model, some rows after the others, so that the sum of these may run
  // beside the products of those.
  const int64_t n = config_.n_ranks > 1 ? kSummedRows : std::max<int64_t>(1, act.rows_);
  const auto in_parts = [&](const auto& of_rows) {
    for (int64_t row = 0; row < act.rows_; row += n)
      of_rows(
          [row, size = std::min(n, act.rows_ - row)](const Act& a) { return a.slice(row, size); });
  };
  // What x was and the bias are rank 0's part of the sum.
  const bool first = backend_->ranks().rank() == 0;
  const auto add_to = [&](const Act& sum, const Act& in, const Weight& weight, const Vector& bias) {
    backend_->run(MatMul{.x = in,
                         .parts = {{{.weight = weight,
                                     .bias = first ? bias.view() : View<float, 1>(),
                                     .out = sum,
                                     .accumulate = first}}}});
    backend_->run(AllReduce{sum});
  };
  in_parts([&](const auto& of) { add_to(of(x), of(context(act)), w.o, w.o_bias); });
  in_parts([&](const auto& of) {
    backend_->run(RmsNorm{
        .x = of(x), .weight = w.mlp_norm.view(), .eps = config_.rms_norm_eps, .out = of(h)});
    backend_->run(MatMul{.x = of(h),
                         .parts = {{{.weight = w.gate, .bias = {}, .out = of(gate)},
                                    {.weight = w.up, .bias = {}, .out = of(up)}}}});
    backend_->run(SwiGlu{.gate = of(gate), .up = of(up), .out = of(gate)});
    add_to(of(x), of(gate), w.down, {});
  });
}

Act Model::normed(Activations& act, int64_t first_row, int64_t n_rows) const {
  require(first_row >= 0 && n_rows >= 0 && first_row + n_rows <= act.rows_,
          "rows {} to {} were asked for; the chunk has {}", first_row, first_row + n_rows,
          act.rows_);
  const Act x = act.act(act.x_, config_.hidden).slice(first_row, n_rows);
  const Act h = act.act(act.h_, config_.hidden).slice(first_row, n_rows);
  backend_->run(RmsNorm{.x = x, .weight = norm_.view(), .eps = config_.rms_norm_eps, .out = h});
  return h;
}

Act Model::logits(Activations& act, int64_t first_row, int64_t n_rows) const {
  require(first_row >= 0 && n_rows >= 0 && first_row + n_rows <= act.rows_ &&
              n_rows <= act.max_logit_rows_,
          "logits of rows {} to {} were asked for; the chunk has {} rows and room for {} at a time",
          first_row, first_row + n_rows, act.rows_, act.max_logit_rows_);
  const Act h = normed(act, first_row, n_rows);
  const Act out{act.logits_.data(), n_rows, config_.vocab_size, sizeof(float)};
  Act own = out;
  if (config_.n_ranks > 1) {
    own.data = act.own_logits_.data();
    own.cols = head_.rows;
  }
  backend_->run(MatMul{.x = h, .parts = {{{.weight = head_, .bias = {}, .out = own}}}});
  if (config_.n_ranks > 1) backend_->run(AllGather{.part = own, .out = out});
  return out;
}

}  // namespace ei
