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

Table::Table(std::vector<std::string> header, std::vector<size_t> widths)
    : widths_(std::move(widths)), header_(std::move(header)) {
  widths_.resize(header_.size(), 3);
  widen(header_);
}

void Table::widen(const std::vector<std::string>& row) {
  for (size_t c = 0; c < widths_.size() && c < row.size(); ++c)
    widths_[c] = std::max(widths_[c], width(row[c]));
}

void Table::add(std::vector<std::string> row) {
  widen(row);
  rows_.push_back(std::move(row));
}

std::string Table::head() const {
  std::string out = line(header_);
  for (size_t c = 0; c < widths_.size(); ++c)
    out += c == 0 ? "|" + std::string(widths_[c] + 2, '-')
                  : "|" + std::string(widths_[c] + 1, '-') + ":";
  return out + "|\n";
}

std::string Table::line(const std::vector<std::string>& row) const {
  std::string out;
  for (size_t c = 0; c < widths_.size(); ++c) {
    const std::string cell = c < row.size() ? row[c] : "";
    const std::string space(widths_[c] - std::min(widths_[c], width(cell)), ' ');
    out += "| " + (c == 0 ? cell + space : space + cell) + " ";
  }
  return out + "|\n";
}

std::string Table::str() const {
  std::string out = head();
  for (const auto& row : rows_) out += line(row);
  return out;
}

}  // namespace ei::cli
