#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "ei/ops/backend.h"
#include "ei/ops/buffer.h"
#include "ei/policy/prefill_policy.h"
#include "ei/prefill/sketch.h"

namespace ei {

// A run of tokens read at once: whole pages, but for the last of a prompt and the first of one that
// goes on from the middle of a page.
struct Chunk {
  int64_t begin = 0;  // position, a multiple of unit_of() its policy
  int64_t size = 0;
};

// How much of dense attention a prompt's prefill selected: sums over layers and KV heads.
struct PrefillStats {
  double attended_pairs = 0;  // query-key pairs
  double dense_pairs = 0;     // of dense attention
  int64_t kept_blocks = 0;    // of segments that do not attend to all past blocks
  int64_t n_sparse = 0;       // such segments
  int64_t rigid_heads = 0;    // of sparse layers: entropy below e_t in every segment scored
  int64_t dynamic_heads = 0;
};

// Decides, layer by layer and chunk by chunk, which past blocks every segment attends to
// (METHOD.md sections 1 and 6). All it inherits from earlier chunks are entropies, and a decision
// depends on nothing after its segment: the size of the chunks never changes a result (except under
// rules that look at the whole prompt, whose only chunk is the prompt).
class PrefillPlan {
 public:
  struct Shape {
    int64_t n_layers = 0;
    int64_t n_heads = 0;
    int64_t n_kv_heads = 0;
    int64_t head_dim = 0;
    int64_t max_tokens = 0;  // longest prompt
    int64_t page = 0;        // of the cache, in tokens: whole segments
    int64_t chunk = 0;       // tokens wanted at a time; rounded up to whole pages
  };
  PrefillPlan(Backend& backend, const PrefillPolicy& policy, const Shape& shape);

  // Device memory of a plan that reads a prompt of n_tokens, the model's sketch included.
  static int64_t bytes(const PrefillPolicy& policy, const Shape& shape, int64_t n_tokens);

  const PrefillPolicy& policy() const { return policy_; }

  // Starts on a prompt of n_tokens of which the first `cached` were read before under this plan.
  void begin(int64_t n_tokens, int64_t cached);

  // Whether the prompt's selections need the model's sketch, which is then to be given before the
  // first and must outlive the plan.
  bool wants_sketch() const;
  void use(const Sketch* sketch) { sketch_ = sketch; }

  // Tokens of the longest chunk that a prompt of n_tokens is read in.
  int64_t chunk_rows(int64_t n_tokens) const { return chunk_rows(policy_, shape_, n_tokens); }
  static int64_t chunk_rows(const PrefillPolicy& policy, const Shape& shape, int64_t n_tokens);

  // What to read after the prompt's first `at` tokens: to the end of a page, max_rows if it can.
  Chunk next(int64_t at, int64_t max_rows);

  // Whether a prompt can go on from what was read before: not under rules that look at all of it.
  bool can_go_on() const;
  // Past blocks that a segment of the prompt can be given one by one.
  int64_t most_blocks() const;
  // Where a longer prompt that starts with these n_tokens can go on from: tokens before it were
  // read as they would be in the longer prompt. Whole pages.
  int64_t reusable(int64_t n_tokens) const;

  // Of every segment read, what later ones inherit: [max_segments, sparse layers * n_kv_heads].
  // Whoever takes segments over from elsewhere puts theirs here.
  View<float, 2> entropies() const {
    const View<float, 3> view = entropy_.view();
    return {view.data, {view.dim(0), view.dim(1) * view.dim(2)}};
  }

  // The past blocks of every segment of the chunk: everything, or profile, allocate, select.
  // q [chunk.size, n_heads * d]; `kv`, the layer's, holds the chunk's keys. Valid until the next
  // call.
  Selection select(int layer, const Chunk& chunk, const Act& q, const KvLayer& kv);

  // What select() decided for a sparse layer, on the device, for those who want to look.
  struct Choice {
    const Selection& selection;
    View<const float, 2> tokens;   // [n_kv_heads, n_segments] budgets before they are cut to
                                   // blocks; empty: there are none
    View<const float, 3> entropy;  // [n_segments, sparse layers, n_kv_heads]
    int64_t entropy_layer;         // this layer there
  };
  using Observer = std::function<void(int layer, const Chunk& chunk, const Choice& choice)>;
  void observe(Observer observer) { observer_ = std::move(observer); }

  // Of the tokens read since begin(). Waits for the device.
  PrefillStats stats();

 private:
  bool sparse(int layer) const;
  int64_t sparse_layer(int layer) const;  // among the sparse ones
  Selection select_mass(int layer, const Chunk& chunk, const Act& q, const KvLayer& kv,
                        const View<float, 3>& mass, const View<float, 2>& own,
                        const Selection& out);
  void fuse_layers(int layer, const Chunk& chunk, const View<float, 3>& score);
  int64_t first_dense_segment(int64_t n_tokens) const;
  int64_t n_segments(const Chunk& chunk) const;
  View<int32_t, 2> blocks(int layer, const Chunk& chunk) const;

  Backend& backend_;
  PrefillPolicy policy_;
  Shape shape_;
  const Sketch* sketch_ = nullptr;
  Observer observer_;
  int64_t n_tokens_ = 0;            // of the prompt being read
  std::vector<Chunk> chunks_;       // that it is read in
  DeviceArray<float, 3> entropy_;   // [max_segments, sparse layers, n_kv_heads]
  DeviceArray<int32_t, 2> blocks_;  // [sparse layers, of every chunk [n_kv_heads, n_segments]]
  DeviceArray<int32_t, 1> all_;     // kAllBlocks for a chunk's segments
  std::vector<float> fused_;  // fused probabilities of the layer before, [n_kv_heads, n_segments,
                              // past blocks], of the chunk being read
  Buffer scores_, budgets_, count_, index_;  // of one layer and chunk
};

}  // namespace ei
