#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "ei/engine/engine.h"

namespace ei::cli {

// A bar on stderr while a prompt is read or weights are loaded, with `unit` per second and the time
// left; silent where stderr is not a terminal. Colour unless NO_COLOR is set.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label, std::string unit = "tokens");
  ~ProgressBar() { clear(); }

  // Of `total` steps, `done` are there, `cached` of them from before this bar was made.
  void update(int64_t done, int64_t total, int64_t cached = 0);
  void clear();  // takes the bar off the screen

 private:
  std::string label_, unit_;
  bool shown_ = false;
  bool on_;
  bool color_;
  std::chrono::steady_clock::time_point start_, last_;
  int64_t last_done_ = 0;
};

// Callbacks that move the bar while a prompt is read and pass the answer on to `on_text`, if there
// is one.
Callbacks watch(ProgressBar& progress, std::function<void(std::string_view)> on_text = {});

// The text of a bar of at most `width` characters, without colour.
std::string progress_text(const std::string& label, int64_t done, int64_t total, double per_s,
                          double s_left, int width, const std::string& unit = "tokens");

}  // namespace ei::cli
