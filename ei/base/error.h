#pragma once

#include <stdexcept>

namespace ei {

// Everything the library throws on purpose: foreign input that is wrong, shapes that disagree,
// resources that are missing. The message names what (file, field), expected and found, and how to
// mend it, and is fit to be shown to a user as it is.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace ei
