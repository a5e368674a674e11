#include "apps/cli/input.h"

#include <unistd.h>

#include <iostream>
#include <iterator>

#include "ei/base/utf8.h"
#include "ei/io/json.h"

namespace ei::cli {

std::string read_text(const std::filesystem::path& path) {
  std::string text = read_file(path);
  require_utf8(text, path.string());
  return text;
}

std::string read_stdin() {
  std::string text{std::istreambuf_iterator<char>(std::cin), {}};
  require_utf8(text, "standard input");
  return text;
}

bool stdin_is_terminal() { return isatty(STDIN_FILENO) != 0; }

}  // namespace ei::cli
