#include "apps/eval/json_lines.h"

#include <fmt/format.h>

#include <algorithm>

#include "apps/cli/input.h"
#include "ei/base/fail.h"

namespace ei::eval {

void for_each_line(const std::filesystem::path& file, bool skip_bad,
                   const std::function<void(const Json& line, int64_t n_line)>& take) {
  const std::string text = cli::read_text(file);
  int64_t n_line = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++n_line;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    try {
      take(parse_json(line, "line"), n_line);
    } catch (const std::exception& error) {
      const std::string what = fmt::format("{}, line {}: {}", file.string(), n_line, error.what());
      if (!skip_bad) fail("{}; --skip-bad leaves such lines out", what);
      fmt::print(stderr, "left out: {}\n", what);
    }
  }
}

std::vector<std::string> strings(const Fields& fields, std::string_view key) {
  const Json& list = fields.at(key);
  std::vector<std::string> out;
  for (size_t i = 0; list.is_array() && i < list.size() && list[i].is_string(); ++i)
    out.push_back(list[i]);
  require(!out.empty() && out.size() == list.size(),
          "{}: field \"{}\" is {}, expected a list of strings", fields.where(), key, list.dump());
  return out;
}

std::vector<std::filesystem::path> files_in(const std::filesystem::path& dir,
                                            const std::string& extension) {
  require(std::filesystem::is_directory(dir), "{}: is no folder", dir.string());
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir))
    if (entry.path().extension() == extension) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  require(!files.empty(), "{}: has no {} files", dir.string(), extension);
  return files;
}

}  // namespace ei::eval
