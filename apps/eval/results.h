#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace ei::eval {

// One answer of an evaluation.
struct Result {
  std::string task;
  int64_t length = 0;  // asked for
  int64_t sample = 0;
  double depth = -1;  // share of the text before what was asked for; -1: in several places
  std::string policy;
  std::vector<std::string> expected;
  std::string answer;
  double score = 0;  // 0 to 1
  int64_t prompt_tokens = 0;
  double density = 1;    // attended query-key pairs of the prefill over those of dense attention
  int64_t kv_bytes = 0;  // K and V of the entries held at the end
  int64_t kv_bytes_full = 0;  // of all of them
  double prefill_ms = 0;      // time to first token
  double token_ms = 0;        // of each token after the first

  bool is_for(const std::string& t, int64_t n, int64_t i, const std::string& p) const {
    return task == t && length == n && sample == i && policy == p;
  }
};

// Results in a file of JSON lines, the first of which says of what: an evaluation that was
// interrupted goes on where it stopped.
class ResultFile {
 public:
  // Opens a new file, or one of the same evaluation: `about` tells. A last line that was cut off is
  // dropped. Throws Error naming file and line, also when the file is of another evaluation.
  ResultFile(const std::filesystem::path& path, const nlohmann::ordered_json& about);

  const std::vector<Result>& results() const { return results_; }
  void add(Result result);  // on disk when this returns

 private:
  std::filesystem::path path_;
  std::vector<Result> results_;
  std::ofstream file_;
};

}  // namespace ei::eval
