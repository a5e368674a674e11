#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ei/io/json.h"
#include "ei/io/new_file.h"

namespace ei {

// A conversation in a file: a head, and the images of its pages (page_image.h), the first first.
// Each is a piece: the number of its bytes, and these, which end with a checksum.
struct SessionHead {
  OrderedJson model;   // cache_identity()
  OrderedJson policy;  // every setting that the text was read under
  std::string note;    // the caller's

  std::vector<std::byte> bytes() const;  // without the checksum, as make_image()
};

struct SessionFile {
  SessionHead head;
  std::vector<std::span<const std::byte>> images;  // in the file's bytes
};

void write_piece(NewFile& file, std::span<const std::byte> bytes);
// Throws Error naming `where` when the bytes are no such file. The images are not looked at.
SessionFile parse_session(std::span<const std::byte> file, std::string_view where);

// Throws Error naming `where` and the first field, such as model.kv_type, that is not as expected,
// and saying how to mend that.
void check_fields(const OrderedJson& found, const OrderedJson& expected, std::string_view name,
                  std::string_view mend, std::string_view where);

}  // namespace ei
