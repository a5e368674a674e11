#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "ei/io/json.h"
#include "ei/text/tokenizer.h"
#include "tests/support/files.h"

namespace ei::test {

inline std::filesystem::path text_data() { return EI_SOURCE_DIR "/tests/text/data"; }

// Real vocabularies, which are no part of the repository.
inline std::filesystem::path tokenizers_dir() {
  const char* dir = std::getenv("ENTROPYINFER_TOKENIZERS_DIR");
  return dir ? dir : EI_SOURCE_DIR "/../shared/tokenizers";
}

#define EI_SKIP_WITHOUT(path)                                                                      \
  if (!std::filesystem::exists(path))                                                              \
  GTEST_SKIP() << (path).string() << " is missing; set ENTROPYINFER_TOKENIZERS_DIR to the folder " \
               << "of real vocabularies"

}  // namespace ei::test
