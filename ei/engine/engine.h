#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ei/base/communicator.h"
#include "ei/base/dtype.h"
#include "ei/base/error.h"
#include "ei/base/math.h"
#include "ei/engine/model_info.h"
#include "ei/ops/weight_format.h"
#include "ei/policy/decode_policy.h"
#include "ei/policy/prefill_policy.h"
#include "ei/policy/sampling.h"
#include "ei/text/message.h"

namespace ei {
class ChatTemplate;
class Tokenizer;

enum class Device { kAuto, kCpu, kCuda };  // kAuto: CUDA where there is a GPU that can be used

// How a prompt is read where nothing else is asked for: by sketches on the CPU (METHOD.md 6); on a
// GPU, where their estimate takes too much of what it saves (REPORT.md), as the paper does.
PrefillPolicy default_prefill(Device device);

struct EngineOptions {
  Device device = Device::kAuto;
  int threads = 0;               // of the CPU; 0: as many as it has, or as `pin`
  std::string pin;               // each to a CPU of its own: auto, or 0-3,8; "": to none
  DType kv_type = DType::kBF16;  // of the KV cache: kBF16, kF32; on the CPU kQ8, on a GPU kFP8
  Math math = Math::kBF16;       // kF32: on the CPU; kFP8: on a GPU
  std::string cpu;  // of the whole process: amx, avx512, avx2, sse4, scalar; "": as it is
  // kFP8, kQ8_0, kQ4_K: weights are converted while loading if that makes them smaller; kBF16: all.
  std::optional<WeightFormat> weights;
  int64_t page = 512;  // tokens of a page of the KV cache, rounded up to whole segments
  int64_t chunk = 0;   // tokens read at a time, rounded up to whole pages; 0: what suits the device
  // Those that share the model, this one among them; null: nobody does. All of them make the same
  // calls with the same arguments in the same order: what rank 0 draws and decides holds for all.
  // One engine to a communicator. Each has a GPU of its own, if it has one: there NCCL does it.
  std::shared_ptr<Communicator> ranks;
  // Instead: so many ranks of this process behind one engine, each with a GPU or its part of the
  // threads. Where one fails or hangs all end: calls throw Error that names it, and on_end is told.
  int tp = 1;
  std::function<void(const std::string&)> on_end;
  // While the weights are converted or copied to the device: bytes done, and of all.
  std::function<void(int64_t done, int64_t total)> on_load;
};

// A checkpoint ready to run. Sessions of one engine share it; one of them runs at a time.
class Engine {
 public:
  // Loads a Hugging Face directory or a .gguf file. Throws Error naming the file and the field that
  // is wrong.
  explicit Engine(const std::filesystem::path& model, const EngineOptions& options = {});
  // Random weights in the shape of a well-known checkpoint (named_shapes.h), for measurements.
  // There is no tokenizer: prompts are token ids, answers have no text.
  static Engine random(std::string_view shape, const EngineOptions& options = {});
  ~Engine();
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;

  ModelInfo info() const;
  SamplingParams default_sampling() const;  // of generation_config.json, else greedy

  // Text to ids as the checkpoint's tokenizer does it, with its BOS if it adds one.
  std::vector<int32_t> tokenize(std::string_view text) const;
  // A conversation as the checkpoint's chat template writes it, ready for the answer. Throws Error
  // when the checkpoint has none.
  std::vector<int32_t> tokenize(std::span<const Message> messages, bool thinking = true) const;
  std::string detokenize(std::span<const int32_t> tokens) const;
  // The parts that do it (ei/text), for more than that. chat_template() throws as tokenize() does.
  const Tokenizer& tokenizer() const;
  const ChatTemplate& chat_template() const;

  struct Impl;
  Impl& impl() const { return *impl_; }

 private:
  explicit Engine(const EngineOptions& options);
  // Of one rank or, for options.tp, of all: each made with what `load` does to it.
  static Engine make(const EngineOptions& options, const std::function<void(Impl&)>& load);

