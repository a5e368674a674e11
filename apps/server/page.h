#pragma once

#include <span>
#include <string_view>

namespace ei::server {

// A file of the chat page, which the build turns into a constant.
struct PageFile {
  std::string_view name, text;
};

// What lies in page/, and the libraries that it uses.
extern const std::span<const PageFile> kPageFiles;

}  // namespace ei::server
