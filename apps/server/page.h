#pragma once

#include <string_view>

namespace ei::server {

// page.html, which the build turns into a constant.
extern const std::string_view kPage;

}  // namespace ei::server
