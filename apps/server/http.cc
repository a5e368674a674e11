#include "apps/server/http.h"

#include "apps/server/http_connection.h"
#include "ei/base/fail.h"

namespace ei::server {
namespace {

namespace asio = boost::asio;

HttpOptions sound(HttpOptions options) {
  // A body that could never be held is too long, and not to be sent again later.
  options.limits.body_bytes = std::min<uint64_t>(options.limits.body_bytes, options.body_memory);
  return options;
}

// Does what may not be left undone, were there no memory for it at the moment.
template <class F>
void insist(F f) {
  while (true) {
    try {
      return f();
    } catch (const std::bad_alloc&) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
}

}  // namespace

std::string host_and_port(const std::string& address, uint16_t port) {
  const bool is_v6 = address.find(':') != address.npos;
  return fmt::format(fmt::runtime(is_v6 ? "[{}]:{}" : "{}:{}"), address, port);
}

void HttpServer::Impl::listen() {
  error_code error;
  tcp::endpoint endpoint(asio::ip::make_address(options.address, error), options.port);
  if (error) {  // not an address: a name
    const auto found = tcp::resolver(io).resolve(options.address, "", error);
    require(!error && !found.empty(),
            "--host {}: neither an IP address nor a name of this machine; 127.0.0.1 is this "
            "machine, 0.0.0.0 all networks",
            options.address);
    endpoint = {found.begin()->endpoint().address(), options.port};
    for (const auto& entry : found)  // clients try IPv4 in any case
      if (entry.endpoint().address().is_v4()) endpoint.address(entry.endpoint().address());
  }
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  require(!error, "cannot listen on {} port {}: {}; choose another with --port", options.address,
          options.port, error.message());
  accept();
}

// One accept is on its way at any time: without it nobody would come in again.
void HttpServer::Impl::accept() {
  insist([this] {
    acceptor.async_accept(asio::make_strand(io),
                          [self = shared_from_this()](error_code error, tcp::socket socket) {
                            if (!self->listening) return;
                            try {
                              if (!error) self->take(std::move(socket));
                            } catch (const std::bad_alloc&) {
                              error = asio::error::no_memory;
                            }
                            if (error) return self->accept_later();
                            self->accept();
                          });
  });
}

// Out of descriptors or memory: closing connections will free some.
void HttpServer::Impl::accept_later() {
  insist([this] {
    retry_timer.expires_after(std::chrono::milliseconds(100));
    retry_timer.async_wait([self = shared_from_this()](error_code) {
      if (self->listening) self->accept();
    });
  });
}

void HttpServer::Impl::take(tcp::socket socket) {
  constexpr size_t kMostRefused = 32;  // at a time; beyond that nobody is told why
  const auto connection = std::make_shared<Connection>(std::move(socket), shared_from_this());
  bool is_full = false;
  {
    const std::lock_guard lock(mutex);
    is_full = static_cast<int>(connections.size()) >= options.max_connections;
    if (is_full && refused.size() >= kMostRefused) return;
    (is_full ? refused : connections).insert(connection.get());
  }
  if (!is_full) return connection->start();
  HttpReply reply = error_reply(503, "unavailable_error",
                                fmt::format("There are {} connections already, the most there may "
                                            "be.",
                                            options.max_connections),
                                "", "too_many_connections");
  reply.headers.emplace_back("Retry-After", "1");
  connection->refuse_soon(std::move(reply));
}

// What is thrown here found no connection that it could end.
void HttpServer::Impl::run() {
  while (true) {
    try {
      io.run();
      return;
    } catch (...) {
    }
  }
}

void HttpServer::Impl::remove(Connection* connection) {
  const std::lock_guard lock(mutex);
  connections.erase(connection);
  refused.erase(connection);
  removed.notify_all();
}

std::vector<std::shared_ptr<Connection>> HttpServer::Impl::alive() const {
  std::vector<std::shared_ptr<Connection>> alive;
  const std::lock_guard lock(mutex);
  for (const auto* set : {&connections, &refused})
    for (Connection* connection : *set)
      if (auto held = connection->weak_from_this().lock()) alive.push_back(std::move(held));
  return alive;
}

HttpServer::HttpServer(const HttpOptions& options, HttpHandler& handler)
    : impl_(std::make_shared<Impl>(sound(options), handler)) {
  impl_->listen();
  for (int i = 0; i < options.n_threads; ++i)
    impl_->threads.emplace_back([impl = impl_.get()] { impl->run(); });
}

HttpServer::~HttpServer() {
  stop_listening();
  for (const auto& connection : impl_->alive()) connection->close_soon();
  // Handlers that hold connections end with them; then the threads have nothing left to run.
  for (auto& thread : impl_->threads) thread.join();
}

void HttpServer::flush(std::chrono::milliseconds timeout) {
  for (const auto& connection : impl_->alive()) connection->close_if_idle();
  std::unique_lock lock(impl_->mutex);
  impl_->removed.wait_for(lock, timeout, [&] { return impl_->connections.empty(); });
}

uint16_t HttpServer::port() const { return impl_->acceptor.local_endpoint().port(); }

int HttpServer::n_connections() const {
  const std::lock_guard lock(impl_->mutex);
  return static_cast<int>(impl_->connections.size());
}

void HttpServer::stop_listening() {
  if (!impl_->listening.exchange(false)) return;
  asio::post(impl_->io, [impl = impl_] {
    boost::system::error_code ignored;
    impl->acceptor.close(ignored);
    impl->retry_timer.cancel();
  });
}

}  // namespace ei::server
