#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "apps/bench/kernel_bench.h"
#include "apps/bench/machine.h"
#include "apps/bench/measure.h"

namespace ei::bench {

enum class Format : uint8_t { kMd, kCsv, kJson };

// Where and with what it was measured: name and value, the same in every format.
using Facts = std::vector<std::pair<std::string, std::string>>;
Facts facts(const Machine& machine, const std::string& device);

std::string report(const Facts& facts, std::span<const Row> rows, Format format);
std::string report(const Facts& facts, const KernelReport& kernels, Format format);

}  // namespace ei::bench
