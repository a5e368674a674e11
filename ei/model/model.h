#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ei/io/safetensors.h"
#include "ei/model/config.h"
#include "ei/ops/backend.h"
#include "ei/ops/buffer.h"

namespace ei {

class GgufFile;
class WeightSource;

// What attention needs of a chunk in one layer, RoPE applied.
struct Qkv {
  Act q;  // [n, n_heads * d]
  Act k;  // [n, n_kv_heads * d]
  Act v;  // [n, n_kv_heads * d]
};

// Room for everything the model computes of one chunk. Model::embed sets the rows in use; the other
// calls read and write them.
class Activations {
 public:
  // Chunks of at most max_rows tokens, logits of at most max_logit_rows of them at a time.
  Activations(Backend& backend, const ModelConfig& config, int64_t max_rows,
              int64_t max_logit_rows);

  int64_t max_rows() const { return max_rows_; }
  int64_t max_logit_rows() const { return max_logit_rows_; }
  int64_t rows() const { return rows_; }  // of the chunk in here
  // Device memory such an object takes.
  static int64_t bytes(const Backend& backend, const ModelConfig& config, int64_t max_rows,
                       int64_t max_logit_rows);

 private:
  friend class Model;
  Act act(const Buffer& buffer, int64_t cols) const {
    return {buffer.data(), rows_, cols, elem_bytes_};
  }

  int64_t max_rows_, max_logit_rows_, elem_bytes_;
  int64_t rows_ = 0;
  Buffer x_;           // [n, hidden] the residual stream
  Buffer h_;           // [n, hidden] normed
  Buffer q_;           // [n, n_heads * d]
  Buffer k_, v_;       // [n, n_kv_heads * d]
  Buffer context_;     // [n, n_heads * d]
  Buffer gate_, up_;   // [n, intermediate]
  Buffer logits_;      // [max_logit_rows, vocab_size] float on every backend
  Buffer own_logits_;  // [max_logit_rows, vocab_size / n_ranks], where ranks share the model
  DeviceArray<int32_t, 1> tokens_, positions_;  // [n]
  DeviceArray<float, 2> cos_, sin_;             // [n, d / 2]
};

// Bytes of weights placed so far, and of all.
using LoadProgress = std::function<void(int64_t done, int64_t total)>;

// A decoder-only transformer in pieces: the loop that owns the cache calls them layer by layer and
// puts attention in between. It knows nothing of caches or of sparsity.
//   x = embed(tokens)
//   for l: {q, k, v} = project(l);  context = attention(q, cache + k, v);  finish(l)
//   logits
// Where ranks share it (Backend::ranks()), each has its KV heads with their query heads, its part
// of the MLP and of the head's rows. The residual stream is the same on all: finish() adds up what
// they make of it, and logits() puts theirs side by side; all ranks must call both.
class Model {
 public:
  // Reads config.json and the weights of a Hugging Face directory, of several ranks each its share.
  // Matrices stay where they are in
  // the mapped files if the backend can read them there; with `weights`, one of the formats that
  // quantize() makes, they are converted where that makes them smaller, to BF16 always. Throws
  // Error naming file, tensor, expected and found before anything is placed, and when there is not
  // the memory for what is converted. `backend` must outlive the model.
  static Model load(Backend& backend, const std::filesystem::path& dir,
                    std::optional<WeightFormat> weights = {}, const LoadProgress& progress = {});
  // The same of a GGUF file, which the model keeps open.
  static Model load(Backend& backend, std::shared_ptr<const GgufFile> file,
                    std::optional<WeightFormat> weights = {}, const LoadProgress& progress = {});
  // Random bf16 weights of a given shape, for measurements: activations stay of order one, and
  // heads range from attention that is nearly uniform to attention on few tokens. Of several ranks
  // each draws its own part of a model, which is not the one that a single rank draws.
  static Model random(Backend& backend, const ModelConfig& config, uint64_t seed);

  const ModelConfig& config() const { return config_; }
  int64_t n_parameters() const { return n_parameters_; }
  int64_t weight_bytes() const { return weight_bytes_; }
  // Bytes of the matrices by their format.
  const std::map<WeightFormat, int64_t>& matrix_bytes() const { return matrix_bytes_; }
  // What is to be said of how it was loaded, for people.
  const std::vector<std::string>& warnings() const { return warnings_; }

  // Starts a chunk: x = embeddings of `tokens`, cos and sin of their `positions`. Throws Error when
  // an id is not in the vocabulary, a position is negative, there are more tokens than rows, or
  // their numbers differ.
  void embed(Activations& act, std::span<const int32_t> tokens,
             std::span<const int32_t> positions) const;
  // [n, hidden]: what a layer's queries, keys and values are projected from, the norm of what the
  // last call left. Valid until the next call of any piece.
  Act input(int layer, Activations& act) const;
  // The same, projections and biases, qk-norm, RoPE. Valid until the next project().
  Qkv project(int layer, Activations& act) const;
  // [n, n_heads * d]: where attention writes for finish() to read.
  Act context(Activations& act) const;
  // x += context Wo + bo;  x += mlp(norm(x)).
  void finish(int layer, Activations& act) const;
  // The columns of Wo that multiply the values of one of this rank's query heads, as rows: out
  // [head_dim, hidden].
  void output_columns(int layer, int64_t head, const Act& out) const;
  // [n, hidden]: what the last call left for the next layer to read.
  Act residual(Activations& act) const;
  // Final norm of rows [first_row, first_row + n_rows) of the chunk: [n_rows, hidden], valid until
  // the next call of any piece. May be called repeatedly.
  Act normed(Activations& act, int64_t first_row, int64_t n_rows) const;
  // The head of these: [n_rows, vocab_size], valid until the next logits().
  Act logits(Activations& act, int64_t first_row, int64_t n_rows) const;

 private:
  using Vector = DeviceArray<float, 1>;
  struct Layer {
    Vector attention_norm, mlp_norm;  // [hidden]
    Weight q, k, v;                   // [heads * d, hidden], of this rank's heads
    Vector q_bias, k_bias, v_bias;    // [heads * d], or empty
    Vector q_norm, k_norm;            // [d], or empty
    Weight o;                         // [hidden, n_heads * d]
    Vector o_bias;                    // [hidden], or empty
    Weight gate, up;                  // [intermediate, hidden]
    Weight down;                      // [hidden, intermediate]
  };

  Model(Backend& backend, const ModelConfig& config);
  // Takes all weights from `source` and makes sure that they are as config() says. A head that is
  // tied has the embedding's once that is placed.
  void take(WeightSource& source);
  void tie_head();
  // The same, and places and keeps them; `path` is for messages.
  void load(const std::shared_ptr<WeightSource>& source, const std::string& path,
            const LoadProgress& progress);
  void check_memory(const std::string& path, int64_t converted, int64_t available);

  Backend* backend_;
  ModelConfig config_;
  int64_t n_parameters_ = 0;
  int64_t weight_bytes_ = 0;
  std::map<WeightFormat, int64_t> matrix_bytes_;
  std::vector<std::string> warnings_;
  Weight embedding_;  // [vocab_size, hidden]
  Weight head_;  // [vocab_size / n_ranks, hidden]: this rank's rows, of the embedding when tied
  Vector norm_;  // [hidden]
  std::vector<Layer> layers_;
  Vector inv_freq_;  // [d / 2]
  float rope_scale_ = 1;
  std::shared_ptr<const void> memory_;  // what the weights point into
};

}  // namespace ei
