#include <fstream>
#include <iostream>
#include <iterator>

#include "ei/engine/engine.h"

// hello MODEL FILE QUESTION
int main(int argc, char** argv) try {
  if (argc != 4) {
    std::cerr << "usage: hello MODEL FILE QUESTION\n";
    return 2;
  }
  std::ifstream file(argv[2], std::ios::binary);
  const std::string document{std::istreambuf_iterator<char>(file), {}};

  ei::Engine engine(argv[1]);
  ei::Session session(engine);
  ei::Request request;  // reads by entropy and compresses the cache, as the paper does
  request.messages = {{"user", {document, argv[3]}}};
  request.max_tokens = 64;

  const ei::Generation answer = session.generate(
      request, {.on_text = [](std::string_view text) { std::cout << text << std::flush; },
                .on_prefill = [](int64_t done, int64_t total,
                                 int64_t) { std::cerr << done << " of " << total << '\n'; }});
  std::cerr << "\nfirst token after " << answer.timings.prefill_ms << " ms, "
            << 100 * answer.sparsity.density << "% of dense attention\n";
} catch (const ei::Error& error) {
  std::cerr << "hello: " << error.what() << '\n';
  return 1;
}
