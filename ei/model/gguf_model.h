#pragma once

#include <string>
#include <string_view>

#include "ei/io/gguf.h"
#include "ei/model/config.h"

namespace ei {

// What a GGUF file's metadata and tensors say of its model. The architectures are llama (Mistral's
// too), qwen2, qwen3 and pangu-embedded. Throws Error naming the file, the key, what is possible
// and what is found.
ModelConfig gguf_config(const GgufFile& file);

// The Hugging Face name of a tensor of these architectures; others keep their own.
std::string hugging_face_name(std::string_view gguf_name);

}  // namespace ei
