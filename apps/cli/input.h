#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace ei::cli {

// Text that users hand in: of a file, a pipe or whatever else can be read; "-" is standard input.
// Throw Error naming the source when it is missing, unreadable, not UTF-8 or longer than max_bytes,
// of which no more is read then.
std::string read_text(const std::filesystem::path& path, int64_t max_bytes = int64_t{4} << 30);
std::string read_stdin(int64_t max_bytes = int64_t{4} << 30);

// Throws what read_text() would for a file that is not there: before much is done for it.
void check_readable(const std::filesystem::path& path);

}  // namespace ei::cli
