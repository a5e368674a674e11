#include "apps/server/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace ei::server {
namespace {

const char* name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "abort";
  }
  return "";
}

// Why a prompt was read with dense attention though entropy was asked for; empty: it was not.
std::string dense_reason(const Request& request, const Generation& generation) {
  if (request.prefill.is_dense()) return "requested";
  if (generation.sparsity.density < 1) return "";
  return generation.prompt_tokens <= request.prefill.threshold_len ? "below_threshold"
                                                                   : "budget_covers_prompt";
}

// A value as a label has it.
std::string escaped(const std::string& value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    out += c == '\n' ? std::string("\\n") : std::string(1, c);
  }
  return out;
}

void print_head(const char* name, const char* type, const char* help, std::string& out) {
  out +=
      fmt::format("# HELP entropyinfer:{} {}\n# TYPE entropyinfer:{} {}\n", name, help, name, type);
}

}  // namespace

void Histogram::observe(double value, int64_t n) {
  const auto at = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[static_cast<size_t>(at)] += n;
  sum_ += value * double(n);
}

void Histogram::print(const std::string& name, const std::string& help, const std::string& labels,
                      std::string& out) const {
  print_head(name.c_str(), "histogram", help.c_str(), out);
  int64_t n = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    n += counts_[i];
    const std::string bound = i < bounds_.size() ? fmt::format("{}", bounds_[i]) : "+Inf";
    out += fmt::format("entropyinfer:{}_bucket{{{},le=\"{}\"}} {}\n", name, labels, bound, n);
  }
  out += fmt::format("entropyinfer:{}_sum{{{}}} {}\n", name, labels, sum_);
  out += fmt::format("entropyinfer:{}_count{{{}}} {}\n", name, labels, n);
}

std::vector<double> Metrics::seconds() {
  return {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,
          2.5,   5,      10,    20,   40,    80,   160, 320,  640};
}

std::vector<double> Metrics::tokens() {
  std::vector<double> bounds;
  for (double n = 1; n <= 1 << 20; n *= 4) bounds.push_back(n);
  return bounds;
}

void Metrics::http_reply(int status) {
  const std::lock_guard lock(mutex_);
  ++replies_[status];
}

void Metrics::refused(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  ++refused_[reason];
}

void Metrics::first_token(double s) {
  const std::lock_guard lock(mutex_);
  ttft_.observe(s);
}

void Metrics::next_token(double s) {
  const std::lock_guard lock(mutex_);
  itl_.observe(s);
}

void Metrics::ended(const Outcome& outcome, double e2e_s, const Request& request) {
  const Generation& g = outcome.generation;
  const std::lock_guard lock(mutex_);
  ++finished_[outcome.error ? "error" : name_of(g.finish_reason)];
  queue_.observe(outcome.queue_ms / 1000);
  e2e_.observe(e2e_s);
  if (outcome.error || g.prompt_tokens == 0) return;
  prefill_.observe(g.timings.prefill_ms / 1000);
  decode_.observe(g.timings.decode_ms / 1000);
  n_prompt_ += g.prompt_tokens;
  n_cached_ += g.cached_tokens;
  const auto n_generated = static_cast<int64_t>(g.tokens.size());
  n_generated_ += n_generated;
  prompt_tokens_.observe(double(g.prompt_tokens));
  generation_tokens_.observe(double(n_generated));
  if (n_generated == 0) return;
  density_.observe(g.sparsity.density);
  if (const std::string why = dense_reason(request, g); !why.empty()) ++dense_[why];
  if (g.kv.compressed) {
    ++n_compressed_;
    compression_.observe(double(g.kv.bytes) / double(std::max<int64_t>(1, g.kv.bytes_full)));
  }
}

