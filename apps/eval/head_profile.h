#pragma once

#include <stop_token>
#include <vector>

#include "ei/engine/engine.h"

namespace ei::eval {

// What the heads did while a prompt was read and the first tokens of its answer were written.
struct Profile {
  struct Segment {
    float entropy = 0;   // nats, of the softmax over the past blocks' scores; 0 for segment 0
    float budget = 0;    // tokens, before it is cut to whole blocks
    int64_t blocks = 0;  // past blocks attended to
    bool dense = false;  // all of them, whatever the budget
  };
  struct Head {
    bool rigid = false;             // entropy below e_t in every segment
    std::vector<Segment> segments;  // empty where the layer is dense
    // Share of the past blocks so many segments back, 1 first, that sparse segments attended to.
    std::vector<double> kept_by_distance;
    // Of the latent window's votes: their share in each of kVoteBins equal stretches of the prompt.
    std::vector<double> votes;
  };
  static constexpr int64_t kVoteBins = 128;

  int64_t segment = 0, block = 0;        // tokens
  std::vector<std::vector<Head>> heads;  // [layer][KV head]
  Generation generation;                 // how it went
};

// Reads and answers a request under its policies, up to the token after which the cache would be
// compressed; the cache stays whole. Throws Error as Session::generate does.
Profile profile(Engine& engine, const Request& request, const Callbacks& callbacks = {},
                std::stop_token cancel = {});

}  // namespace ei::eval
