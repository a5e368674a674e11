#include "apps/cli/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "apps/cli/units.h"

namespace ei::cli {
namespace {

bool set_and_not_empty(const char* variable) {
  const char* value = std::getenv(variable);
  return value && *value;
}

int terminal_width() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

std::string progress_text(const std::string& label, int64_t done, int64_t total, double per_s,
                          double s_left, int width, const std::string& unit) {
  const double share = total > 0 ? double(done) / double(total) : 1;
  const std::string head = fmt::format("{} {:3.0f}%", label, 100 * share);
  std::string tail = fmt::format(" {}/{}", grouped(done), grouped(total));
  const std::string speed =
      per_s <= 0 ? ""
                 : fmt::format("  {} {}/s  {} left", human_rate(per_s), unit, clock_time(s_left));
  // What a narrow terminal has no room for is left out, from the end.
  const auto room = [&](const std::string& more) {
    return width - static_cast<int>(head.size() + tail.size() + more.size());
  };
  if (room(speed) >= 0) tail += speed;
  if (room("") < 0) return head.substr(0, static_cast<size_t>(std::max(width, 0)));
  const auto bar = static_cast<size_t>(std::clamp(room(" []"), 0, 40));
  const auto full = static_cast<size_t>(share * double(bar));
  const std::string shown =
      bar == 0 ? "" : " [" + std::string(full, '#') + std::string(bar - full, '.') + "]";
  return head + shown + tail;
}

ProgressBar::ProgressBar(std::string label, std::string unit)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      on_(isatty(STDERR_FILENO) != 0),
      color_(!set_and_not_empty("NO_COLOR")),
      start_(std::chrono::steady_clock::now()),
      last_(start_) {}

void ProgressBar::update(int64_t done, int64_t total, int64_t cached) {
  if (!on_) return;
  const auto now = std::chrono::steady_clock::now();
  const auto per_second = [&](int64_t n, std::chrono::steady_clock::time_point since) {
    const double s = std::chrono::duration<double>(now - since).count();
    return s > 0 ? double(n) / s : 0;
  };
  // A long prompt is read ever more slowly: the newest step tells best how long the rest takes.
  const double newest = per_second(done - std::max(last_done_, cached), last_);
  const double s_left = newest > 0 ? double(total - done) / newest : 0;
  last_ = now;
  last_done_ = done;
  const std::string text = progress_text(label_, done, total, per_second(done - cached, start_),
                                         s_left, terminal_width() - 1, unit_);
  fmt::print(stderr, "\r{}{}{}\033[K", color_ ? "\033[36m" : "", text, color_ ? "\033[0m" : "");
  std::fflush(stderr);
  shown_ = true;
}

void ProgressBar::clear() {
  if (!shown_) return;
  fmt::print(stderr, "\r\033[K");
  std::fflush(stderr);
  shown_ = false;
}

Callbacks watch(ProgressBar& progress, std::function<void(std::string_view)> on_text) {
  return {.on_text =
              [&progress, on_text = std::move(on_text)](std::string_view text) {
                progress.clear();
                if (on_text) on_text(text);
              },
          .on_prefill = [&progress](int64_t done, int64_t total,
                                    int64_t cached) { progress.update(done, total, cached); }};
}

}  // namespace ei::cli
