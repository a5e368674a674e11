#pragma once

#include <string>
#include <vector>

namespace ei::cli {

// A table for people: Markdown whose columns line up, the first to the left, the others to the
// right.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}

  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string str() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace ei::cli
