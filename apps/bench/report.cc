#include "apps/bench/report.h"

#include <fmt/format.h>

#include "apps/bench/statistics.h"
#include "apps/cli/report.h"
#include "apps/cli/table.h"
#include "apps/cli/units.h"
#include "apps/cli/version.h"

namespace ei::bench {
namespace {

using nlohmann::ordered_json;

// Records of the same fields, as lines of comma-separated values.
std::string csv(const ordered_json& records) {
  const auto cell = [](const ordered_json& value) {
    if (!value.is_string()) return value.is_null() ? std::string() : cli::dump(value);
    std::string quoted = "\"";
    for (const char c : value.get<std::string>()) quoted += c == '"' ? "\"\"" : std::string(1, c);
    return quoted + "\"";
  };
  std::string out;
  const auto line = [&](auto&& begin, auto&& end, auto&& text) {
    for (auto it = begin; it != end; ++it) out += (it == begin ? "" : ",") + text(it);
    out += "\n";
  };
  if (records.empty()) return out;
  line(records[0].begin(), records[0].end(), [](const auto& it) { return it.key(); });
  for (const ordered_json& record : records)
    line(record.begin(), record.end(), [&](const auto& it) { return cell(it.value()); });
  return out;
}

// Facts come first: as lines, as comments, or as fields of the one object.
std::string with_facts(const Facts& facts, const std::string& body, const char* start,
                       const char* end) {
  std::string out;
  for (const auto& [name, value] : facts)
    out += fmt::format("{}{}: {}{}\n", start, name, value, end);
  return out + "\n" + body;
}

std::string render(const Facts& facts, const ordered_json& records, const cli::Table& table,
                   Format format) {
  if (format == Format::kMd) return with_facts(facts, table.str(), "- ", "");
  if (format == Format::kCsv) {
    // Each record repeats the facts, as llama-bench's do: files can be joined.
    ordered_json wide = ordered_json::array();
    for (const ordered_json& record : records) {
      ordered_json& line = wide.emplace_back(ordered_json::object());
      for (const auto& [name, value] : facts) line[name] = value;
      line.update(record);
    }
    return csv(wide);
  }
  ordered_json all = ordered_json::object();
  for (const auto& [name, value] : facts) all[name] = value;
  all["results"] = records;
  return all.dump(2) + "\n";
}

const char* limit_name(KernelResult::Limit limit) {
  switch (limit) {
    case KernelResult::Limit::kPeak:
      return "peak";
    case KernelResult::Limit::kMemory:
      return "memory";
    case KernelResult::Limit::kDense:
      return "dense rate";
    case KernelResult::Limit::kStep:
      return "step";
  }
  return "";
}

std::string rate(const KernelResult& r) {
  if (r.flops > 0) return fmt::format("{:.1f} GFLOP/s", r.flops / r.seconds / 1e9);
  if (r.bytes > 0) return fmt::format("{:.1f} GB/s", r.bytes / r.seconds / 1e9);
  return "";
}

}  // namespace

Facts facts(const Machine& machine, const std::string& device) {
  const cli::Build build = cli::build();
  return {{"cpu", fmt::format("{}, {} cores", machine.cpu, machine.cores)},
          {"memory", cli::human_bytes(machine.memory_bytes)},
          {"device", device},
          {"compiler", build.compiler},
          {"commit", build.commit},
          {"version", build.version}};
}

std::string report(const Facts& facts, std::span<const Row> rows, Format format) {
  cli::Table table({"test", "prefill", "decode", "tokens/s", "vs dense", "density", "peak memory"});
  ordered_json records = ordered_json::array();
  for (const Row& row : rows) {
    const double average = mean(row.tokens_per_s), spread = deviation(row.tokens_per_s);
    const double ratio = ratio_to_dense(row, rows);
    table.add({row.work.name(), row.how.prefill_name, row.how.decode_name,
               fmt::format("{:.1f} ± {:.1f}", average, spread),
               ratio > 0 ? fmt::format("{:.2f}x", ratio) : "", fmt::format("{:.3f}", row.density),
               cli::human_bytes(row.peak_bytes)});
    std::string samples;
    for (const double s : row.tokens_per_s)
      samples += fmt::format("{}{:.3f}", samples.empty() ? "" : " ", s);
    const bool reads = row.work.kind == Work::Kind::kRead;
    records.push_back({{"test", row.work.name()},
                       {"n_prompt", reads ? row.work.n : 0},
                       {"n_gen", reads ? 0 : row.work.n},
                       {"n_depth", row.work.depth},
                       {"prefill", row.how.prefill_name},
                       {"decode", row.how.decode_name},
                       {"tokens_per_s", average},
                       {"tokens_per_s_sd", spread},
                       {"samples", samples},
                       {"vs_dense", ratio > 0 ? ordered_json(ratio) : ordered_json()},
                       {"density", row.density},
                       {"kv_bytes", row.kv_bytes},
                       {"peak_bytes", row.peak_bytes}});
  }
  return render(facts, records, table, format);
}

std::string report(const Facts& facts, const KernelReport& kernels, Format format) {
  Facts all = facts;
  const Ceilings& c = kernels.ceilings;
  all.emplace_back("FMA peak", fmt::format("{:.1f} GFLOP/s", c.fma_flops / 1e9));
  if (c.tile_flops > 0)
    all.emplace_back("tile peak", fmt::format("{:.1f} GFLOP/s", c.tile_flops / 1e9));
  all.emplace_back("memory read", fmt::format("{:.1f} GB/s", c.memory_bytes / 1e9));
  all.emplace_back("L2 read", fmt::format("{:.1f} GB/s", c.l2_bytes / 1e9));

  cli::Table table({"kernel", "size", "time", "rate", "share of", "is", "target", "met"});
  ordered_json records = ordered_json::array();
  for (const KernelResult& r : kernels.results) {
    const bool less = r.limit == KernelResult::Limit::kStep;
    const bool goal = r.target > 0;
    table.add({r.kernel, r.size, cli::human_ms(r.seconds * 1e3), rate(r), limit_name(r.limit),
               fmt::format("{:.1f}%", 100 * r.share),
               goal ? fmt::format("{} {:.0f}%", less ? "<=" : ">=", 100 * r.target) : "",
               !goal     ? ""
               : r.met() ? "yes"
                         : "no"});
    records.push_back({{"kernel", r.kernel},
                       {"size", r.size},
                       {"seconds", r.seconds},
                       {"flops", r.flops},
                       {"bytes", r.bytes},
                       {"share_of", limit_name(r.limit)},
                       {"share", r.share},
                       {"target", goal ? ordered_json(r.target) : ordered_json()},
                       {"met", goal ? ordered_json(r.met()) : ordered_json()}});
  }
  return render(all, records, table, format);
}

}  // namespace ei::bench
