#include "apps/cli/table.h"

#include <algorithm>

namespace ei::cli {
namespace {

// In characters: UTF-8 continuation bytes take no room.
size_t width(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

std::string Table::str() const {
  std::vector<size_t> widths(rows_.front().size(), 3);
  for (const auto& row : rows_)
    for (size_t c = 0; c < widths.size() && c < row.size(); ++c)
      widths[c] = std::max(widths[c], width(row[c]));

  std::string out;
  const auto line = [&](const std::vector<std::string>& row) {
    for (size_t c = 0; c < widths.size(); ++c) {
      const std::string cell = c < row.size() ? row[c] : "";
      const std::string space(widths[c] - width(cell), ' ');
      out += "| " + (c == 0 ? cell + space : space + cell) + " ";
    }
    out += "|\n";
  };
  line(rows_.front());
  for (size_t c = 0; c < widths.size(); ++c)
    out += c == 0 ? "|" + std::string(widths[c] + 2, '-')
                  : "|" + std::string(widths[c] + 1, '-') + ":";
  out += "|\n";
  for (size_t r = 1; r < rows_.size(); ++r) line(rows_[r]);
  return out;
}

}  // namespace ei::cli
