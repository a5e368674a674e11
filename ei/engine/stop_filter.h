#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ei {

// Finds stop strings in a text that comes in pieces. Text that could be the start of one is held
// back until the next piece decides.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops);

  // Takes the next piece and returns what may be shown now. Once a stop string has appeared,
  // stopped() holds and everything from it on is dropped.
  std::string push(std::string_view piece);
  // What is still held back, at the end of the text.
  std::string finish();
  bool stopped() const { return !stop_.empty(); }
  const std::string& stop() const { return stop_; }  // that appeared

 private:
  std::vector<std::string> stops_;
  std::string held_, stop_;
};

}  // namespace ei
