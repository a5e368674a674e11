#include "apps/cli/report.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "apps/cli/units.h"
#include "ei/base/fail.h"

namespace ei::cli {

const char* finish_reason(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "";
}

nlohmann::ordered_json to_json(const Generation& g, double load_ms,
                               const nlohmann::ordered_json& policy) {
  return {
      {"text", g.text},
      {"tokens", g.tokens},
      {"finish_reason", finish_reason(g.finish_reason)},
      {"usage",
       {{"prompt_tokens", g.prompt_tokens},
        {"read_tokens", g.read_tokens},
        {"completion_tokens", g.tokens.size()}}},
      {"timings",
       {{"load_ms", load_ms},
        {"prefill_ms", g.timings.prefill_ms},
        {"decode_ms", g.timings.decode_ms},
        {"prefill_tps", g.timings.prefill_tps},
        {"decode_tps", g.timings.decode_tps}}},
      {"sparsity",
       {{"density", g.sparsity.density},
        {"kept_blocks_mean", g.sparsity.kept_blocks_mean},
        {"rigid_heads", g.sparsity.rigid_heads},
        {"dynamic_heads", g.sparsity.dynamic_heads}}},
      {"kv",
       {{"bytes", g.kv.bytes},
        {"bytes_full", g.kv.bytes_full},
        {"entry_bytes", g.kv.entry_bytes},
        {"compressed", g.kv.compressed}}},
      {"policy", policy},
  };
}

std::string stats_line(const Generation& g) {
  std::string cached;
  if (g.cached_tokens > 0) cached = fmt::format(" ({} known already)", grouped(g.cached_tokens));
  if (g.read_tokens < g.prompt_tokens)
    return fmt::format("{} of {} prompt tokens{} read in {} ({}/s), no answer",
                       grouped(g.read_tokens), grouped(g.prompt_tokens), cached,
                       human_ms(g.timings.prefill_ms), human_rate(g.timings.prefill_tps));
  return fmt::format(
      "{} prompt tokens{} in {} ({}/s), {} answered at {}/s; attention {:.1f}% of dense, KV cache "
      "{} of {}",
      grouped(g.prompt_tokens), cached, human_ms(g.timings.prefill_ms),
      human_rate(g.timings.prefill_tps), grouped(static_cast<int64_t>(g.tokens.size())),
      human_rate(g.timings.decode_tps), 100 * g.sparsity.density, human_bytes(g.kv.bytes),
      human_bytes(g.kv.bytes_full));
}

void print(std::string_view text) {
  const bool ok =
      std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  require(ok, "standard output: {}", std::strerror(errno));
}

void save(const std::filesystem::path& path, std::string_view text) {
  // By a name of this process: another may write the same.
  const std::string whole = fmt::format("{}.{}.new", path.string(), getpid());
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(whole.c_str(), "wbe"),
                                                             std::fclose);
  const bool ok = file != nullptr &&
                  std::fwrite(text.data(), 1, text.size(), file.get()) == text.size() &&
                  std::fflush(file.get()) == 0 && fsync(fileno(file.get())) == 0 &&
                  std::rename(whole.c_str(), path.c_str()) == 0;
  if (ok) return;
  const int reason = errno;
  if (file != nullptr) std::remove(whole.c_str());
  fail("{}: cannot be written: {}", path.string(), std::strerror(reason));
}

std::string dump(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

void print_json(const nlohmann::ordered_json& json) { print(dump(json) + "\n"); }

}  // namespace ei::cli
