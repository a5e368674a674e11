#pragma once

#include <string>
#include <vector>

namespace ei::cli {

// A table for people: Markdown whose columns line up, the first to the left, the others to the
// right.
class Table {
 public:
  // Columns are as wide as what is in them, in characters, and no narrower than `widths`, if given.
  explicit Table(std::vector<std::string> header, std::vector<size_t> widths = {});

  void add(std::vector<std::string> row);
  std::string str() const;

  // In parts, for rows that are printed as they come and not kept: they line up where no cell is
  // wider than its column.
  std::string head() const;
  std::string line(const std::vector<std::string>& row) const;

 private:
  void widen(const std::vector<std::string>& row);

  std::vector<size_t> widths_;
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace ei::cli
