#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ei::cli {

// The name that is typed nearly like this, if there is one: empty when none is.
std::string nearest(std::string_view typed, const std::vector<std::string>& names);

}  // namespace ei::cli
