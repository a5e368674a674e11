#pragma once

#include "ei/jinja/builtins.h"

namespace ei::jinja {

// The parts of find_filter(): filters of texts and single values, filters of lists and dicts.
Function find_text_filter(std::string_view name);
Function find_list_filter(std::string_view name);

struct NamedFunction {
  std::string_view name;
  Function run;
};

template <size_t kSize>
Function find_function(const NamedFunction (&functions)[kSize], std::string_view name) {
  for (const NamedFunction& function : functions)
    if (function.name == name) return function.run;
  return nullptr;
}

}  // namespace ei::jinja
