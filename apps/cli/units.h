#pragma once

#include <cstdint>
#include <string>

namespace ei::cli {

std::string grouped(int64_t n);            // 32000 -> "32,000"
std::string human_bytes(int64_t n_bytes);  // 3355443 -> "3.2 MiB"
std::string human_rate(double per_s);      // 812.4 -> "812", 7.25 -> "7.3"
std::string human_ms(double ms);           // "12.5 ms", "1.25 s", "2:05 min"
std::string clock_time(double s);          // "0:23", "1:02:03"

}  // namespace ei::cli
