#pragma once

#include <filesystem>
#include <string>

namespace ei::cli {

// Text that users hand in. Throw Error naming the source when it is missing, unreadable or not
// UTF-8.
std::string read_text(const std::filesystem::path& path);
std::string read_stdin();

bool stdin_is_terminal();

}  // namespace ei::cli
