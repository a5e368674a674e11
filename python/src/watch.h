#pragma once

#include <exception>
#include <stop_token>

#include "ei/engine/engine.h"
#include "python/src/bind.h"

namespace ei::python {

// A call into an engine, which runs without the interpreter's lock. Between its chunks and tokens
// signals are looked at (Ctrl-C) and the caller's functions called; the first exception stops it
// and is thrown once it has stopped, so that the conversation stays as it was.
class Watch {
 public:
  // Runs work(watch, callbacks, cancel). on_text(str) and on_prefill(int done, int total) may be
  // None.
  template <class Work>
  static auto run(const nb::object& on_text, const nb::object& on_prefill, const Work& work) {
    Watch watch;
    Callbacks callbacks;
    if (!on_text.is_none())
      callbacks.on_text = [&](std::string_view text) {
        watch.call([&] { on_text(nb::str(text.data(), text.size())); });
      };
    if (!on_prefill.is_none())
      callbacks.on_prefill = [&](int64_t done, int64_t total, int64_t) {
        watch.call([&] { on_prefill(done, total); });
      };
    callbacks.on_step = [&] {
      watch.call([] {
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
      });
    };
    auto result = [&] {
      const nb::gil_scoped_release free;
      return work(watch, callbacks, watch.stop_.get_token());
    }();
    if (watch.error_) std::rethrow_exception(watch.error_);
    return result;
  }

  // Calls into Python.
  template <class Function>
  void call(const Function& function) noexcept {
    if (error_) return;
    const nb::gil_scoped_acquire lock;
    try {
      function();
    } catch (...) {
      error_ = std::current_exception();
      stop_.request_stop();
    }
  }

 private:
  std::stop_source stop_;
  std::exception_ptr error_;
};

}  // namespace ei::python
