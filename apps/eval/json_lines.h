#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "ei/io/json.h"

namespace ei::eval {

// Every line of a .jsonl file that is not empty, with its number from 1 on. A line that is not
// JSON, or of which `take` throws, throws Error naming file and line; with skip_bad it is told
// about on standard error and left out.
void for_each_line(const std::filesystem::path& file, bool skip_bad,
                   const std::function<void(const Json& line, int64_t n_line)>& take);

// A field that is a list of strings, one at least. Throws Error naming it.
std::vector<std::string> strings(const Fields& fields, std::string_view key);

// The files below a folder with this extension, in the order of their names. Throws Error when
// there is no such folder or file.
std::vector<std::filesystem::path> files_in(const std::filesystem::path& dir,
                                            const std::string& extension);

}  // namespace ei::eval
