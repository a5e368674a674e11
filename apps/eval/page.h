#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace ei::eval {

// The HTML pages of this folder, which the build turns into constants. Each holds the word
// PAGE_DATA, once, where its data belong.
extern const std::string_view kReportPage;   // report.html
extern const std::string_view kProfilePage;  // profile.html

// A page with its data, as JSON inside a script: nothing in them can end the script.
std::string fill_page(std::string_view page, const nlohmann::ordered_json& data);

}  // namespace ei::eval