std::string Metrics::render(const SchedulerStats& s) const {
  const std::lock_guard lock(mutex_);
  std::string out;
  const std::string model = fmt::format("model_name=\"{}\"", escaped(model_));
  const auto value = [&](const char* name, const char* type, const char* help, auto x) {
    print_head(name, type, help, out);
    out += fmt::format("entropyinfer:{}{{{}}} {}\n", name, model, x);
  };
  const auto labelled = [&](const char* name, const char* help, const char* label,
                            const auto& counts) {
    print_head(name, "counter", help, out);
    for (const auto& [key, n] : counts)
      out += fmt::format("entropyinfer:{}{{{},{}=\"{}\"}} {}\n", name, model, label, key, n);
  };
  value("num_requests_running", "gauge", "Requests being read or written.",
        s.n_reading + s.n_writing);
  value("num_requests_waiting", "gauge", "Requests waiting for their turn.", s.n_waiting);
  value("num_prompt_tokens_waiting", "gauge", "Prompt tokens of waiting requests.",
        s.n_waiting_tokens);
  value("kv_cache_usage_ratio", "gauge", "Share of the KV memory that admitted requests may need.",
        s.kv_bytes_max > 0 ? double(s.kv_bytes_planned) / double(s.kv_bytes_max) : 0);
  print_head("kv_bytes", "gauge",
             "Bytes of KV cache, by what holds them; of ranks that share a model on each.", out);
  out += fmt::format("entropyinfer:kv_bytes{{{},state=\"used\"}} {}\n", model, s.kv_bytes_used);
  out +=
      fmt::format("entropyinfer:kv_bytes{{{},state=\"planned\"}} {}\n", model, s.kv_bytes_planned);
  out += fmt::format("entropyinfer:kv_bytes{{{},state=\"prefix\"}} {}\n", model, s.prefix_bytes);
  value("prefix_cache_queries_total", "counter", "Prompt tokens looked for in the prefix cache.",
        s.prefix_queries);
  value("prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.",
        s.prefix_hits);
  print_head("prefix_cache_tier_hits_total", "counter", "The same, by where they were.", out);
  const auto tiers = [&](const char* name, int64_t memory, int64_t ram, int64_t disk) {
    for (const auto& [tier, n] : {std::pair{"memory", memory}, {"ram", ram}, {"disk", disk}})
      out += fmt::format("entropyinfer:{}{{{},tier=\"{}\"}} {}\n", name, model, tier, n);
  };
  tiers("prefix_cache_tier_hits_total", s.prefix_hits - s.prefix_host_hits - s.prefix_loaded,
        s.prefix_host_hits, s.prefix_loaded);
  print_head("prefix_cache_bytes", "gauge", "Bytes of the prefix cache, by where they are.", out);
  tiers("prefix_cache_bytes", s.prefix_bytes, s.prefix_host_bytes, s.prefix_disk_bytes);
  value("prompt_tokens_total", "counter", "Prompt tokens of finished requests.", n_prompt_);
  value("prompt_tokens_cached_total", "counter", "Of these, not read again.", n_cached_);
  value("generation_tokens_total", "counter", "Tokens written by finished requests.", n_generated_);
  value("decode_steps_total", "counter", "Decode steps.", s.n_steps);
  value("decode_step_tokens_total", "counter", "Tokens written by decode steps.", s.n_step_tokens);
  value("kv_compressed_total", "counter", "Answers whose KV cache was compressed.", n_compressed_);
  labelled("request_success_total", "Requests ended, by reason.", "finished_reason", finished_);
  labelled("requests_refused_total", "Requests not served, by reason.", "reason", refused_);
  labelled("dense_fallback_total", "Prompts read with dense attention, by reason.", "reason",
           dense_);
  labelled("http_replies_total", "HTTP replies, by status.", "status", replies_);
  ttft_.print("time_to_first_token_seconds", "From request to first token.", model, out);
  itl_.print("inter_token_latency_seconds", "Between two tokens of an answer.", model, out);
  e2e_.print("e2e_request_latency_seconds", "From request to its end.", model, out);
  queue_.print("request_queue_time_seconds", "Waiting for a turn.", model, out);
  prefill_.print("request_prefill_time_seconds", "From turn to first token.", model, out);
  decode_.print("request_decode_time_seconds", "From first token to last.", model, out);
  prompt_tokens_.print("request_prompt_tokens", "Tokens of a prompt.", model, out);
  generation_tokens_.print("request_generation_tokens", "Tokens of an answer.", model, out);
  density_.print("sparse_prefill_density",
                 "Attended query-key pairs over those of dense attention.", model, out);
  compression_.print("kv_compression_ratio",
                     "KV bytes of a compressed answer over those uncompressed.", model, out);
  return out;
}

}  // namespace ei::server