  std::unique_ptr<Impl> impl_;
};

struct Request {
  std::vector<Message> messages;  // a conversation; or
  std::vector<int32_t> tokens;    // a prompt as ids, used as it is, when there are no messages
  bool thinking = true;           // for models that can do both
  PrefillPolicy prefill;          // default_prefill() is the program's
  DecodePolicy decode;
  std::optional<SamplingParams> sampling;  // nullopt: Engine::default_sampling()
  int64_t max_tokens = 512;
  std::vector<int32_t> given;     // begins the answer, as if it had been drawn; no part of its text
  std::vector<std::string> stop;  // ends the answer where one appears; not part of it
  bool ignore_eos = false;
};

// How much of dense attention the prefill spent.
struct SparsityStats {
  double density = 1;           // attended query-key pairs over those of dense attention
  double kept_blocks_mean = 0;  // past blocks a sparse (layer, head, segment) attended to
  int64_t rigid_heads = 0;      // KV heads of sparse layers whose entropy always stayed below e_t
  int64_t dynamic_heads = 0;    // the others
};

struct Callbacks {
  // A piece of the answer, always whole characters.
  std::function<void(std::string_view text)> on_text;
  // After every chunk of the prompt: tokens read, of how many, and those `cached` before.
  std::function<void(int64_t done, int64_t total, int64_t cached)> on_prefill;
  // Of score() alone: the model's logits [vocab_size] for the token at `position`.
  std::function<void(int64_t position, std::span<const float> logits)> on_logits;
  std::function<void(const SparsityStats&)> on_sparsity;  // of score() alone, of its prompt
  std::function<void()> on_step;  // after every chunk and token: to see whether to stop
};

enum class FinishReason { kStop, kLength, kCancelled };

struct Timings {
  double prefill_ms = 0;  // time to first token
  double decode_ms = 0;   // of the tokens after the first
  double prefill_tps = 0;
  double decode_tps = 0;
};

struct KvStats {
  int64_t bytes = 0;        // the sequence holds at the end, in whole pages
  int64_t bytes_full = 0;   // the same tokens would need uncompressed
  int64_t entry_bytes = 0;  // of the K and V in those pages
  int64_t entry_bytes_full = 0;
  bool compressed = false;
};

struct Generation {
  std::string text, stop;  // stop: which of Request::stop ended it, if one did
  std::vector<int32_t> tokens;
  FinishReason finish_reason = FinishReason::kStop;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;                   // of the prompt, not read again
  int64_t host_tokens = 0, loaded_tokens = 0;  // of these, from a GPU's host, and from files
  int64_t read_tokens = 0;  // of the prompt, those included; fewer than all if it was cancelled
  Timings timings;
  SparsityStats sparsity;
  KvStats kv;
  std::vector<float> hidden;  // of the prompt, where a server asks for it (SequenceOptions)
};

struct TokenScore {
  float logprob = 0;    // of the token, given all before it; the first of a text has none: 0
  int32_t argmax = -1;  // the likeliest token in its place
};

// One conversation: remembers what it has read, so that the next turn reads only what is new, as
// long as the policy stays the same and nothing of it was compressed away.
class Session {
 public:
  // Keeps so many bytes of what it reads beside, so that another request with the same beginning
  // and prefill policy reads on from there even if the cache was compressed since.
  explicit Session(Engine& engine, int64_t prefix_bytes = 0);
  ~Session();

  // Reads the prompt and writes the answer. Cancellation is looked at between chunks and tokens; a
  // cancelled answer is returned as far as it got. Throws Error when the prompt is empty, does not
  // fit the context, or a setting is out of range; the session is then as it was.
  Generation generate(const Request& request, const Callbacks& callbacks = {},
                      std::stop_token cancel = {});

  // Log-probability and likeliest token at every position of `tokens`, the first n_prefill read as
  // a prompt and the rest decoded one by one, as the policies say. -1: all are prompt.
  std::vector<TokenScore> score(std::span<const int32_t> tokens, const Request& policies,
                                int64_t n_prefill = -1, const Callbacks& callbacks = {},
                                std::stop_token cancel = {});

  // Writes what was read and written into a file, of which another session of the same model and
  // prefill policy can go on, beside a note of the caller's, the messages perhaps. For sessions
  // that keep bytes beside. Both throw Error naming the file: when it cannot be written; when it is
  // damaged or of another model or policy, with the field, both values and how to mend it.
  void save(const std::filesystem::path& file, const PrefillPolicy& prefill,
            const std::string& note);
  std::string load(const std::filesystem::path& file, const PrefillPolicy& prefill);

  void clear();  // forgets everything and frees its memory

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ei
