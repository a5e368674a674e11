#pragma once

#include <cerrno>
#include <string>
#include <system_error>

namespace ei {

// What the system says of the call that failed last.
inline std::string errno_text() { return std::generic_category().message(errno); }

}  // namespace ei
